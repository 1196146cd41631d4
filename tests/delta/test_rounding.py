"""The floor that stored half precision puts under a difference of two checkpoints."""

import numpy as np
import pytest
import torch

from glmspectra.spectra.rounding import rounding_floor, unit_in_last_place


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ulp_is_the_distance_to_the_next_number(dtype):
    values = torch.tensor([1.0, 1.5, 2.0, 0.02, -0.02, 3e-5, 1000.0], dtype=dtype)
    integer = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}[dtype]
    following = (values.view(integer) + 1).view(dtype)  # the next number away from 0
    torch.testing.assert_close(unit_in_last_place(values), (following.double() - values.double()).abs(), rtol=0, atol=0)


def merge(dtype: torch.dtype, size: float, side: int = 512, rank: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(side, side, generator=generator) * 0.02).to(dtype)
    delta = torch.randn(side, rank, generator=generator) @ torch.randn(rank, side, generator=generator)
    return base, (base.float() + delta / delta.std() * size).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5])
def test_what_stands_above_the_floor_is_the_planted_rank(dtype, size):
    base, tuned = merge(dtype, size)
    floor = rounding_floor(base, tuned)
    sigma = torch.linalg.svdvals(tuned.double() - base.double()).numpy()
    assert int(np.sum(sigma > floor.edge)) == 8
    assert sigma[8] <= floor.edge <= 1.5 * sigma[8], "an upper estimate, and not a loose one"
    assert floor.dtype == str(dtype).removeprefix("torch.")


def test_without_the_floor_the_effective_rank_is_many_times_too_high():
    base, tuned = merge(torch.bfloat16, 1e-5)
    sigma = torch.linalg.svdvals(tuned.double() - base.double()).numpy()

    def effective_rank(values):
        share = values / values.sum()
        return float(np.exp(-np.sum(share * np.log(share))))

    assert effective_rank(sigma[sigma > 0]) > 80
    assert effective_rank(sigma[sigma > rounding_floor(base, tuned).edge]) < 8.01


def test_a_base_of_another_type_is_off_the_grid_everywhere():
    base, _ = merge(torch.float16, 1e-4)
    tuned = base.to(torch.bfloat16)
    floor = rounding_floor(base, tuned)
    sigma = torch.linalg.svdvals(tuned.double() - base.double()).numpy()
    assert sigma[0] <= 1.04 * floor.edge, "a change of type alone is noise up to the edge's own fluctuation"
