"""What measuring costs: operations and bytes, known beforehand, to share matrices out and to say the time left."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmspectra.checkpoint import TensorRecord
    from glmspectra.checkpoint.records import Split

# How long an operation of the symmetric eigensolver, (4/3) n^3 of them, takes beside one of the Gram matrix: half of
# them are matrix-vector products, bound by memory. Measured: 3424 x 2048 on two CPU cores, Gram 0.16 s and eigenvalues
# 0.32 s; 27392 x 4096 on an H100, 0.017 s and, in a batch, 0.065 s.
EIGENSOLVER_WEIGHT = 5.0
EIGENSOLVER_WEIGHT_CUDA = 39.0

# A value's share in counting, quantiles and norms, in Gram operations. Measured on two busy CPU cores: 37 ns a value
# where an operation of the Gram matrix took 0.07 ns.
VALUE_WEIGHT = 550.0


def spectrum_cost(shapes: Iterable[tuple[int, int]], device: str = "cpu") -> float:
    """Gram operations for the exact spectra of parts of the given (rows, cols) on 'cpu' or 'cuda:N'."""
    weight = EIGENSOLVER_WEIGHT if device == "cpu" else EIGENSOLVER_WEIGHT_CUDA
    cost = 0.0
    for rows, cols in shapes:
        small, large = min(rows, cols), max(rows, cols)
        cost += 2.0 * large * small**2 + weight * 4 / 3 * small**3
    return cost


def value_cost(shapes: Iterable[tuple[int, int]]) -> float:
    """Gram operations for the value distributions of parts of the given (rows, cols)."""
    return sum(VALUE_WEIGHT * rows * cols for rows, cols in shapes)


FLOAT64 = 8  # bytes
# On CUDA: the Gram matrix, the copy that the eigensolver overwrites, and cuSOLVER's workspace of about the same size.
GRAM_COPIES_CUDA = 3
# The same for one of a batch, as `spectra/batched_eigenvalues.py` has it, which loads torch; a test holds both.
WORKSPACE_CUDA = 4.0
# On a CPU LAPACK's one-stage solver works on a copy; from this order on the two stages work in place, beside panels of
# this width. As `spectra/eigenvalues.py` has it, which loads torch; a test holds both.
TWO_STAGE_FROM, BANDWIDTH = 3000, 64
PANELS = 16  # of (n, BANDWIDTH) in use at a time, with their products
# Rows are widened to float64 in blocks of this size (`spectra/blocks.py`).
ROW_BLOCK = 32 << 20


@dataclass(frozen=True)
class SelectionCost:
    """What `svd` over a selection reads, computes and holds.

    Attributes:
        matrices: of the selection; a stack of experts has one an expert.
        spectra: matrices and the parts of them that are asked for.
        nbytes: stored bytes to read.
        flops: floating point operations of the exact method, float64.
        memory: bytes beside the mapped file at the largest matrix, or the largest batch of them.
        largest: name of that matrix.
    """

    matrices: int
    spectra: int
    nbytes: int
    flops: int
    memory: int
    largest: str


def spectrum_flops(shapes: Iterable[tuple[int, int]]) -> int:
    """Operations of the exact method on matrices of (rows, cols): Gram matrix and reduction to tridiagonal form.

    2 m n^2 + 4/3 n^3 each, for n = min(rows, cols), m = max(rows, cols) (Golub & Van Loan, Matrix Computations, section
    8.3). Parts cost less than they say beside their whole, since blocks of the Gram matrix are shared.
    """
    sides = (sorted(shape) for shape in shapes)
    return sum(2 * m * n**2 + 4 * n**3 // 3 for n, m in sides)


def spectrum_memory(record: "TensorRecord", split: "Split" = "no", device: str = "cpu") -> int:
    """Bytes held beside the mapped file while one matrix is worked on, by its Gram matrix, on 'cpu' or 'cuda:N'.

    Measured on a CPU: 102 MiB at order 2048 (estimated 96), 121 and 142 at 3072 (128), 222 at 4096 (193). Where
    squaring has lost the small end of a spectrum, a QR factorization holds up to three matrices of the size of
    the Gram matrix instead.
    """
    rows, columns = record.rows, record.columns
    order = min(rows, columns)
    gram = FLOAT64 * order**2
    block = min(ROW_BLOCK, FLOAT64 * rows * columns)
    if device != "cpu":
        working = GRAM_COPIES_CUDA * gram + block
    elif order < TWO_STAGE_FROM:
        working = 2 * gram + block
    else:
        working = gram + FLOAT64 * PANELS * BANDWIDTH * order + block
    inner = [part.row_stop - part.row_start for part in record.inner_parts(split)]
    grams = sum(min(height, columns) ** 2 for height in inner)  # a part has its own while the whole's grows
    dequantized = rows * columns * 4 if record.quantization else 0
    return working + FLOAT64 * grams + dequantized


def batch_memory(records: Sequence["TensorRecord"], at_once: Callable[[int, int], int]) -> int:
    """Bytes on a CUDA device while one batch of these matrices is solved and the next one is made.

    A batch: weights and Gram matrices, and for those of one order at a time copies side by side and the solver's
    workspace; the next one: weights and Gram matrices. at_once: as of `selection_cost`. 0 where any is solved alone.
    """
    counts: dict[int, int] = {}
    batches, held = 0.0, 0.0
    for record in records:
        count, order = max(1, record.experts), min(record.rows, record.columns)
        limit = at_once(order, record.nbytes // count)
        if limit == 1:
            return 0
        batches += count / limit
        held += count * FLOAT64 * order**2 + record.nbytes
        counts[order] = counts.get(order, 0) + count
    number = max(1, math.ceil(batches))
    solving = max(math.ceil(count / number) * FLOAT64 * order**2 for order, count in counts.items())
    return int(solving * (1 + WORKSPACE_CUDA) + held / number * (2 if number > 1 else 1))


def selection_cost(
    records: Iterable["TensorRecord"],
    split: "Split" = "no",
    device: str = "cpu",
    at_once: Callable[[int, int], int] = lambda order, nbytes: 1,
) -> SelectionCost:
    """Add up what the exact spectra of these matrices cost on a device; one that cannot be read costs nothing.

    at_once: how many matrices of an order and of so many bytes are solved together there; 1 on a CPU.
    """
    records = [record for record in records if record.fault is None]
    shapes = [(part.row_stop - part.row_start, r.columns) for r in records for part in r.parts(split)]
    memory = {record.name: spectrum_memory(record, split, device) for record in records}
    largest = max(memory, key=lambda name: memory[name], default="")
    return SelectionCost(
        matrices=sum(max(1, record.experts) for record in records),
        spectra=len(shapes),
        nbytes=sum(record.nbytes for record in records),
        flops=spectrum_flops(shapes),
        memory=max(memory.get(largest, 0), batch_memory(records, at_once) if records else 0),
        largest=largest,
    )
