"""Names of LoRA in the files of diffusion programs: whose they are, and the module and part that each means.

Known are Kohya's sd-scripts (lora_unet_..., dots written as underscores, lora_down, lora_up, alpha), diffusers (unet.
and text_encoder. before lora_A and lora_B, or its first versions' lora.down and lora.up) and programs that write
diffusion_model. before lora_A and lora_B. `lora_file` reads them; in a PEFT folder `stored` refuses them.
"""

import re
from collections.abc import Iterable

_PROGRAMS = (
    (re.compile(r"\.lora_(?:down|up)\.|^lora_(?:unet|te\d?|transformer|prior)_"), "Kohya's sd-scripts"),
    (
        re.compile(r"\.lora(?:_linear_layer)?\.(?:down|up)\.|_lora\.(?:down|up)\."),
        "diffusers' first versions (lora.down, lora.up)",
    ),
    (re.compile(r"\.hada_w\d|\.lokr_w\d"), "LyCORIS (LoHa or LoKr)"),
    (
        re.compile(r"^(?:diffusion_model|unet|transformer|text_encoder(?:_\d)?)\..*\.lora_[AB]\."),
        "a diffusion model's own",
    ),
)
_PATTERNS = (  # the module's name with its component before it; the most special name first
    re.compile(r"^(?P<module>lora_(?:unet|te\d?|transformer)_[^.]+)\.(?P<part>lora_down|lora_up|alpha)(?:\.weight)?$"),
    re.compile(r"^(?P<module>.+\.processor\.to_(?:q|k|v|out))_lora\.(?P<part>down|up|alpha)(?:\.weight)?$"),
    re.compile(r"^(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<part>down|up|alpha)(?:\.weight)?$"),
    re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|alpha)(?:\.default)?(?:\.weight)?$"),
)
_PARTS = {"lora_down": "lora_A", "lora_up": "lora_B", "down": "lora_A", "up": "lora_B"}
_REFUSED = (
    (re.compile(r"\.hada_"), "LoHa, an entrywise product of two low-rank matrices"),
    (re.compile(r"\.lokr_"), "LoKr, a Kronecker product"),
    (re.compile(r"\.lora_mid\."), "LoCon with a Tucker core (lora_mid), which is no product of two factors"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)\b"), "DoRA, whose scale needs the base weight"),
    (re.compile(r"\.(?:oft_blocks|oft_diag|boft_)"), "OFT, which rotates each weight"),
    (re.compile(r"\.(?:diff|diff_b|w_norm|b_norm)$"), "whole tensors beside LoRA (diff, w_norm)"),
)


def program_of(keys: Iterable[str]) -> str | None:
    """The program whose names of LoRA (or of LyCORIS) are among these."""
    return next((program for key in keys for pattern, program in _PROGRAMS if pattern.search(key)), None)


def refused(key: str) -> str | None:
    """What a tensor of this name belongs to, where that is no product of two factors."""
    return next((what for pattern, what in _REFUSED if pattern.search(key)), None)


def module_and_part(key: str) -> tuple[str, str] | None:
    """The module of a tensor, and what it is of it: lora_A, lora_B or alpha; None for a name that is not known."""
    for pattern in _PATTERNS:
        if match := pattern.match(key):
            module = re.sub(r"\.processor\.to_out$", ".to_out.0", match["module"]).replace(".processor.", ".")
            return module, _PARTS.get(match["part"], match["part"])
    return None
