"""A weight as the model means it, and the stored tensors that a format makes it of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from glmspectra.checkpoint.records import StoredTensor

if TYPE_CHECKING:
    import torch

Read = Callable[[str], "torch.Tensor"]
Tensors = Mapping[str, "torch.Tensor"]
Dequantize = Callable[[Tensors], "torch.Tensor"]
Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Logical:
    """A tensor as a reader of the model means it.

    Attributes:
        shape: of the weight; three dimensions for a stack of experts.
        dtype: as stored, by torch's name.
        nbytes: stored bytes of all components.
        components: the stored tensors it is made of.
        quantization: name of the quantized format; None when it is stored as it is.
        dequantize: gives float32 from the components by name; of a stack, from those of one expert.
        fault: why it cannot be read, in words that finish "... cannot be read: "; None when it can.
        undivided: whether `dequantize` needs a tensor of three dimensions whole, not one expert (or output) of it.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    components: tuple[str, ...]
    quantization: str | None = None
    dequantize: Dequantize | None = None
    fault: str | None = None
    undivided: bool = False

    @property
    def floating(self) -> bool:
        return self.dequantize is not None or self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True)
class Files:
    """What a format recognizes a weight by.

    Attributes:
        stored: all tensors of the checkpoint by name, from the headers.
        config: config.json as a dictionary.
        method: `quant_method` of its quantization_config; None without one.
        settings: the validated quantization_config; None without one.
        read: reads a stored tensor; to be called for tensors of a few hundred bytes only.
        metadata: what the headers of the files say beside the tensors.
    """

    stored: Mapping[str, StoredTensor]
    config: Mapping[str, object]
    method: str | None
    settings: BaseModel | None
    read: Read
    metadata: Mapping[str, str]

    def settings_of(self, model: type[Settings]) -> Settings | None:
        """The settings, when they are those of this format."""
        return self.settings if isinstance(self.settings, model) else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a stored tensor; None when there is none of that name."""
        entry = self.stored.get(name)
        return None if entry is None else entry.shape

    def numbers(self, name: str, most: int = 16) -> list[float]:
        """Numbers that are stored as a small tensor; none of one that is larger, or holds NaN or infinity."""
        entry = self.stored[name]
        if math.prod(entry.shape) > most or not entry.dtype.startswith(("int", "uint", "float", "bfloat")):
            return []
        found = [float(number) for number in self.read(name).reshape(-1).tolist()]
        return found if all(math.isfinite(number) for number in found) else []

    def number(self, name: str) -> float:
        """A number that is stored as a tensor of one element; -1 where there is no such one."""
        found = self.numbers(name)
        return found[0] if len(found) == 1 else -1

    def weight(
        self,
        shape: tuple[int, ...],
        quantization: str,
        components: Sequence[str],
        dequantize: Dequantize | None = None,
        fault: str | None = None,
    ) -> Logical:
        """A quantized weight; its first component gives the dtype and the file."""
        first = self.stored[components[0]]
        nbytes = sum(self.stored[part].nbytes for part in components)
        return Logical(shape, first.dtype, nbytes, first.file, tuple(components), quantization, dequantize, fault)


def unlike(quantization: str, files: Files, *names: str) -> str:
    """The fault of a weight whose parts have shapes that the format does not have."""
    shapes = ", ".join(
        f"{name.rpartition('.')[2]} {list(files.stored[name].shape)} {files.stored[name].dtype}"
        for name in names
        if name in files.stored
    )
    return f"its parts do not belong together as {quantization} ({shapes}); save or fetch the model again"
