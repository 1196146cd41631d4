"""`.bin`, `.pt`, `.pth`.

Torch's own unpickler with its list of admitted types, mapped; no code of a file is ever run.
"""

import pickle
import re
from math import prod
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.formats.hqq import flat, is_own_file
from glmspectra.checkpoint.formats.pickle_bounds import check_pickles
from glmspectra.checkpoint.formats.torch_types import stored_dtype
from glmspectra.checkpoint.records import StoredTensor
from glmspectra.errors import CheckpointError

# Trainers put the weights under one of these words, beside step counts and optimizer states.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# What trainers keep beside them.
OF_TRAINERS = (
    *("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "lr_scheduler", "lr_schedulers", "scheduler"),
    *("scheduler_state_dict", "rng_state", "random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state"),
    *("rng_tracker_states", "scaler", "grad_scaler", "callbacks", "loops", "args", "opt_param_scheduler"),
)
MOST_ENTRIES = 100_000  # looked at for tensors, in one entry


class TorchFile:
    """One file of `torch.save`: `entries` by name; `read` maps a tensor.

    Files in torch's format of before 2020 (no zip archive) cannot be mapped and are held in memory while open.

    Attributes:
        beside: Entries that hold tensors in a further dictionary or list, which are not read, and why.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict[str, torch.Tensor] | None = None
        self.beside: dict[str, str] = {}
        self.entries = {
            name: StoredTensor(name, _shape(tensor), stored_dtype(tensor), _nbytes(tensor), path.name)
            for name, tensor in self._open().items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, of its own dtype, shape and strides, on the CPU, mapped from the file."""
        return self._open()[name]

    def close(self) -> None:
        self._tensors = None

    def _open(self) -> dict[str, torch.Tensor]:
        if self._tensors is None:
            self._tensors, self.beside = _tensors_of(self.path, load_torch_file(self.path))
        return self._tensors


def load_torch_file(path: Path, advice: str = "take a safetensors file instead") -> Any:
    """What `torch.save` wrote, by torch's restricted unpickler, on the CPU and, where it can be, mapped.

    Args:
        path: The file.
        advice: What to do where the file asks for more than tensors.

    Raises:
        CheckpointError: It is damaged, asks for more than tensors, or passes the bounds of `check_pickles`.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] not in (b"PK", b"\x80\x02"):
        raise CheckpointError(
            f"{path} is not a file of torch.save: it begins with neither a zip archive nor a pickle; fetch it again."
        )
    check_pickles(path)
    try:
        return torch.load(path, map_location="cpu", mmap=start[:2] == b"PK", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise CheckpointError(f"{path} is truncated: its pickle ends too early; fetch it again.") from error
        named = re.search(r"GLOBAL ([\w.]+\.\w+)|Unsupported (?:global|class)[: ]+`?([\w.]+\.\w+)", str(error))
        what = f" ({named[1] or named[2]})" if named else ""
        raise CheckpointError(
            f"{path} holds a pickle that asks for more than tensors{what}: it was refused and "
            f"nothing of it was run; {advice}."
        ) from error
    except Exception as error:  # cut at an unlucky byte, a pickle makes its reader fail in any way
        raise CheckpointError(
            f"{path} is truncated or damaged (torch says: {_first_sentence(error)}): fetch it again."
        ) from error


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape; of a nested tensor that of its pieces one under the other, so that it counts as a matrix."""
    if not tensor.is_nested:
        return tuple(tensor.shape)
    pieces = [tuple(piece.shape) for piece in tensor.unbind()]
    if any(len(piece) != 2 for piece in pieces):
        return (len(pieces), max((prod(piece) for piece in pieces), default=0))
    return sum(piece[0] for piece in pieces), max((piece[1] for piece in pieces), default=0)


def _nbytes(tensor: torch.Tensor) -> int:
    if tensor.is_nested or tensor.layout != torch.strided:
        return 0  # not read, so not counted
    return tensor.numel() * tensor.element_size()


def _first_sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:160]


def _tensors_of(path: Path, loaded: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a state dictionary by name, and its entries that are no tensors but hold some."""
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a dictionary of named tensors.")
    beside = {}
    for word in WRAPPERS:
        if isinstance(loaded.get(word), dict):
            beside = _with_tensors(
                {key: value for key, value in loaded.items() if key != word and key not in OF_TRAINERS}
            )
            loaded = loaded[word]
            break
    if is_own_file(loaded):
        loaded = flat(loaded)
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if loaded and not tensors:
        raise CheckpointError(f"{path} holds no tensors: its entries are {', '.join(map(str, list(loaded)[:8]))}.")
    inside = {key: value for key, value in loaded.items() if not isinstance(value, torch.Tensor)}
    return tensors, beside | _with_tensors(inside)


def _with_tensors(entries: dict[Any, Any]) -> dict[str, str]:
    """Entries that are tensors or hold some in a dictionary or list, at whatever depth, and why they are not read."""
    found = {}
    for key, value in entries.items():
        waiting, seen = [value], 0
        while waiting and seen < MOST_ENTRIES:
            item = waiting.pop()
            seen += 1
            if isinstance(item, torch.Tensor):
                found[str(key)] = "it stands beside the weights, in a part of the file that is not theirs"
                break
            waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else []
    return found
