"""Eigenvalues of many symmetric matrices of one size at once on a CUDA device.

torch.linalg.eigvalsh solves matrices of this size one after the other (it loops above order 32), and one matrix of
order 4096 keeps a small part of an H100 busy. cuSOLVER's cusolverDnXsyevBatched, since CUDA 12.6, works on all of a
batch together: on one H100 0.065 s a matrix of order 4096 in batches of 28 where torch takes 0.118 s. It is called
through nvmath-python, NVIDIA's own bindings; without them (`pip install nvmath-python`), or where the library is
older, torch's plain call stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from glmspectra.spectra.eigenvalues import symmetric_eigenvalues
from glmspectra.spectra.spectrum import FloatArray

# cudaDataType_t's CUDA_R_64F, which both the matrices and the eigenvalues are.
CUDA_R_64F = 1
# Beyond this a batch gains next to nothing and delays the matrices at its front (0.073 s a matrix in 16, 0.065 in 28).
LARGEST_BATCH = 32
# Bytes of workspace for one of a matrix, as cuSOLVER 12.0 asks for them.
WORKSPACE_RATIO = 4.0
# cusolverDnXsyevBatched came with cuSOLVER 11.7.1 (CUDA 12.6 update 2).
OLDEST_CUSOLVER = 11701
# Of the free memory that batches may take.
_FREE_SHARE = 0.6
# Device -> matrices and order of the batch solved there last.
_last_batch: dict[torch.device, tuple[int, int]] = {}


def batch_limit(order: int, weight_bytes: int, device: torch.device) -> int:
    """How many matrices of `order`, each with its weight of `weight_bytes`, may be on the device for one batch.

    1 where there are no batches: on a CPU, or without the bindings.
    """
    if device.type != "cuda" or _solver() is None:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    gram = 8 * order * order
    # Two batches at a time: one is solved (copied side by side, with its workspace) while the next one's are made.
    each = 2 * (gram + weight_bytes) + gram * (1 + WORKSPACE_RATIO)
    return max(1, min(LARGEST_BATCH, int(_FREE_SHARE * free / each)))


def batched_eigenvalues(matrices: Sequence[torch.Tensor]) -> list[FloatArray]:
    """All eigenvalues, ascending, of each symmetric (n, n) float64 matrix, all of one size on one device.

    Where the library refuses the batch (for want of memory, say) or does not converge on one of it, they are solved one
    by one.
    """
    if matrices[0].is_cuda and len(matrices) > 1 and _solver() is not None:
        found = _solve(tuple(matrices))
        if found is not None:
            return list(found.cpu().numpy())
        torch.cuda.empty_cache()
    return [symmetric_eigenvalues(matrix) for matrix in matrices]


def _solve(matrices: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """Eigenvalues (count, n), ascending, of `count` matrices (n, n); None where the library did not find them all."""
    solver, failures = _solver()  # type: ignore[misc]
    count, n, device = len(matrices), matrices[0].shape[0], matrices[0].device
    with torch.cuda.device(device):
        handle, params = solver.create(), solver.create_params()
        try:
            _let_go_of_other_sizes(device, count, n)
            stacked = torch.stack(matrices)
            found = stacked.new_empty(count, n)
            info = torch.zeros(count, dtype=torch.int32, device=device)
            solver.set_stream(handle, torch.cuda.current_stream(device).cuda_stream)
            values_only, lower = 0, 0
            problem = (
                handle, params, values_only, lower, n, CUDA_R_64F, stacked.data_ptr(), n,
                CUDA_R_64F, found.data_ptr(), CUDA_R_64F,
            )  # fmt: skip
            on_device, on_host = solver.xsyev_batched_buffer_size(*problem, count)
            workspace = torch.empty(max(1, on_device), dtype=torch.uint8, device=device)
            host = torch.empty(max(1, on_host), dtype=torch.uint8)
            solver.xsyev_batched(
                *problem, workspace.data_ptr(), on_device, host.data_ptr(), on_host, info.data_ptr(), count
            )
            return None if bool(info.any()) else found  # which waits for the stream
        except (*failures, torch.OutOfMemoryError):
            return None
        finally:
            solver.destroy_params(params)
            solver.destroy(handle)


def _let_go_of_other_sizes(device: torch.device, count: int, n: int) -> None:
    """Give back what torch keeps of the last batch's workspace where this one's differs: it would fit nothing."""
    if _last_batch.get(device, (count, n)) != (count, n):
        torch.cuda.empty_cache()
    _last_batch[device] = count, n


@cache
def _solver() -> tuple[Any, tuple[type[Exception], ...]] | None:
    """Bindings of cuSOLVER by nvmath and their errors; None without the batched call, there or in the library."""
    try:
        from nvmath.bindings import cusolver, cusolverDn
    except ImportError:
        return None
    try:
        version = int(cusolver.get_version())
    except RuntimeError:  # nvmath's NotSupportedError: no driver, no library
        return None
    failures = (cusolver.cuSOLVERError, RuntimeError)
    return (cusolverDn, failures) if hasattr(cusolverDn, "xsyev_batched") and version >= OLDEST_CUSOLVER else None
