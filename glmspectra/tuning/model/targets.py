"""Which modules an adapter's settings name, and an error for every name that means nothing.

PEFT applies a `rank_pattern` key that matches no module in silence, and lets the first of two matching keys
win in silence. Here both stop the run, with the nearest names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from glmspectra.errors import ConfigError
from glmspectra.peft_rules import fully_matched, matched_by
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.settings.files import nearest

if TYPE_CHECKING:
    from glmspectra.tuning.settings.models import LoraArgs

_CONTAINER = re.compile(r"[\w.]+")
PEFT_PREFIX = "base_model.model."


def linear_modules(model: Any) -> list[str]:
    """Names of the linear layers that can carry an adapter, the output layer left out, in the order of the model."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]


def resolve_targets(model: Any, lora: LoraArgs) -> list[str]:
    """Full names of the modules that `target_modules`, `exclude_modules` and `layers_to_transform` choose together.

    Raises ConfigError when an entry matches no linear layer, or
    nothing is left.
    """
    linear = linear_modules(model)
    wanted = lora.target_modules
    if wanted is None:
        wanted = family_of(model.config).default_targets
    if wanted == "all-linear":
        wanted = sorted({name.rpartition(".")[2] for name in linear})
    entries = [wanted] if isinstance(wanted, str) else list(wanted)
    for entry in entries:
        single: Any = entry if isinstance(wanted, str) else [entry]
        if not _matching(linear, single):
            raise ConfigError(_no_match("target_modules", entry, linear))
    excluded = lora.exclude_modules
    for entry in [excluded] if isinstance(excluded, str) else excluded or []:
        if not _matching(linear, entry if isinstance(excluded, str) else [entry]):
            raise ConfigError(_no_match("exclude_modules", entry, linear))
    chosen = _matching(linear, wanted, excluded, lora.layers_to_transform, lora.layers_pattern)
    if not chosen:
        raise ConfigError(
            "target_modules, exclude_modules and layers_to_transform together leave no module to adapt; the model "
            f"has {len(linear)} linear layers, {linear[0]} to {linear[-1]}."
        )
    return chosen


def check_pattern(setting: str, pattern: Mapping[str, Any], adapted: Iterable[str]) -> None:
    """Stop at a key of `rank_pattern` or `alpha_pattern` that changes nothing.

    A key is a regex that must match a whole ending of a module's name, at a dot; the first key that matches a
    module counts. Raises ConfigError naming the key and the nearest modules, or the earlier key that takes
    all its modules.
    """
    names = list(adapted)
    taken: dict[str, str] = {}
    for key in pattern:
        matches = matched_by(key, names, setting, ConfigError)
        if not matches:
            raise ConfigError(_no_match(setting, key, names))
        free = [name for name in matches if name not in taken]
        if not free:
            raise ConfigError(
                f"{setting} key {key} changes nothing: key {taken[matches[0]]} stands before it and matches first; put "
                "the narrower key before the wider one."
            )
        taken |= dict.fromkeys(free, key)


def resolve_names(setting: str, values: Mapping[str, Any], adapted: Iterable[str]) -> dict[str, Any]:
    """Values for single modules by full name; a key may be a full name or an unambiguous ending of one."""
    names = list(adapted)
    resolved: dict[str, Any] = {}
    for key, value in values.items():
        matches = [name for name in names if name == key or name.endswith(f".{key}")]
        if not matches:
            raise ConfigError(_no_match(setting, key, names))
        if len(matches) > 1:
            raise ConfigError(
                f"{setting} key {key} fits {len(matches)} modules, {matches[0]} among them; write a full name."
            )
        resolved[matches[0]] = value
    return resolved


def _matching(
    names: Iterable[str], targets: Any, excluded: Any = None, layers: Any = None, layers_pattern: Any = None
) -> list[str]:
    """Names that PEFT itself would adapt under these settings; it is given no expression, which may take hours."""
    names = list(names)
    if isinstance(excluded, str):
        left_out = set(fully_matched(excluded, names, "exclude_modules", ConfigError))
        names, excluded = [name for name in names if name not in left_out], None
    if isinstance(targets, str):
        names = targets = fully_matched(targets, names, "target_modules", ConfigError)
    for entry in [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern or []:
        if not _CONTAINER.fullmatch(entry):
            raise ConfigError(f"layers_pattern {entry[:80]} is no name of a list of layers, such as layers or h.")
    config = LoraConfig(target_modules=targets)
    config.exclude_modules = excluded
    config.layers_to_transform, config.layers_pattern = layers, layers_pattern
    answers = ((name, check_target_module_exists(config, name)) for name in names)
    return [name for name, answer in answers if answer is True or isinstance(answer, re.Match)]


def _no_match(setting: str, key: str, names: list[str]) -> str:
    plain = key.removeprefix(PEFT_PREFIX)
    if plain != key and any(name.endswith(plain) for name in names):
        return f"{setting} key {key} matches no module; leave out {PEFT_PREFIX}, names start inside the model: {plain}."
    candidates = names if "." in plain else sorted({name.rpartition(".")[2] for name in names})
    close = nearest(plain, candidates, count=3) or sorted({name.rpartition(".")[2] for name in names})[:8]
    return f"{setting} key {key} matches no module that can be adapted; the nearest are: {', '.join(close)}."
