"""What is in a checkpoint, kind by kind, and what taking its spectra will cost; from headers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from glmspectra.checkpoint.records import TensorRecord

FLOAT64 = 8  # bytes
# The Gram matrix, the copy that the eigensolver overwrites, and its workspace of about the same size
# (LAPACK's syevd without vectors needs less; cuSOLVER's about as much).
GRAM_COPIES = 3
# Rows are widened to float64 in blocks: 64 MiB and a copy.
ROW_BLOCKS = 128 << 20


@dataclass(frozen=True)
class TensorKind:
    """All tensors of one short name, shape and dtype.

    Attributes:
        layers: as `select` takes them (`0-27`); empty outside the layers.
        parameters: numbers in all of them, as the model means them (two to a byte in int4).
        nbytes: stored bytes of all of them, scales included.
        flops: of the exact spectra of all of them; 0 for what is no matrix.
    """

    matrix: str
    layers: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    quantization: str | None
    parameters: int
    nbytes: int
    flops: int


@dataclass(frozen=True)
class SpectrumCost:
    """What `svd` over a selection reads, computes and holds.

    Attributes:
        spectra: matrices and the parts of them that are asked for.
        nbytes: stored bytes to read.
        flops: floating point operations of the exact method, float64.
        memory: bytes beside the mapped file at the largest matrix.
        largest: name of that matrix.
    """

    matrices: int
    spectra: int
    nbytes: int
    flops: int
    memory: int
    largest: str


def spectrum_flops(rows: int, columns: int) -> int:
    """Operations of the exact method: the Gram matrix of the smaller side, and its reduction to tridiagonal
    form.

    2 m n^2 + 4/3 n^3 for n = min(rows, columns), m = max(rows, columns) (Golub & Van Loan, Matrix
    Computations, section 8.3). Parts cost less than they say beside their whole, since blocks of the Gram
    matrix are shared.
    """
    n, m = sorted((rows, columns))
    return 2 * m * n**2 + 4 * n**3 // 3


def spectrum_memory(record: TensorRecord, split: bool | str = False) -> int:
    """Bytes held beside the mapped file while one matrix is worked on; an estimate from above."""
    rows, columns = record.shape
    smaller = max(min(part.row_stop - part.row_start, columns) for part in record.parts(split))
    # A part has its own Gram matrix while the whole's grows.
    grams = sum(min(part.row_stop - part.row_start, columns) ** 2 for part in record.parts(split)[1:])
    dequantised = rows * columns * 4 if record.quantization else 0
    block = min(ROW_BLOCKS, 2 * rows * columns * FLOAT64)
    return GRAM_COPIES * FLOAT64 * smaller**2 + FLOAT64 * grams + dequantised + block


def spectrum_cost(records: Iterable[TensorRecord], split: bool | str = False) -> SpectrumCost:
    """Add up what the exact spectra of these matrices cost."""
    records = list(records)
    parts = [(part.row_stop - part.row_start, r.shape[1]) for r in records for part in r.parts(split)]
    memory = {record.name: spectrum_memory(record, split) for record in records}
    largest = max(memory, key=lambda name: memory[name], default="")
    return SpectrumCost(
        matrices=len(records),
        spectra=len(parts),
        nbytes=sum(record.nbytes for record in records),
        flops=sum(spectrum_flops(*shape) for shape in parts),
        memory=memory.get(largest, 0),
        largest=largest,
    )


def kinds(records: Iterable[TensorRecord]) -> list[TensorKind]:
    """Group tensors by short name, shape and dtype, in order of first depth."""
    groups: dict[tuple, list[TensorRecord]] = {}
    for record in records:
        key = (record.matrix, record.shape, record.dtype, record.quantization, record.layer is None)
        groups.setdefault(key, []).append(record)
    return [
        TensorKind(
            matrix=matrix,
            layers=layer_ranges(record.layer for record in group if record.layer is not None),
            count=len(group),
            shape=shape,
            dtype=dtype,
            quantization=quantization,
            parameters=len(group) * prod(shape),
            nbytes=sum(record.nbytes for record in group),
            flops=sum(spectrum_flops(*shape) for record in group if record.is_matrix),
        )
        for (matrix, shape, dtype, quantization, _), group in groups.items()
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
