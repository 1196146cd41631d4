"""Eigenvalues of a symmetric float64 matrix."""

from __future__ import annotations

import numpy as np
import torch

from glmspectra.spectra.spectrum import FloatArray


def symmetric_eigenvalues(matrix: torch.Tensor) -> FloatArray:
    """All eigenvalues, ascending, of a symmetric (n, n) float64 matrix, which is overwritten.

    On the CPU only the lower triangle is read.
    """
    if matrix.is_cuda:
        return torch.linalg.eigvalsh(matrix).cpu().numpy()
    return np.linalg.eigvalsh(matrix.numpy(), UPLO="L")
