"""A trained adapter's folder on a loaded base: taken whole, or refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from peft import PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel

from glmspectra.checkpoint.adapter.stored import WEIGHT_FILES
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.tuning.model.four_bit import keep_layout
from glmspectra.tuning.model.loading import LOADING_ERRORS, first_line

# torch's sentence on an embedding or output layer that was trained with tokens of its own.
LARGER = re.compile(
    r"size mismatch for \S*modules_to_save\S*: copying a param with shape torch\.Size\(\[(\d+), \d+\]\) from "
    r"checkpoint, the shape in current model is torch\.Size\(\[(\d+), \d+\]\)"
)


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """A PEFT adapter folder on a loaded base, for inference.

    Folders of 2023 load too. A 4-bit base keeps its layout on any CPU.

    Raises:
        RequestError: There is no adapter.
        CheckpointError: It cannot be read, or it is not of this base: PEFT would leave out in silence what the base
            has no place for, and leave as they start the adapters that the folder says nothing of.
    """
    if not (adapter / "adapter_config.json").is_file():
        inner = sorted(path.parent for path in adapter.glob("*/adapter_config.json"))
        hint = f"; {inner[0]} is one" if inner else ""
        raise RequestError(f"--adapter {adapter}: there is no adapter_config.json{hint}.")
    if not any((adapter / name).is_file() for name in WEIGHT_FILES):  # PEFT would look for them on a hub
        raise CheckpointError(f"{adapter}: adapter_config.json is there, but neither {' nor '.join(WEIGHT_FILES)}.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")
            wrapped = PeftModelForCausalLM.from_pretrained(model, str(adapter), is_trainable=False)
        stored = load_peft_weights(str(adapter), device="cpu")
    except (*LOADING_ERRORS, UserWarning) as error:
        if (grown := LARGER.search(str(error))) and int(grown[1]) > int(grown[2]):
            raise CheckpointError(
                f"{adapter}: has {grown[1]} tokens, and this base {grown[2]}; merge the two (glmspectra merge) and "
                "give the merged model."
            ) from error
        raise CheckpointError(
            f"{adapter}: cannot be put on this base: {first_line(error).rstrip('.')}; "
            "it is damaged, or of another model."
        ) from error
    taken = get_peft_model_state_dict(wrapped, save_embedding_layers=True).keys()
    if foreign := sorted(stored.keys() - taken):
        raise CheckpointError(
            f"{adapter}: changes {len(foreign)} tensors that this base has no place for, {foreign[0]} among them; "
            f"it was trained on {wrapped.peft_config['default'].base_model_name_or_path or 'another base'}."
        )
    if getattr(model, "is_loaded_in_4bit", False):
        keep_layout(wrapped)
    return wrapped.eval()
