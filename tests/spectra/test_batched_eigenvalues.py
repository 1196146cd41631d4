"""Spectra whose eigenvalues are computed together are those of each weight by itself."""

import numpy as np
import pytest
import torch

from glmspectra.spectra import SpectraBatch, spectra_of
from glmspectra.spectra.batched_eigenvalues import _solve, _solver, batch_limit, batched_eigenvalues
from glmspectra.spectra.bounds import backward_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def weights():
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in ((60, 40), (40, 60), (40, 40), (90, 40), (12, 30))]
    drawn[1][3, 4] = torch.nan
    drawn[2][:, 5] = drawn[2][:, 6]  # a singular matrix: its small end is refined
    drawn[3] = drawn[3].double() * 1e-120  # scaled before it is squared
    return [weight.to(DEVICE) for weight in drawn]


def test_a_batch_gives_the_spectra_of_each_weight_in_order():
    batch = SpectraBatch(rtol=1e-6, vectors=2)
    parts = {"top": slice(0, 10), "rest": slice(10, 12)}
    for weight in weights():
        batch.add(weight, parts)
    found = batch.spectra()
    assert batch.spectra() == []
    for weight, spectra in zip(weights(), found, strict=True):
        due = spectra_of(weight, parts, rtol=1e-6, vectors=2, device=DEVICE)
        assert list(spectra) == list(due) == ["whole", "top", "rest"]
        for name, spectrum in spectra.items():
            expected = due[name]
            assert (spectrum.status, spectrum.method, spectrum.rows, spectrum.cols, spectrum.row_start) == (
                expected.status, expected.method, expected.rows, expected.cols, expected.row_start
            )  # fmt: skip
            within = spectrum.error_bound + expected.error_bound
            assert (np.abs(spectrum.sigma - expected.sigma) <= within).all()
            assert spectrum.vectors is None or spectrum.vectors.left.shape == (spectrum.rows, 2)
    assert found[2]["whole"].method == "gram+refined"
    assert found[1]["whole"].status == "nonfinite"
    assert found[1]["rest"].status == "ok"


def test_a_processor_solves_one_at_a_time():
    assert batch_limit(4096, 1 << 27, torch.device("cpu")) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("order", [200, 2048])
def test_the_librarys_batch_agrees_with_the_plain_call(order):
    if _solver() is None:
        pytest.skip("nvmath-python is not installed")
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = torch.randn(5, order + 50, order, device="cuda", dtype=torch.float64, generator=generator)
    grams = [weight.T @ weight for weight in drawn]
    kept = [gram.clone() for gram in grams]
    found = _solve(tuple(grams))
    assert found is not None
    assert all(torch.equal(gram, before) for gram, before in zip(grams, kept, strict=True))
    for values, gram in zip(batched_eigenvalues(grams), grams, strict=True):
        due = torch.linalg.eigvalsh(gram).cpu().numpy()
        assert np.abs(values - due).max() <= backward_error(order + 50, order) * due[-1]


@pytest.mark.gpu
def test_a_batch_that_the_library_refuses_is_solved_one_by_one(monkeypatch):
    monkeypatch.setattr("glmspectra.spectra.batched_eigenvalues._solve", lambda matrices: None)
    gram = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64, device="cuda"))
    assert [list(values) for values in batched_eigenvalues([gram, 2 * gram])][1] == [2.0 * n for n in range(1, 9)]
