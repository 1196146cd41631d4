"""LoRA as diffusion programs save it: one safetensors file without a configuration, its names those of the program.

Read are the forms of Kohya's sd-scripts (lora_unet_..., dots written as underscores, lora_down, lora_up, alpha), of
diffusers (unet. and text_encoder. before lora_A and lora_B, or its first versions' lora.down and lora.up) and of
programs that write diffusion_model. before lora_A and lora_B. The scale is alpha / rank with the file's own alpha for
each module; where it has none, all of these programs take 1. Convolutions are the products of their flattened kernels.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from glmspectra.checkpoint.adapter.adapter import Adapter
from glmspectra.checkpoint.adapter.config import AdapterConfig
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.checkpoint.adapter.stored import StoredAdapter, shortened
from glmspectra.checkpoint.names import natural_order
from glmspectra.errors import CheckpointError

KOHYA = "Kohya's sd-scripts"
_KOHYA = re.compile(
    r"^(?P<module>lora_(?:unet|te\d?|transformer)_[^.]+)\.(?P<part>lora_down|lora_up|alpha)(?:\.weight)?$"
)
_DIFFUSERS = (  # the module's name with its component before it; the most special form first
    re.compile(r"^(?P<module>.+\.processor\.to_(?:q|k|v|out))_lora\.(?P<part>down|up|alpha)(?:\.weight)?$"),
    re.compile(r"^(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<part>down|up|alpha)(?:\.weight)?$"),
    re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|alpha)(?:\.default)?(?:\.weight)?$"),
)
_PARTS = {"lora_down": "lora_A", "lora_up": "lora_B", "down": "lora_A", "up": "lora_B"}
_MARKS = re.compile(
    r"^lora_(?:unet|te\d?|transformer)_|\.lora(?:_linear_layer)?\.(?:down|up)\.|_lora\.(?:down|up)\."
    r"|^(?:unet|transformer|text_encoder(?:_\d)?|diffusion_model)\..*\.lora_[AB]\."
)
_REFUSED = (
    (re.compile(r"\.hada_"), "LoHa, an entrywise product of two low-rank matrices"),
    (re.compile(r"\.lokr_"), "LoKr, a Kronecker product"),
    (re.compile(r"\.lora_mid\."), "LoCon with a Tucker core (lora_mid), which is no product of two factors"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)\b"), "DoRA, whose scale needs the base weight"),
    (re.compile(r"\.(?:oft_blocks|oft_diag|boft_)"), "OFT, which rotates each weight"),
    (re.compile(r"\.(?:diff|diff_b|w_norm|b_norm)$"), "whole tensors beside LoRA (diff, w_norm)"),
)
# Component of a Kohya name -> what may stand before the module in the base, dots as underscores.
_CONTAINERS = {
    "unet": ("unet", "model_diffusion_model", "diffusion_model"),
    "transformer": ("transformer", "model_diffusion_model", "diffusion_model"),
    "te": ("text_encoder", "cond_stage_model_transformer", "conditioner_embedders_0_transformer"),
    "te1": ("text_encoder", "cond_stage_model_transformer", "conditioner_embedders_0_transformer"),
    "te2": ("text_encoder_2", "conditioner_embedders_1_model"),
    "te3": ("text_encoder_3",),
}
_COMPONENT = re.compile(r"^lora_(?P<component>unet|te\d?|transformer)_(?P<rest>.+)$")


def is_lora_file(keys: Iterable[str]) -> bool:
    """Whether these are names of LoRA in one of the forms above, or of LyCORIS, which is refused by name."""
    return any(_MARKS.search(key) or any(pattern.search(key) for pattern, _ in _REFUSED[:2]) for key in keys)


def open_lora_file(path: Path) -> Adapter:
    """Open such a file. Its names stay as they are until a base tells which of its tensors they mean.

    Raises:
        CheckpointError: It cannot be read, holds a method that is no product of two factors, or a tensor that is not
            known here.
    """
    tensors, metadata = _load(path)
    for key in tensors:
        if what := next((said for pattern, said in _REFUSED if pattern.search(key)), None):
            raise CheckpointError(f"{path}: holds {key}: {what}; it is not read.")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = _place(path, key)
        parts = found.setdefault(module, {})
        if part in parts:
            raise CheckpointError(f"{path}: {key} is there twice, under two names; which one counts cannot be told.")
        parts[part] = tensor
    alphas = _alphas_of(path, metadata)
    stored = StoredAdapter({m: _flat(path, m, parts, alphas) for m, parts in found.items()})
    names = [f"{module}.weight" for module in sorted(stored.factors, key=natural_order)]
    return Adapter(path, AdapterConfig(peft_type="LORA", r=1, lora_alpha=1.0), names, None, None, stored)


def _load(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); was it saved whole?") from None


def _place(path: Path, key: str) -> tuple[str, str]:
    """The module of a tensor, and what it is of it: lora_A, lora_B or alpha."""
    for pattern in (_KOHYA, *_DIFFUSERS):
        if match := pattern.match(key):
            module = re.sub(r"\.processor\.to_out$", ".to_out.0", match["module"]).replace(".processor.", ".")
            return module, _PARTS.get(match["part"], match["part"])
    raise CheckpointError(f"{path}: the tensor {key!r} is not known here; it may change what the weights are.")


def _alphas_of(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """Component -> alpha of its modules, where diffusers wrote the adapter's configuration beside the tensors.

    Raises:
        CheckpointError: It says more than one alpha and rank a component, so that each module's is not told here.
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        settings = json.loads(text)
        if any(
            settings.get(key) for key in settings if key.endswith((".rank_pattern", ".alpha_pattern", ".use_rslora"))
        ):
            raise CheckpointError(
                f"{path}: its metadata gives single modules an alpha or a rank of their own, or rsLoRA, which is not "
                "read of such a file; load it with PEFT and save the adapter with its configuration."
            )
        return {
            key.removesuffix(".lora_alpha"): float(settings[key]) for key in settings if key.endswith(".lora_alpha")
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata lora_adapter_metadata cannot be read ({error}).") from None


def _flat(
    path: Path, module: str, parts: Mapping[str, torch.Tensor], alphas: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """A module's factors as matrices, kernels flattened: A (rank, in kh kw) and B (out, rank); and its alpha."""
    missing = [part for part in ("lora_A", "lora_B") if part not in parts]
    if missing:
        raise CheckpointError(f"{path}: {module} lacks {' and '.join(missing)}; it was not saved whole.")
    down, up = parts["lora_A"], parts["lora_B"]
    for what, tensor in parts.items():
        if not tensor.is_floating_point() and what != "alpha":
            raise CheckpointError(f"{path}: {what} of {module} holds {tensor.dtype}, no floating point.")
    if down.ndim not in (2, 4) or up.ndim != down.ndim or (up.ndim == 4 and tuple(up.shape[2:]) != (1, 1)):
        raise CheckpointError(
            f"{path}: {module} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)}; linear layers and "
            "convolutions whose second factor is 1 x 1 are read."
        )
    rank = down.shape[0]
    alpha = parts.get("alpha", torch.tensor(alphas.get(module.split(".")[0], float(rank))))
    if alpha.numel() != 1 or not torch.isfinite(alpha.float()).all():
        raise CheckpointError(f"{path}: alpha of {module} is no number.")
    return {"lora_A": down.flatten(1), "lora_B": up.flatten(1), "alpha": alpha}


def name_in(base: BaseLayout, name: str) -> list[str]:
    """The base's tensors that a name of such a file can mean; of Kohya's, those that are equal with underscores."""
    match = _COMPONENT.match(name.removesuffix(".weight"))
    if match is None:
        return base.find(name)
    wanted = {match["rest"], *(f"{before}_{match['rest']}" for before in _CONTAINERS.get(match["component"], ()))}
    return [other for other in base.shapes if other.removesuffix(".weight").replace(".", "_") in wanted]


def bring_to(adapter: Adapter, base: BaseLayout) -> list[str]:
    """Rename the modules of a file's adapter to the base's; notes on components that the base does not have.

    One file changes a U-Net and its text encoders, which are models of their own: what belongs to a component of which
    the base has no module is left out. Convolutions are left out too: the base stores them with more than two axes.

    Raises:
        CheckpointError: A module of a component that the base has is not in it, or could be several.
    """
    found = {name: name_in(base, name) for name in adapter.names}
    there = {_component_of(name) for name, fits in found.items() if fits}
    if not there:
        raise CheckpointError(
            f"{adapter.path}: changes {shortened(adapter.names)}, none of which the base has; name the model that it "
            "was trained on, or leave the base out: its factors are measured alone."
        )
    notes, factors, kernels = [], {}, []
    for name, fits in found.items():
        if len(fits) != 1 and _component_of(name) in there:
            raise CheckpointError(
                f"{adapter.path}: {name} is {'none' if not fits else shortened(fits)} of the base's tensors; was it "
                "trained on this base?"
            )
        if fits and len(base.shapes[fits[0]]) > 2:
            kernels.append(fits[0])
        elif fits:
            factors[fits[0].removesuffix(".weight")] = adapter._stored.factors[name.removesuffix(".weight")]
    absent = sorted({_component_of(name) for name in adapter.names} - there)
    if absent:
        notes.append(f"{adapter.path.name}: also changes {', '.join(absent)}, of which this base has nothing.")
    if kernels:
        notes.append(
            f"{adapter.path.name}: also changes {len(kernels)} convolutions, which are measured only where no base is "
            f"named: {shortened(kernels)}."
        )
    adapter._stored.factors = factors
    adapter.names = [f"{module}.weight" for module in sorted(factors, key=natural_order)]
    return notes


def _component_of(name: str) -> str:
    match = _COMPONENT.match(name)
    return match["component"] if match else name.split(".")[0]
