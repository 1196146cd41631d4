"""The made checkpoint of full shape: spectra as planned, in every form, and the recorded figures found back."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from glmspectra.checkpoint import open_checkpoint, select

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/make_checkpoint.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded(shared):
    return json.loads((shared / "reference/chatglm2_6b_spectra.json").read_text())


def test_hartley_is_orthogonal_and_its_own_inverse(script):
    for size in (1, 2, 7, 12, 107):
        matrix = script.hartley(torch.eye(size, dtype=torch.float64))
        assert torch.allclose(matrix @ matrix, torch.eye(size, dtype=torch.float64), atol=1e-12)
        angle = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
        assert np.allclose(matrix.numpy(), (np.cos(angle) + np.sin(angle)) / np.sqrt(size))


@pytest.mark.parametrize("shape", [(96, 250), (250, 96), (64, 64), (101, 33)])
def test_a_made_matrix_has_its_spectrum_within_rounding(script, shape):
    sigma = np.sort(np.random.default_rng(0).uniform(0.1, 5, min(shape)))[::-1].copy()
    matrix = script.matrix_of(*shape, sigma, seed=3)
    assert (matrix.dtype, tuple(matrix.shape)) == (torch.float16, shape)
    found = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    # Weyl: no further off than the norm of the rounding error, entries of about |w| 2^-12 each at random.
    rounding = float(matrix.float().std()) * 2.0**-12 * (shape[0] ** 0.5 + shape[1] ** 0.5)
    assert np.abs(found - sigma).max() < 2 * rounding
    # Entries look Gaussian: neither axis nor diagonal stands out.
    scaled = matrix.double() / matrix.double().std()
    assert 2.5 < float((scaled**4).mean()) < 3.5
    assert not torch.equal(matrix, script.matrix_of(*shape, sigma, seed=4))
    assert torch.equal(matrix, script.matrix_of(*shape, sigma, seed=3))


def test_bulk_quantiles_are_those_of_noise(script):
    rows, columns = 900, 300
    noise = np.linalg.svd(np.random.default_rng(0).standard_normal((rows, columns)) / rows**0.5, compute_uv=False)
    assert np.abs(script.marchenko_pastur(rows, columns, columns) - noise).max() < 0.03


@pytest.mark.shared
def test_every_recorded_figure_is_planned(script, recorded):
    seen = 0
    for matrix, (rows, columns) in script.SHAPES.items():
        for layer in range(28):
            top = recorded["top20_singular_values"][layer][matrix]
            share = recorded["top12_share_of_singular_value_sum"][matrix][layer]
            sigma = script.spectrum(top, share, rows, columns)
            assert sigma.shape == (4096,)
            assert sigma[:20].tolist() == top
            assert sigma[:12].sum() / sigma.sum() == pytest.approx(share, rel=1e-12)
            assert (np.diff(sigma) <= 0).all()
            assert sigma[-1] > 0
            seen += 1
    assert seen == 112
    with pytest.raises(ValueError, match="no bulk under"):
        script.spectrum(top, 0.9, rows, columns)


def test_shards_are_cut_evenly_and_in_order(script):
    from glmspectra.checkpoint.writing.shards import Planned

    planned = [Planned(str(i), (size,), torch.uint8, size) for i, size in enumerate([10, 1, 9, 10, 5, 5])]
    groups = script.cut(planned, 4)
    assert [tensor for group in groups for tensor in group] == planned
    assert [sum(t.nbytes for t in group) for group in groups] == [10, 10, 10, 10]
    assert len(script.cut(planned, 100)) <= 6


@pytest.fixture
def small(script, monkeypatch):
    """The script at a size that takes no time."""
    sizes = {"hidden_size": 256, "ffn_hidden_size": 384, "padded_vocab_size": 128}
    sizes |= {"kv_channels": 64, "num_attention_heads": 4}
    monkeypatch.setattr(script, "CONFIG", script.CONFIG | sizes)
    shapes = zip(script.SHAPES, [(512, 256), (256, 256), (768, 256), (256, 384)], strict=True)
    monkeypatch.setattr(script, "SHAPES", dict(shapes))
    monkeypatch.setattr(script, "QKV_ROWS", 512)
    rng = np.random.default_rng(0)
    top = [{name: sorted(rng.uniform(3, 9, 20).tolist(), reverse=True) for name in script.SHAPES} for _ in range(2)]
    # The others lie at about a third of the 20th.
    shares = {
        name: [sum(layer[name][:12]) / (sum(layer[name]) + 236 * 0.33 * layer[name][-1]) for layer in top]
        for name in script.SHAPES
    }
    return {"top20_singular_values": top, "top12_share_of_singular_value_sum": shares}


@pytest.mark.parametrize(("form", "shards"), [("safetensors", 1), ("bin", 3)])
def test_a_small_one_is_a_checkpoint_that_computes(script, small, form, shards, tmp_path):
    from transformers import AutoModelForCausalLM

    import glmspectra.chatglm2  # noqa: F401

    script.make_checkpoint(tmp_path, small, 2, form, shards)
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.format, len(checkpoint.file_sizes)) == (form, shards)
        records = select(checkpoint)
        assert len(records) == 8
        for record in records:
            sigma = np.linalg.svd(checkpoint.read(record.name).double().numpy(), compute_uv=False)
            matrix = record.name.split(f"layers.{record.layer}.")[1].removesuffix(".weight")
            assert np.abs(sigma[:20] - small["top20_singular_values"][record.layer][matrix]).max() < 0.005
            share = small["top12_share_of_singular_value_sum"][matrix][record.layer]
            assert sigma[:12].sum() / sigma.sum() == pytest.approx(share, abs=1e-4)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16, output_loading_info=True)
    assert not report["missing_keys"]
    logits = model(torch.randint(3, 100, (1, 12))).logits
    assert torch.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(900)
def test_one_layer_of_full_shape_gives_the_recorded_values_back(script, recorded, tmp_path):
    """By float64 eigenvalues of the Gram matrix: one matrix in full (half a minute), all four in their norm."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # another thread would wait for the tests beside it
    command = [sys.executable, SCRIPT, "--layers", "1", "--out", tmp_path / "one", "--shards", "2", "--format", "bin"]
    subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.DEVNULL)
    with open_checkpoint(tmp_path / "one") as checkpoint:
        records = select(checkpoint)
        assert len(records) == 4
        for record in records:
            weight = checkpoint.read(record.name)
            matrix = record.name.split("layers.0.")[1].removesuffix(".weight")
            top = np.array(recorded["top20_singular_values"][0][matrix])
            share = recorded["top12_share_of_singular_value_sum"][matrix][0]
            planned = script.spectrum(top.tolist(), share, *weight.shape)
            norm = sum(float(piece.double().square().sum()) for piece in weight.split(2048)) ** 0.5
            assert norm == pytest.approx(np.linalg.norm(planned), rel=1e-5)
            if record.matrix == "query_key_value":
                gram = weight.double().t() @ weight.double()
                sigma = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0).numpy()
                assert np.abs(sigma - planned).max() < 1e-3
                assert np.abs(sigma[:20] - top).max() < 1e-4
                assert sigma[:12].sum() / sigma.sum() == pytest.approx(share, abs=1e-5)
            checkpoint.release(record.name)
        embedding, output = (r for r in select(checkpoint, matrices="all") if r.layer is None)
        assert embedding.shape == output.shape == (65024, 4096)
