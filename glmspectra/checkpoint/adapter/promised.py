"""An adapter's file held against its configuration: what one of the two names and the other lacks.

PEFT warns of modules that have no factors, and leaves out, without a word, factors of modules that the configuration
does not target. The first is told, the second refused; so is a trained tensor that the file should hold and does not.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.config import CONFIG_FILE, AdapterConfig
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.checkpoint.adapter.stored import WEIGHT_FILES, StoredAdapter
from glmspectra.checkpoint.names import IN_LAYERS, parse_name
from glmspectra.checkpoint.selection import files_beside
from glmspectra.errors import CheckpointError
from glmspectra.language import text
from glmspectra.peft_rules import fully_matched


def check_file(path: Path, config: AdapterConfig, stored: StoredAdapter) -> None:
    """See that the configuration targets every module that has factors, and that trained tokens are there.

    Raises:
        CheckpointError: Of a module or key, by its name.
    """
    strange = next(_untargeted(config, stored.factors), None)
    if strange is not None:
        raise CheckpointError(
            f"{path}: has factors of {strange}, which {CONFIG_FILE} does not target (target_modules, exclude_modules, "
            "layers_to_transform): PEFT would leave them out; mend the configuration or take them out of the file."
        )
    tokens = config.trainable_token_indices or []
    embeddings = list(tokens) if isinstance(tokens, dict) else ["the embedding"] if tokens else []
    for name in embeddings:
        if not any(_ends(module, name) or not isinstance(tokens, dict) for module in stored.rows):
            raise _absent(path, "trainable_token_indices", f"trained tokens of {name}")


def check_base(path: Path, config: AdapterConfig, stored: StoredAdapter, base: BaseLayout) -> None:
    """See that whole modules and biases that were trained are in the file, of those that the base has.

    Raises:
        CheckpointError: One is not.
    """
    there = [*base.shapes, *base.tied]
    for name in _listed(config.modules_to_save):
        if any(_within(other, name) for other in there) and not any(_within(other, name) for other in stored.whole):
            raise _absent(path, "modules_to_save", f"tensor of {name}")
    biases = [name for name in base.shapes if name.endswith(".bias")]
    if config.bias == "all" and biases and not any(name.endswith(".bias") for name in stored.whole):
        raise _absent(path, "bias", f"bias, such as {biases[0]}")


def notes(path: Path, config: AdapterConfig, found: Mapping[str, TensorChange], base: BaseLayout) -> list[str]:
    """What a person is told: modules without factors, and a second file of weights that is not read."""
    modules = _left_alone(config, found, base)
    files = [name for name in WEIGHT_FILES if (path / name).is_file()]  # PEFT reads the first too; a file holds none
    said = [text("adapter-left-alone", count=len(modules), name=modules[0])] if modules else []
    if files[1:]:
        read, *beside = files
        said.append(files_beside(path.name, read, beside))
    return said


def _left_alone(config: AdapterConfig, found: Mapping[str, TensorChange], base: BaseLayout) -> list[str]:
    """Modules that target_modules names and that have no factors, of the types of which others have some.

    None are told where layers or modules were picked in another way too (a pattern, layers_to_transform, AdaLoRA).
    """
    targets = config.target_modules
    if not isinstance(targets, list) or config.adalora or config.layers_to_transform or config.exclude_modules:
        return []
    trained = {change.source.removesuffix(".weight") for change in found.values() if change.all_factors}
    used = tuple(f".{end}" for end in targets if any(_ends(module, end) for module in trained))
    modules = (name.removesuffix(".weight") for name in base.shapes if name.endswith(".weight"))
    return [module for module in modules if f".{module}".endswith(used) and module not in trained] if used else []


def _untargeted(config: AdapterConfig, modules: Collection[str]) -> Iterator[str]:
    """Modules for which PEFT would make no factors (peft.tuners.tuners_utils.check_target_module_exists)."""
    targets, excluded = config.target_modules, config.exclude_modules
    if not targets or targets == "all-linear":
        return
    wanted = set(_matched(targets, modules, "target_modules"))
    wanted -= set(_matched(excluded, modules, "exclude_modules")) if excluded else set()
    wanted -= {module for module in wanted if any(_within(module, name) for name in _listed(config.modules_to_save))}
    layers = config.layers_to_transform
    numbers = {layers} if isinstance(layers, int) else set(layers or [])
    if config.ensure_weight_tying:  # PEFT makes factors of the tied layer too, and does not list it
        modules = [module for module in modules if parse_name(f"{module}.weight").zone == IN_LAYERS]
    counted = bool(numbers) and not config.layers_pattern and isinstance(targets, list)
    for module in modules:
        if module not in wanted or (counted and module not in targets and _layer(module) not in numbers):
            yield module


def _layer(module: str) -> int | None:
    """The layer's number as PEFT finds it: the first part of the name that is one, behind two others."""
    return next((int(part) for part in module.split(".")[2:-1] if part.isdecimal() and len(part) < 7), None)


def _listed(names: list[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def _matched(named: list[str] | str, modules: Iterable[str], origin: str) -> list[str]:
    if isinstance(named, str):
        return fully_matched(named, modules, origin)
    return [module for module in modules if any(_ends(module, name) for name in named)]


def _ends(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _within(tensor: str, module: str) -> bool:
    return f".{module}." in f".{tensor}"


def _absent(path: Path, key: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {key} is set in {CONFIG_FILE}, and the file holds no {what}; the adapter was not saved whole."
    )
