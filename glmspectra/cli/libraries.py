"""What the libraries underneath say by themselves, kept off the terminal where it tells a user nothing."""

import logging
import warnings


def hush(quiet: bool) -> None:
    """Drop notices that are addressed to those who call the libraries (deprecations among them); under
    --quiet the bars of loading too. What goes wrong still raises or is logged."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|pyarrow|torch)\b")
    # Wrapping a model whose path was resolved; and a faster CPU kernel that only a hub download would bring.
    warnings.filterwarnings("ignore", message=r"The PEFT config's `base_model_name_or_path` was renamed")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(transformers|peft|pyarrow|torch)\b")
    # PEFT takes AdaLoRA's masks for LoRA's patterns first and then uses them as what they are.
    warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match.*\.lora_E'")
    if quiet:
        from transformers.utils import logging as bars

        bars.disable_progress_bar()
