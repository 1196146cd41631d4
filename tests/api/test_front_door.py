"""`import glmspectra as gs`: light, and every function as the command of its name."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import AutoModelForCausalLM

import glmspectra as gs
import glmspectra.chatglm2
from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.errors import RequestError

MATRICES = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(-10, 10, width=32)
)


@pytest.fixture(scope="module")
def run():
    return gs.svd("nano", layers="0,1")


def test_the_import_brings_none_of_the_heavy_packages():
    heavy = "torch", "numpy", "pandas", "transformers", "matplotlib", "scipy", "pydantic", "typer"
    code = f"import sys, glmspectra as gs; gs.__version__; dir(gs); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_offered_says_what_is():
    with pytest.raises(AttributeError, match="it offers spectrum, svd"):
        _ = gs.spectra_of_everything
    assert set(gs.__all__) <= set(dir(gs))
    for name in gs.__all__:
        assert getattr(gs, name) is not None


@given(MATRICES)
@settings(deadline=None, max_examples=40)
def test_a_spectrum_is_numpys_within_its_own_bounds(matrix):
    found = gs.spectrum(matrix, device="cpu")
    reference = np.linalg.svd(matrix, compute_uv=False)
    assert found.sigma.shape == reference.shape
    assert np.all(np.abs(found.sigma - reference) <= found.error_bound + 1e-12 * (1 + reference[0]))


def test_a_planted_spectrum():
    generator = np.random.default_rng(7)
    noise = generator.standard_normal((300, 200)) * 0.02
    left = np.linalg.qr(generator.standard_normal((300, 3)))[0]
    right = np.linalg.qr(generator.standard_normal((200, 3)))[0]
    planted = noise + left @ np.diag([5.0, 4.0, 3.0]) @ right.T
    found = gs.spectrum(torch.tensor(planted), vectors=3)
    assert found.measures["mp_spikes"] == 3
    assert np.allclose(np.abs(left.T @ found.left).max(axis=0), 1, atol=0.01)
    assert "stable_rank" in found._repr_html_()


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((0, 3)), np.ones((2, 2), dtype=int), [[1.0, np.nan]]])
def test_what_has_no_spectrum_is_refused(wrong):
    with pytest.raises(RequestError):
        gs.spectrum(wrong)


def test_a_run_is_shown_in_a_line_and_in_a_notebook_as_medians(run):
    assert repr(run).startswith(f"<Run {run.name}: rows of matrices: ")
    assert len(repr(run)) < 200
    dense = run.matrices[(run.matrices["matrix"] == "dense") & (run.matrices["part"] == "whole")]
    shown = run._repr_html_()
    assert shown.startswith("<p>&lt;Run ")
    assert f"<td>{dense['stable_rank'].median():.4g}</td>" in shown


def test_a_live_model_has_the_spectra_of_its_files(run, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.named_parameters()}
    live = gs.svd(model, layers="0,1", out=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters()), "nothing is written"
    pairs = run.singular_values.merge(live.singular_values, on=["name", "part", "index"])
    assert len(pairs) == len(run.singular_values) == len(live.singular_values)
    assert np.allclose(pairs["sigma_x"], pairs["sigma_y"], rtol=1e-6)
    with torch.no_grad():
        model.transformer.encoder.layers[0].mlp.dense_4h_to_h.weight.mul_(2)
    again = gs.svd(model, layers="0,1", out=tmp_path)
    assert again.folder != live.folder, "changed weights are another run"
    doubled = again.matrices.set_index("name")["spectral_norm"] / live.matrices.set_index("name")["spectral_norm"]
    assert doubled.round(6).value_counts().to_dict() == {1.0: 7, 2.0: 1}


def test_a_live_model_without_values_is_refused():
    with torch.device("meta"):
        hollow = torch.nn.Linear(4, 4)
    with pytest.raises(RequestError, match="meta device"):
        gs.svd(hollow)
    with pytest.raises(RequestError, match="no parameters"):
        gs.svd(torch.nn.ReLU())


def test_every_table_names_its_checkpoint_so_that_two_models_concatenate(run):
    other = gs.values(torch.nn.Sequential(torch.nn.Linear(6, 5)), matrices="all")
    for table in ("matrices", "singular_values", "histograms"):
        both = pd.concat([getattr(run, table), getattr(other, table)])
        expected = {"nano"} if table == "singular_values" else {"nano", "Sequential"}
        assert set(both["checkpoint"]) == expected, table


def test_figures_show_what_the_tables_hold(run):
    figure = gs.plot_map(run, "stable_rank")
    drawn = {text.get_text() for axis in figure.axes for text in axis.get_yticklabels()}
    assert set(run.matrices["matrix"]) <= drawn
    assert gs.plot_depth(run, "effective_rank").axes[0].lines
    spectrum = gs.plot_spectrum(run, 1, "dense")
    sigma = run.singular_values.query("layer == 1 and matrix == 'dense'")["sigma"]
    tops = [np.max(line.get_ydata()) for axis in spectrum.axes for line in axis.lines if len(line.get_ydata())]
    assert any(np.isclose(top, sigma.max()) for top in tops)
    with pytest.raises(RequestError, match="no singular values of layer 7"):
        gs.plot_spectrum(run, 7)


def test_compare_matches_layers_by_relative_depth(run):
    whole = gs.svd("nano")
    table = gs.compare(whole, run, "stable_rank")
    assert len(table) == len(whole.matrices)
    first = table[table["depth"] == 0]
    assert np.allclose(first["difference"], 0)
    with pytest.raises(RequestError, match="no numeric column"):
        gs.compare(whole, run, "name")


def test_ranks_under_a_budget_and_the_file_that_train_takes(run, tmp_path):
    whole = gs.svd("nano")
    found = gs.suggest_ranks(whole, budget="like:r=4", criterion="effective-rank")
    cost = (found.table["rank"] * (found.table["rows"] + found.table["cols"])).sum()
    uniform = (found.table["uniform"] * (found.table["rows"] + found.table["cols"])).sum()
    assert cost == found.parameters <= uniform
    assert set(found.table["checkpoint"]) == {"nano"}
    from glmspectra.tuning.settings.load import load_settings
    from glmspectra.tuning.settings.presets import write_presets

    write_presets(tmp_path)
    settings = load_settings(tmp_path / "args_file", [], found.write(tmp_path / "ranks.json"))
    assert sorted(settings.lora.rank_pattern.values()) == sorted(rank for rank in found.table["rank"] if rank)


def test_train_merge_and_talk(tmp_path, monkeypatch):
    from glmspectra.tuning.settings.presets import write_presets

    monkeypatch.chdir(tmp_path)
    write_presets(tmp_path)
    result = gs.train("args_file", ["train.max_steps=1", 'train.eval_strategy="no"'], device="cpu")
    assert result["steps"] == 1
    change = gs.delta(result["adapter"])
    assert set(change.matrices["quantity"]) == {"delta"}
    assert (change.matrices["rank"] <= change.matrices["allotted_rank"]).all()
    merged = gs.merge(result["adapter"], tmp_path / "merged")
    assert merged.changed
    model, tokenizer = gs.load_model(tmp_path / "merged", device="cpu")
    with_adapter, _ = gs.load_model("nano", result["adapter"], device="cpu")
    ids = tokenizer("头晕怎么办？", return_tensors="pt")["input_ids"]
    assert torch.allclose(model(ids).logits, with_adapter(ids).logits, atol=5e-3), "the merged weights are float16"
