"""What measuring one matrix costs: to share matrices out and to tell the time left."""

from collections.abc import Iterable

# How long an operation of the symmetric eigensolver, (4/3) n^3 of them, takes beside one of the Gram matrix: half of
# them are matrix-vector products, bound by memory. Measured: 3424 x 2048 on two CPU cores, Gram 0.16 s and eigenvalues
# 0.32 s; 27392 x 4096 on an H100, 0.017 s and 0.118 s.
EIGENSOLVER_WEIGHT = 5.0
EIGENSOLVER_WEIGHT_CUDA = 70.0

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
