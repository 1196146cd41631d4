"""`.bin`, `.pt`, `.pth`.

Torch's own unpickler with its list of admitted types, mapped; no code of a file is ever run.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.formats.safetensors_file import dtype_name
from glmspectra.checkpoint.records import StoredTensor
from glmspectra.errors import CheckpointError

# Trainers put the weights under one of these words, beside step counts and optimiser states.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


class TorchFile:
    """One file of `torch.save`: `entries` by name; `read` maps a tensor.

    Files in torch's form of before 2020 (no zip archive) cannot be mapped and are held in memory while open.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict[str, torch.Tensor] | None = None
        self.entries = {
            name: StoredTensor(name, tuple(tensor.shape), dtype_name(tensor.dtype), tensor.nbytes, path.name)
            for name, tensor in self._open().items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, of its own dtype, shape and strides, on the CPU, mapped from the file."""
        return self._open()[name]

    def close(self) -> None:
        self._tensors = None

    def _open(self) -> dict[str, torch.Tensor]:
        if self._tensors is None:
            self._tensors = _tensors_of(self.path, _load(self.path))
        return self._tensors


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] not in (b"PK", b"\x80\x02"):
        raise CheckpointError(
            f"{path} is not a file of torch.save: it begins with neither a zip archive nor a pickle; fetch it again."
        )
    try:
        return torch.load(path, map_location="cpu", mmap=start[:2] == b"PK", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise CheckpointError(f"{path} is truncated: its pickle ends too early; fetch it again.") from error
        named = re.search(r"GLOBAL ([\w.]+\.\w+)|Unsupported (?:global|class)[: ]+`?([\w.]+\.\w+)", str(error))
        what = f" ({named[1] or named[2]})" if named else ""
        raise CheckpointError(
            f"{path} holds a pickle that asks for more than tensors{what}: it was refused and "
            "nothing of it was run; take the model's safetensors files instead."
        ) from error
    except Exception as error:  # cut at an unlucky byte, a pickle makes its reader fail in any way
        raise CheckpointError(
            f"{path} is truncated or damaged (torch says: {_first_sentence(error)}): fetch it again."
        ) from error


def _first_sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:160]


def _tensors_of(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a dictionary of named tensors.")
    for word in WRAPPERS:
        if isinstance(loaded.get(word), dict):
            loaded = loaded[word]
            break
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if loaded and not tensors:
        raise CheckpointError(f"{path} holds no tensors: its entries are {', '.join(map(str, list(loaded)[:8]))}.")
    return tensors
