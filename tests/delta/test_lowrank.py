"""Factor spectra against dense ones, and constructed cases whose answers are known."""

import numpy as np
import pytest
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra.lowrank import (
    adapter_similarity,
    amplification_factor,
    factor_noise_floor,
    factor_spectrum,
    numerical_rank,
    project,
    subspace_similarity,
)


def orthonormal(rows: int, cols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, cols, dtype=torch.float64, generator=generator))[0]


@pytest.mark.parametrize("shape", [(300, 200, 8), (200, 300, 8), (40, 12, 30), (12, 40, 30), (64, 64, 1)])
def test_factor_spectrum_equals_that_of_the_dense_product(shape):
    rows, cols, rank = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, cols, generator=generator)
    found = factor_spectrum(left, right, 0.37, vectors=True)
    dense = 0.37 * left.double() @ right.double()
    expected = torch.linalg.svdvals(dense)[: len(found.sigma)].numpy()
    np.testing.assert_allclose(found.sigma, expected, rtol=1e-9, atol=1e-12 * expected[0])
    assert np.all(np.abs(found.sigma - expected) <= 2 * found.error_bound + 1e-13 * expected[0])
    rebuilt = torch.from_numpy((found.vectors.left * found.sigma) @ found.vectors.right.T)
    assert float((rebuilt - dense).abs().max()) < 1e-11 * float(dense.abs().max())
    assert found.frobenius**2 == pytest.approx(float(dense.square().sum()), rel=1e-12)


def graded_factors(decades: float = 12.0, rank: int = 25):
    """Factors whose product has singular values from 1 down to 10^-decades."""
    sigma = torch.logspace(0, -decades, rank, dtype=torch.float64)
    u, v = orthonormal(400, rank, 1), orthonormal(300, rank, 2)
    return u * sigma.sqrt(), (v * sigma.sqrt()).T, sigma.numpy()


def gram_core(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """The cheap way: eigenvalues of (left^T left)(right right^T) by way of Gram square roots."""
    values, vectors = torch.linalg.eigh(left.T @ left)
    root = vectors * values.clamp_min(0).sqrt()
    core = root.T @ (right @ right.T) @ root
    return torch.linalg.eigvalsh(core).clamp_min(0).sqrt().flip(0).numpy()


def test_a_gram_core_is_wrong_in_the_tail_and_the_qr_core_is_not():
    left, right, sigma = graded_factors()
    tail = (sigma < 3e-8) & (sigma > 1e-10)
    wrong = np.abs(gram_core(left, right)[tail] / sigma[tail] - 1)
    assert wrong.max() > 0.1, "the negative control is to fail where the QR core does not"
    right_way = np.abs(factor_spectrum(left, right).sigma[tail] / sigma[tail] - 1)
    assert right_way.max() < 1e-4
    head = sigma > 1e-6
    assert np.abs(factor_spectrum(left, right).sigma[head] / sigma[head] - 1).max() < 1e-8


def test_planted_rank_three_in_factors_of_rank_sixteen_is_found_as_three():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        generator = torch.Generator().manual_seed(3)
        mixing = torch.randn(3, 16, dtype=torch.float64, generator=generator)
        left = (orthonormal(256, 3, 4) @ mixing).to(dtype)
        right = torch.randn(16, 192, dtype=torch.float64, generator=generator).to(dtype)
        found = factor_spectrum(left, right, 2.0)
        assert numerical_rank(found.sigma, 0.0) == 16, "stored factors do have rounding in every direction"
        assert numerical_rank(found.sigma, factor_noise_floor(left, right, 2.0)) == 3


def test_zero_factors_have_rank_zero():
    found = factor_spectrum(torch.zeros(10, 4), torch.randn(4, 8))
    assert numerical_rank(found.sigma, 0.0) == 0
    empty = factor_spectrum(torch.zeros(10, 0), torch.zeros(0, 8), vectors=True)
    assert empty.sigma.size == 0
    assert empty.vectors.left.shape == (10, 0)


def test_factors_that_do_not_multiply_or_are_not_finite_are_refused():
    with pytest.raises(RequestError, match="do not multiply"):
        factor_spectrum(torch.zeros(10, 4), torch.zeros(5, 8))
    with pytest.raises(RequestError, match="NaN or infinity"):
        factor_spectrum(torch.full((10, 4), float("nan")), torch.zeros(4, 8))


def test_subspace_similarity_of_known_subspaces():
    basis = torch.eye(10, dtype=torch.float64)
    same = subspace_similarity(basis[:, :4], basis[:, :4])
    np.testing.assert_allclose(same, 1.0)
    np.testing.assert_allclose(subspace_similarity(basis[:, :4], basis[:, 4:8]), 0.0)
    shifted = subspace_similarity(basis[:, :4], basis[:, 2:6])
    # first[:, :4] shares e2, e3 with second[:, :2]; phi(4, 4) = 2 / 4, phi(4, 2) = 2 / 2, phi(2, 2) = 0.
    assert (shifted[3, 3], shifted[3, 1], shifted[1, 1]) == (0.5, 1.0, 0.0)
    angle = 0.3
    turned = torch.zeros(10, 1, dtype=torch.float64)
    turned[0], turned[9] = np.cos(angle), np.sin(angle)
    assert subspace_similarity(basis[:, :1], turned)[0, 0] == pytest.approx(np.cos(angle) ** 2)


def test_amplification_of_a_direction_that_the_weight_holds():
    six, v = orthonormal(50, 6, 5), orthonormal(40, 5, 6)
    u = six[:, :5]
    weight = (u * torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5], dtype=torch.float64)) @ v.T
    delta = factor_spectrum(6.0 * u[:, 2:3], v[:, 2:3].T, vectors=True)
    assert amplification_factor(delta, weight) == pytest.approx(3.0)
    outside = factor_spectrum(six[:, 5:6], v[:, :1].T, vectors=True)
    assert amplification_factor(outside, weight) > 1e10
    torch.testing.assert_close(project(weight, u[:, :2], chunk=7), u[:, :2].T @ weight)


def test_similarity_of_two_adapters():
    u, v = orthonormal(60, 6, 7), orthonormal(50, 6, 8)
    sigma = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    first = factor_spectrum(u[:, :3] * sigma, v[:, :3].T, vectors=True)
    opposite = factor_spectrum(-u[:, :3] * sigma, 2 * v[:, :3].T, vectors=True)
    apart = factor_spectrum(u[:, 3:] * sigma, v[:, :3].T, vectors=True)
    assert adapter_similarity(first, opposite).cosine == pytest.approx(-1.0)
    found = adapter_similarity(first, apart)
    assert (found.cosine, found.left, found.right) == (pytest.approx(0), pytest.approx(0), pytest.approx(1))
    with pytest.raises(RequestError, match="different weights"):
        adapter_similarity(first, factor_spectrum(torch.ones(4, 1), torch.ones(1, 4), vectors=True))


def test_full_shape_of_the_published_model_in_a_second():
    generator = torch.Generator().manual_seed(9)
    left = torch.randn(27392, 64, generator=generator)
    right = torch.randn(64, 4096, generator=generator)
    found = factor_spectrum(left, right, 2.0)
    # tr((BA)^T BA) without the dense product.
    norm = 4 * float(((left.double().T @ left.double()) * (right.double() @ right.double().T)).sum())
    assert found.frobenius**2 == pytest.approx(norm, rel=1e-10)
