"""What measuring one matrix costs.

To share matrices out, to tell the time left, and for `inspect` to say it beforehand.
"""

from collections.abc import Iterable

# A symmetric eigensolver spends half of its (4/3) n^3 operations in matrix-vector products, bound by memory:
# measured on two CPU
# cores, an operation of it takes as long as 5 of the Gram matrix's.
EIGENSOLVER_WEIGHT = 5.0

# Counting bit patterns, quantiles and fits of one value, in Gram operations: 0.4 s for 112 million values,
# measured likewise.
VALUE_WEIGHT = 600.0


def spectrum_cost(shapes: Iterable[tuple[int, int]]) -> float:
    """Operations (Gram-weighted) for the exact spectra of parts of the given (rows, cols)."""
    cost = 0.0
    for rows, cols in shapes:
        small, large = min(rows, cols), max(rows, cols)
        cost += 2.0 * large * small**2 + EIGENSOLVER_WEIGHT * 4 / 3 * small**3
    return cost


def value_cost(shapes: Iterable[tuple[int, int]]) -> float:
    """Operations (Gram-weighted) for the value distributions of parts of the given (rows, cols)."""
    return sum(VALUE_WEIGHT * rows * cols for rows, cols in shapes)
