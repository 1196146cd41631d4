"""A trained adapter's folder on a loaded base: taken whole, or refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel

from glmspectra.checkpoint.adapter.config import CONFIG_FILE
from glmspectra.checkpoint.adapter.stored import WEIGHT_FILES
from glmspectra.checkpoint.foreign import read_by_library
from glmspectra.checkpoint.formats.pickle_bounds import check_pickles
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.json_files import read_object
from glmspectra.peft_rules import ModulePatterns, module_pattern
from glmspectra.tuning.model.four_bit import keep_layout
from glmspectra.tuning.model.targets import PEFT_PREFIX

_OF_FACTOR = re.compile(r"\.lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)\b.*$")
DEFAULT_RANK = 12  # PEFT's init_r, which a LoRA configuration of it may say too

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
    config, stored = _bounded(adapter)
    with read_by_library(adapter, "cannot be put on this base", "it is damaged, or of another model"):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")
                wrapped = PeftModelForCausalLM.from_pretrained(model, str(adapter), config=config, is_trainable=False)
        except RuntimeError as error:
            if (grown := LARGER.search(str(error))) and int(grown[1]) > int(grown[2]):
                raise CheckpointError(
                    f"{adapter}: has {grown[1]} tokens, and this base {grown[2]}; merge the two (glmspectra merge) and "
                    "give the merged model."
                ) from error
            raise
    taken = get_peft_model_state_dict(wrapped, save_embedding_layers=True).keys()
    if foreign := sorted(stored - taken):
        raise CheckpointError(
            f"{adapter}: changes {len(foreign)} tensors that this base has no place for, {foreign[0]} among them; "
            f"it was trained on {wrapped.peft_config['default'].base_model_name_or_path or 'another base'}."
        )
    if getattr(model, "is_loaded_in_4bit", False):
        keep_layout(wrapped)
    return wrapped.eval()


def _bounded(adapter: Path) -> tuple[PeftConfig, set[str]]:
    """The configuration with nothing in it that would cost PEFT time or memory without bound; the names of its tensors.

    PEFT runs patterns of the file by `re`, which can take hours over one, and makes factors of any rank that it says.
    """
    raw = read_object(adapter / CONFIG_FILE)
    if (adapter / WEIGHT_FILES[1]).is_file():
        check_pickles(adapter / WEIGHT_FILES[1])
    with read_by_library(adapter, "cannot be put on this base", "it is damaged"):
        stored = load_peft_weights(str(adapter), device="cpu")
        config = PeftConfig.from_pretrained(str(adapter))
    largest = max((size for tensor in stored.values() for size in tensor.shape), default=0)
    patterns = raw.get("rank_pattern")
    ranks = [raw.get("r"), raw.get("init_r"), *(patterns.values() if isinstance(patterns, dict) else [])]
    if above := [rank for rank in ranks if isinstance(rank, int) and rank > max(largest, DEFAULT_RANK)]:
        raise CheckpointError(
            f"{adapter / CONFIG_FILE}: a rank of {str(above[0])[:40]}, and no tensor of the adapter has a side above "
            f"{largest}: the two are of different adapters."
        )
    for entry in config.modules_to_save or [] if isinstance(config, LoraConfig) else []:
        if not re.fullmatch(r"[\w.]+", str(entry)):
            raise CheckpointError(f"{adapter / CONFIG_FILE}: modules_to_save names {str(entry)[:80]!r}, no module.")
    if isinstance(config, LoraConfig):
        _write_patterns_out(config, stored)
    return config, set(stored)


def _write_patterns_out(config: LoraConfig, stored: Iterable[str]) -> None:
    """The names of the stored modules in the place of expressions that choose them or give them a rank or alpha."""
    modules = sorted({_OF_FACTOR.sub("", name).removeprefix(PEFT_PREFIX) for name in stored if _OF_FACTOR.search(name)})
    by_expression = isinstance(config.target_modules, str) and config.target_modules != "all-linear"
    if by_expression or isinstance(config.exclude_modules, str) or config.layers_pattern:
        config.target_modules = modules
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    for setting in ("alpha_pattern",) if isinstance(config, AdaLoraConfig) else ("rank_pattern", "alpha_pattern"):
        values = getattr(config, setting) or {}
        if not isinstance(values, dict):
            raise CheckpointError(f"{setting} of the adapter is no object of patterns and numbers.")
        keys = ModulePatterns(values, setting)
        exact = {module: values[key] for module in modules if (key := keys.first(module)) is not None}
        setattr(config, setting, {module_pattern(module): value for module, value in exact.items()})
