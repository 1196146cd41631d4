"""The tensors of an adapter's file by what they are: factors of modules, rows of tokens, and whole tensors."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from glmspectra.checkpoint.adapter.config import CONFIG_FILE
from glmspectra.checkpoint.adapter.lora_names import program_of
from glmspectra.checkpoint.formats.torch_file import load_torch_file
from glmspectra.checkpoint.formats.torch_types import stored_dtype
from glmspectra.device import dtype_name
from glmspectra.errors import CheckpointError

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."

# <module>.<part>[.<name of the adapter>][.weight|.bias]
_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_E|lora_diag|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|ranknum)(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?P<suffix>\.weight|\.bias)?$"
)
_ROWS = re.compile(r"^(?P<module>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?$")
# Kept by PEFT for training or for loading only: VeLoRA's projections, MonteCLoRA's noise, the untrained copies.
_WITHOUT_EFFECT = re.compile(
    r"\.(?:lora_velora_\w+|lora_monteclora_sampler|original_module|trainable_tokens_original)\.?"
)
_SAVED = re.compile(r"\.modules_to_save(?:\.[^.]+(?=\.[^.]+$))?(?=\.)")


@dataclass
class StoredAdapter:
    """The tensors of an adapter as its file holds them, sorted by what they are.

    Attributes:
        factors: module -> part -> tensor, such as lora_A (rank, in) and lora_B (out, rank).
        parameters: module -> how deep its wrapper lies (0: outermost) -> part -> tensor, for LoRA on bare parameters.
        rows: module -> the trained rows of its embedding (tokens, width).
        whole: base name -> a tensor that replaces the base's; under it PEFT loads biases and, beside factors of an
            embedding, the weight that they belong to.
    """

    factors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    parameters: dict[str, dict[int, dict[str, torch.Tensor]]] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)


def read_stored(path: Path, of_parameters: Collection[str] = ()) -> StoredAdapter:
    """The tensors of the adapter in this folder; they are megabytes and are read at once.

    Args:
        path: The folder.
        of_parameters: Modules, by the end of their names, whose bare parameters have the factors.

    Raises:
        CheckpointError: There is no file of weights, it cannot be read, or it holds a tensor that is not known here.
    """
    file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path}: {CONFIG_FILE} is there, but neither {' nor '.join(WEIGHT_FILES)}.")
    stored = _load(file)
    if program := program_of(stored):
        raise CheckpointError(f"{file}: is LoRA in the format of {program}; convert it to PEFT's first.")
    _refuse_several(file, stored)
    found = StoredAdapter()
    saved: dict[str, torch.Tensor] = {}
    for key, tensor in stored.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"{file}: {key} is a {'meta' if tensor.is_meta else stored_dtype(tensor)} "
                "tensor, no array of numbers; save it as a dense one."
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {key} holds {dtype_name(tensor.dtype)}, no floating point.")
        _sort_in(file, found, saved, key, tensor, of_parameters)
    for key in stored:
        module = key.removeprefix(_PREFIX).removesuffix(".weight")
        if key.endswith(".weight") and "lora_A" in found.factors.get(module, {}):
            raise CheckpointError(
                f"{file}: holds {key} beside factors of that weight; PEFT takes a base weight there from "
                f"{module}.base_layer.weight alone, so that it cannot be known which one is meant."
            )
    found.whole |= saved  # of a module with a bias and bias="all" PEFT also saves the original's, which is not used
    if not found.factors and not found.parameters:
        raise CheckpointError(f"{file}: no factors in it; its tensors are {shortened(list(stored)) or 'none'}.")
    return found


def _refuse_several(file: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError where the factors are of more than one adapter: PEFT loads one alone."""
    parts = (_PART.match(name) for name in names if not _WITHOUT_EFFECT.search(name))
    adapters = sorted({part["adapter"] or "(no name)" for part in parts if part})
    if len(adapters) > 1:
        raise CheckpointError(
            f"{file}: holds the factors of several adapters ({shortened(adapters)}); save the one that is meant alone."
        )


def _sort_in(
    file: Path,
    found: StoredAdapter,
    saved: dict[str, torch.Tensor],
    key: str,
    tensor: torch.Tensor,
    of_parameters: Collection[str],
) -> None:
    name = key.removeprefix(_PREFIX)
    if _WITHOUT_EFFECT.search(name):
        return
    part = _PART.match(name)
    rows = _ROWS.match(name)
    if part:
        factor = part["part"] + (".bias" if part["suffix"] == ".bias" else "")
        if factor not in ("lora_B.bias",) and factor.endswith(".bias"):
            raise CheckpointError(f"{file}: the tensor {key!r} belongs to a variant of LoRA that is not read here.")
        module = _plain(part["module"])
        if any(f".{module}".endswith(f".{end}") for end in of_parameters):
            wrappers = found.parameters.setdefault(module, {})
            depth = part["module"].count(".base_layer")
            _put(file, wrappers.setdefault(depth, {}), factor, tensor, key)
        else:
            _put(file, found.factors.setdefault(module, {}), factor, tensor, key)
    elif rows:
        _put(file, found.rows, _plain(rows["module"]), tensor, key)
    elif "lora_" in name or "trainable_tokens" in name:
        raise CheckpointError(f"{file}: the tensor {key!r} belongs to a variant of LoRA that is not read here.")
    else:
        plain = _plain(_SAVED.sub("", name).replace(".token_adapter", ""))
        if ".modules_to_save." in name:
            _put(file, saved, plain, tensor, key)
        else:
            _put(file, found.whole, plain, tensor, key)


def _put(file: Path, table: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, key: str) -> None:
    if name in table:
        raise CheckpointError(f"{file}: {key} is there twice, under two names; which one counts cannot be known.")
    table[name] = tensor


def _plain(name: str) -> str:
    """The name that the base's file has: PEFT puts `base_layer` between a wrapped module and its tensors."""
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def _load(file: Path) -> Mapping[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return load_safetensors(file)[0]
    stored = load_torch_file(file)
    if not isinstance(stored, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in stored.values()):
        raise CheckpointError(f"{file}: holds no table of tensors.")
    return stored


def load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of a file and its metadata. Raises CheckpointError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); was it saved whole?") from None


def shortened(names: list[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
