"""Modules that an adapter's configuration targets and its file has no factors for: PEFT warns of them and goes on."""

from collections.abc import Mapping, Sequence

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.config import AdapterConfig
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.language import text


def left_alone(config: AdapterConfig, found: Mapping[str, TensorChange], base: BaseLayout) -> list[str]:
    """Such modules of a base, of the kinds of which others have factors.

    None are told where layers or modules were picked in another way too (a pattern, layers_to_transform, AdaLoRA).
    """
    targets = config.target_modules
    if not isinstance(targets, list) or config.adalora or config.layers_to_transform or config.exclude_modules:
        return []
    trained = {change.source.removesuffix(".weight") for change in found.values() if change.all_factors}
    used = tuple(f".{end}" for end in targets if any(f".{module}".endswith(f".{end}") for module in trained))
    modules = (name.removesuffix(".weight") for name in base.shapes if name.endswith(".weight"))
    return [module for module in modules if f".{module}".endswith(used) and module not in trained] if used else []


def left_alone_sentence(modules: Sequence[str]) -> str:
    """What a person is told of them."""
    return text("adapter-left-alone", count=len(modules), name=modules[0])
