"""What is in a checkpoint, tensors alike in one group; from headers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from glmspectra.checkpoint.records import TensorRecord


@dataclass(frozen=True)
class TensorGroup:
    """All tensors of one short name, shape and dtype.

    Attributes:
        layers: as `select` takes them (`0-27`); empty outside the layers.
        parameters: numbers in all of them, as the model means them (two to a byte in int4).
        nbytes: stored bytes of all of them, scales included.
        sides: rows and columns of each matrix in all of them (experts one by one); empty for what is no matrix.
    """

    matrix: str
    layers: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    quantization: str | None
    parameters: int
    nbytes: int
    sides: tuple[tuple[int, int], ...]


def tensor_groups(records: Iterable[TensorRecord]) -> list[TensorGroup]:
    """Group tensors by short name, shape and dtype, in order of first depth."""
    groups: dict[tuple[Any, ...], list[TensorRecord]] = {}
    for record in records:
        key = (
            record.matrix,
            record.shape,
            record.dtype,
            record.quantization,
            record.layer is None,
            record.fault is None,
        )
        groups.setdefault(key, []).append(record)
    return [
        TensorGroup(
            matrix=matrix,
            layers=layer_ranges(record.layer for record in group if record.layer is not None),
            count=len(group),
            shape=shape,
            dtype=dtype,
            quantization=quantization,
            parameters=len(group) * prod(shape),
            nbytes=sum(record.nbytes for record in group),
            sides=tuple(
                (record.rows, record.columns)
                for record in group
                if record.is_matrix and record.fault is None
                for _ in record.matrix_parts
            ),
        )
        for (matrix, shape, dtype, quantization, *_), group in groups.items()
    ]


def layer_ranges(layers: Iterable[int]) -> str:
    """Numbers as ranges: 0, 1, 2, 5 -> `0-2,5`."""
    ranges: list[list[int]] = []
    for layer in sorted(set(layers)):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
