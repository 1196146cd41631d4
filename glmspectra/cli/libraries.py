"""What the libraries underneath say by themselves, kept off the terminal where it tells a user nothing."""

import warnings


def hush(quiet: bool) -> None:
    """Drop notices that are addressed to those who call the libraries (deprecations among them); under
    --quiet the bars of loading too. What goes wrong still raises or is logged."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|pyarrow|torch)\b")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(transformers|peft|pyarrow|torch)\b")
    if quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
