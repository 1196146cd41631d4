"""The int8 kernels of the package cpm-kernels, as a reference to agree with; never used for work.

cpm-kernels (OpenBMB, last released in 2021) is what the 2023 code of ChatGLM2 launched its own kernels through. It
holds int8 kernels of its own and none for int4, imports `pkg_resources` (gone from setuptools 82) and needs a GPU at
import.
"""

from typing import Any

import torch

from glmspectra.errors import MissingExtraError


def quantize_rows_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 (rows, columns) and fp16 scales (rows,) of an fp16 weight on CUDA, by cpm-kernels.

    Raises MissingExtraError where cpm-kernels cannot be imported.
    """
    gemm = _gemm()
    rows, columns = weight.shape
    weight = weight.contiguous()
    scale = torch.empty(rows, dtype=torch.float16, device=weight.device)
    values = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    with torch.cuda.device(weight.device):
        stream = torch.cuda.current_stream().cuda_stream
        gemm.gemm_calc_scale(1, rows, columns, weight.data_ptr(), scale.data_ptr(), stream)
        gemm.gemm_round(1, rows, columns, weight.data_ptr(), scale.data_ptr(), values.data_ptr(), stream)
    return values, scale


def available() -> bool:
    """Whether the reference runs here."""
    try:
        _gemm()
    except MissingExtraError:
        return False
    return True


def _gemm() -> Any:
    try:
        from cpm_kernels.kernels import gemm
    except Exception as error:  # without a GPU or pkg_resources it fails in several ways, RuntimeError among them
        raise MissingExtraError("cpm-kernels", "The int8 reference (on a GPU, with setuptools below 82)") from error
    return gemm
