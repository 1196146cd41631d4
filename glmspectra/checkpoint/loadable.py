"""Whether a model library can take a checkpoint's weights for what they are, before it is asked to.

transformers takes a float8 weight without a `quantization_config` as it lies, and passes over packed words under names
that it does not know: the model then computes with other weights than the files hold.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from glmspectra.checkpoint.reader import Checkpoint, open_checkpoint
from glmspectra.errors import CheckpointError

# Formats that the model classes in use dequantize or compute with: bitsandbytes', ChatGLM's own, GGUF's.
LOADED = ("nf4", "fp4", "llm_int8", "int4", "int8")
LAYERS = ("num_layers", "num_hidden_layers", "n_layer", "n_layers")
# Tables and masks of older files that models make anew.
MADE_ANEW = ("inv_freq", "masked_bias", "attn.bias", "position_ids")


def check_loadable(path: Path) -> None:
    """See that every weight is one that a model class takes for what it is.

    Raises:
        CheckpointError: A weight cannot be read, or is quantized in a format that only this package dequantizes; the
            message names both and the way out.
    """
    with open_checkpoint(path) as checkpoint:
        faulty = {record.name: record.fault for record in checkpoint.tensors.values() if record.fault is not None}
        if faulty:
            name, fault = next(iter(faulty.items()))
            raise CheckpointError(f"{path}: {len(faulty)} of its tensors cannot be used; {name}: {fault}.")
        _check_layers(path, checkpoint)
        native = LOADED if checkpoint.config.get("model_type") == "chatglm" else LOADED[:3]
        formats = Counter(
            record.quantization
            for record in checkpoint.tensors.values()
            if record.quantization is not None and not record.quantization.startswith("gguf:")
        )
    foreign = [name for name in formats if name not in native]
    if foreign:
        raise CheckpointError(
            f"{path}: {formats[foreign[0]]} of its weights are stored as {foreign[0]}, which is not computed with; "
            f"write them in half precision first, by glmspectra convert --model {path} --dtype bfloat16."
        )


def _check_layers(path: Path, checkpoint: Checkpoint) -> None:
    """Refuse more layers than the files hold before a model of so many is built: one of 10^9 would take all memory."""
    held = max((record.layer + 1 for record in checkpoint.tensors.values() if record.layer is not None), default=0)
    for key in LAYERS:
        stated = checkpoint.config.get(key)
        if isinstance(stated, int) and held and stated > held:
            raise CheckpointError(
                f"{path}: config.json says {key} {stated:,} and the files hold {held} layers; "
                "fetch the folder again, or mend config.json."
            )


def check_taken(path: Path, unexpected: Iterable[str], missing: Iterable[str]) -> None:
    """See that a loaded model took every tensor of the files, and that the files held every weight of it.

    Args:
        path: The model's folder, for messages.
        unexpected: Tensors of the files that the model has no place for.
        missing: Weights of the model that are in none of the files.

    Raises:
        CheckpointError: There are some of either, beyond the tables and masks that models make anew.
    """
    absent = sorted(missing)
    if absent:  # transformers draws them at random and goes on
        raise CheckpointError(
            f"{path}: {len(absent)} weights of the model that its config.json describes are in none of its files, "
            f"{absent[0]} among them; fetch the folder again, or mend config.json."
        )
    left = sorted(name for name in unexpected if not name.endswith(MADE_ANEW))
    if left:  # and passes over these
        raise CheckpointError(
            f"{path}: the model that its config.json describes has no place for {len(left)} tensors of its files, "
            f"{left[0]} among them; the two are of different models, or config.json lacks what its writer knew."
        )
