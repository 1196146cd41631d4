"""What the libraries underneath do and say by themselves: nothing is fetched, and nothing said that tells no one."""

import logging
import sys
import warnings


def fetch_no_kernels() -> None:
    """Let no library bring compiled kernels from a hub; to be called before any of them is imported.

    They do so through the package `kernels`, where it is installed: bitsandbytes at its import on some CPUs (and peft
    imports it for every adapter, 4 bits or not), transformers for flash attention that is not installed. Without the
    package bitsandbytes goes on with what it has, and advises to install it.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None: importing it fails
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def hush(quiet: bool) -> None:
    """Drop notices that are addressed to those who call the libraries (deprecations among them); under
    --quiet the bars of loading too. What goes wrong still raises or is logged."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|pyarrow|torch)\b")
    # Wrapping a model whose path was resolved.
    warnings.filterwarnings("ignore", message=r"The PEFT config's `base_model_name_or_path` was renamed")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(transformers|peft|pyarrow|torch)\b")
    # PEFT takes AdaLoRA's masks for LoRA's patterns first and then uses them as what they are.
    warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match.*\.lora_E'")
    if quiet:
        from transformers.utils import logging as bars

        bars.disable_progress_bar()
