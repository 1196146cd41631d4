"""Which stored tensors make up one logical weight, and how it is dequantised."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glmspectra.checkpoint.records import StoredTensor

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Logical:
    """A tensor as a reader of the model means it.

    `components` are the stored tensors it is made of, its own name first; `dequantize` takes them by name and
    gives float32; None when the tensor is stored as it is.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    components: tuple[str, ...]
    quantization: str | None = None
    dequantize: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] | None = None

    @property
    def floating(self) -> bool:
        return self.dequantize is not None or self.dtype.startswith(("float", "bfloat"))


def assemble(stored: Mapping[str, StoredTensor], config: Mapping[str, Any], read: Read) -> dict[str, Logical]:
    """Group stored tensors into logical ones."""
    return {
        name: Logical(entry.shape, entry.dtype, entry.nbytes, entry.file, (name,))
        for name, entry in stored.items()
    }
