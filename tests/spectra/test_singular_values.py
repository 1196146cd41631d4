import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmspectra.errors import RequestError
from glmspectra.spectra import blocks, singular_values, spectra_of
from tests.spectra.planted import planted, reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (64, 64), (1, 17), (17, 1), (1, 1), (300, 7)])
def test_agrees_with_a_float64_svd(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    spectrum = singular_values(weight)
    truth = reference(weight.double().numpy())
    assert spectrum.sigma.dtype == np.float64
    assert spectrum.complete
    np.testing.assert_allclose(spectrum.sigma, truth, rtol=1e-9, atol=1e-13 * truth[0])
    assert np.all(np.abs(spectrum.sigma - truth) <= spectrum.error_bound)
    assert spectrum.frobenius**2 == pytest.approx(np.sum(truth**2), rel=1e-13)


@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    decades=st.floats(0, 14),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-150, 1e-12, 1.0, 1e9, 1e160]),
)
@settings(max_examples=60, deadline=None)
def test_planted_values_are_found_within_their_bounds(rows, cols, decades, seed, scale):
    order = min(rows, cols)
    sigma = np.sort(10.0 ** -np.random.default_rng(seed).uniform(0, decades, order))[::-1]
    spectrum = singular_values(torch.from_numpy(planted(rows, cols, sigma, seed) * scale))
    # The planting itself is exact to a few roundings of the largest value.
    slack = 4e-15 * np.sqrt(order) * sigma[0]
    assert np.all(np.abs(spectrum.sigma / scale - sigma) <= spectrum.error_bound / scale + slack)
    limit = np.maximum(1e-4 * spectrum.sigma, 1e-10 * spectrum.sigma[0])
    assert np.all(spectrum.error_bound <= limit)


def test_a_float32_gram_matrix_is_wrong_where_ours_is_right():
    sigma = np.logspace(0, -4.5, 80)
    weight = torch.from_numpy(planted(80, 80, sigma)).float()
    truth = reference(weight.double().numpy())
    float32 = np.sqrt(np.maximum(np.linalg.eigvalsh((weight.T @ weight).numpy())[::-1], 0)).astype(float)
    assert np.max(np.abs(float32 - truth) / truth) > 0.5
    ours = singular_values(weight)
    assert np.max(np.abs(ours.sigma - truth) / truth) < 1e-5


def test_parts_come_from_the_same_read_as_the_whole():
    weight = torch.randn(74, 32, generator=torch.Generator().manual_seed(2)).half()
    parts = {"q": slice(0, 40), "k": slice(40, 44), "v": slice(44, 74), "q.head_0": slice(0, 8), "qk": slice(0, 44)}
    found = spectra_of(weight, parts)
    assert list(found) == ["whole", *parts]
    for name, rows in {"whole": slice(0, 74), **parts}.items():
        part = weight[rows].double().numpy()
        assert (found[name].rows, found[name].cols) == part.shape
        assert found[name].row_start == rows.start
        np.testing.assert_allclose(found[name].sigma, reference(part), rtol=1e-9)


def test_parts_of_a_wide_weight():
    weight = torch.randn(12, 50, generator=torch.Generator().manual_seed(3))
    found = spectra_of(weight, {"a": slice(0, 5), "b": slice(5, 12)})
    for name, rows in {"whole": slice(0, 12), "a": slice(0, 5), "b": slice(5, 12)}.items():
        np.testing.assert_allclose(found[name].sigma, reference(weight[rows].double().numpy()), rtol=1e-9)


@pytest.mark.parametrize("shape", [(61, 20), (20, 61)])
def test_streaming_in_small_blocks_changes_nothing(shape, monkeypatch):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    at_once = singular_values(weight)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 7 * 20 * 8)
    streamed = singular_values(weight)
    np.testing.assert_allclose(streamed.sigma, at_once.sigma, rtol=1e-13)


def test_the_weight_is_left_as_it_was_and_may_be_strided():
    base = torch.randn(80, 60, generator=torch.Generator().manual_seed(5))
    view = base.T[::2]
    before = base.clone()
    np.testing.assert_allclose(singular_values(view).sigma, reference(view.double().numpy()), rtol=1e-9)
    assert torch.equal(base, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["exact", "topk"])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_nan_or_inf_is_a_status_and_not_an_exception(bad, method, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    weight[9, 3] = bad
    found = spectra_of(weight, {"clean": slice(0, 6), "spoilt": slice(6, 12)}, method=method, k=3, vectors=2)
    assert found["whole"].status == found["spoilt"].status == "nonfinite"
    assert found["whole"].sigma.size == 0
    assert np.isnan(found["whole"].frobenius)
    assert found["clean"].status == "ok"
    np.testing.assert_allclose(found["clean"].sigma[:3], reference(weight[:6].double().numpy())[:3], rtol=1e-8)


def test_zeros_and_a_zero_row():
    assert singular_values(torch.zeros(5, 3)).sigma.tolist() == [0.0, 0.0, 0.0]
    weight = torch.eye(4)
    weight[2] = 0
    np.testing.assert_allclose(singular_values(weight).sigma, [1, 1, 1, 0], atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.zeros(3)}, "2-D floating-point weight"),
        ({"weight": torch.zeros(3, 3, dtype=torch.int8)}, "torch.int8"),
        ({"weight": torch.zeros(0, 3)}, "non-empty"),
        ({"weight": torch.zeros(3, 3), "parts": {"q": slice(0, 4)}}, "Part 'q' asks for rows"),
        ({"weight": torch.zeros(3, 3), "parts": {"q": slice(2, 2)}}, "3 rows"),
        ({"weight": torch.zeros(3, 3), "rtol": 0.0}, "rtol is 0.0"),
        ({"weight": torch.zeros(3, 3), "method": "lanczos"}, "choose exact or topk"),
        ({"weight": torch.zeros(3, 3), "method": "topk", "k": 0}, "at least 1"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(arguments, message):
    with pytest.raises(RequestError, match=message):
        spectra_of(**arguments)


@pytest.mark.gpu
def test_cuda_gives_the_same_values_within_the_bounds():
    weight = torch.randn(700, 256, generator=torch.Generator().manual_seed(7)).half()
    parts = {"q": slice(0, 400), "k": slice(400, 700)}
    on_cpu = spectra_of(weight, parts)
    on_cuda = spectra_of(weight, parts, device="cuda")
    for name, spectrum in on_cpu.items():
        allowed = spectrum.error_bound + on_cuda[name].error_bound
        assert np.all(np.abs(spectrum.sigma - on_cuda[name].sigma) <= allowed)


@pytest.mark.gpu
def test_cuda_refines_the_small_end():
    sigma = np.r_[np.linspace(1, 0.1, 250), [3e-6, 2e-6, 1e-12]]
    found = spectra_of(torch.from_numpy(planted(300, 253, sigma)), device="cuda")["whole"]
    assert found.method == "gram+refined"
    assert np.all(np.abs(found.sigma - sigma) <= found.error_bound + 1e-14)
