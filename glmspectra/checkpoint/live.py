"""A model in memory as a checkpoint: the same names, records and reading, without a file."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.fingerprint import SAMPLE, STRIDE, WHOLE_UP_TO
from glmspectra.checkpoint.reader import Checkpoint
from glmspectra.checkpoint.records import FileRecord, StoredTensor
from glmspectra.device import dtype_name
from glmspectra.errors import RequestError

MEMORY = "memory"  # where the parameters lie, in place of a file's name


class LiveCheckpoint(Checkpoint):
    """The parameters of a torch module as they are now, offered as `Checkpoint` offers those of files.

    Tied parameters stand once, under their first name. Buffers are no parameters. Packed integers of a 4-bit or 8-bit
    base are no matrices and are not measured.

    Args:
        model: Its parameters are read, never written.
        name: What runs are called by; None: the name of the model's configuration, or its class.

    Raises:
        RequestError: There is no parameter, or one has no values here (meta device, sharded, sparse).
    """

    def __init__(self, model: torch.nn.Module, name: str | None = None):
        self._parameters = {key: value.detach() for key, value in model.named_parameters()}
        for key, value in self._parameters.items():
            _check(key, value)
        if not self._parameters:
            raise RequestError("the model has no parameters: there is nothing to measure.")
        config: Any = getattr(model, "config", None)
        own: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
        self.name = name or str(own.get("_name_or_path") or type(model).__name__).rstrip("/").rpartition("/")[2]
        self.path = self.folder = Path(self.name)
        self.format = "model"
        self._identities = {}
        stored = {
            key: StoredTensor(key, tuple(value.shape), dtype_name(value.dtype), value.nbytes, MEMORY)
            for key, value in self._parameters.items()
        }
        # How the parameters were stored where they were loaded from says nothing of how they lie in memory now.
        self._index(stored, {key: value for key, value in own.items() if key != "quantization_config"})

    def close(self) -> None:
        """Nothing to close: the model is the caller's."""

    @property
    def file_sizes(self) -> dict[str, int]:
        """Bytes of each parameter."""
        return {key: value.nbytes for key, value in self._parameters.items()}

    @cached_property
    def files(self) -> list[FileRecord]:
        """Each parameter in place of a file, with the fingerprint of its bytes (sampled over 64 MiB)."""
        return [FileRecord(key, value.nbytes, _fingerprint(value), 0) for key, value in self._parameters.items()]

    @property
    def beside_weights(self) -> dict[str, str]:
        """Nothing lies beside parameters."""
        return {}

    def check_unchanged(self, name: str | None = None) -> None:
        """A model in memory is its owner's; it has no identity that could be compared."""

    def release(self, name: str, expert: int | None = None) -> None:
        """Nothing to give back: the memory is the model's."""

    def _map(self, name: str, part: str, expert: int | None = None, count: int = 0) -> torch.Tensor:
        tensor = self._parameters[part]
        own = expert is not None and tensor.dim() in (1, 3, 4) and tensor.shape[0] == count
        return (tensor[expert] if own else tensor).cpu()


def _check(name: str, value: torch.Tensor) -> None:
    if value.is_meta:
        raise RequestError(f"parameter {name} is on the meta device and has no values: load the weights first.")
    if hasattr(value, "to_local") or value.layout is not torch.strided:
        raise RequestError(
            f"parameter {name} is sharded or sparse ({type(value).__name__}, {value.layout}): gather the model first, "
            "or measure the checkpoint that it was loaded from."
        )


def _fingerprint(value: torch.Tensor) -> str:
    """16 hex digits of the bytes of a parameter, sampled as those of a file are."""
    data = value.contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(str(data.numel()).encode())
    if data.numel() <= WHOLE_UP_TO:
        digest.update(data.cpu().numpy().data)
    else:
        for start in [*range(0, data.numel() - SAMPLE, STRIDE), data.numel() - SAMPLE]:
            digest.update(data[start : start + SAMPLE].cpu().numpy().data)
    return digest.hexdigest()[:16]
