"""`benchmarks/real_model.py` on nano: against a reference made of its own weights, then of others'."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import real_model

from glmspectra.checkpoint import open_checkpoint
from glmspectra.embedded import EMBEDDED_MODEL

MATRICES = (
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)


@pytest.fixture
def reference(tmp_path):
    """In the form of the published one, by LAPACK in float64, rounded as figures are read."""
    layers, shares = [], {name: [] for name in MATRICES}
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        for layer in range(8):
            top = {"layer": layer}
            for name in MATRICES:
                weight = checkpoint.read(f"transformer.encoder.layers.{layer}.{name}.weight")
                sigma = torch.linalg.svdvals(weight.double())
                top[name] = [round(float(s), 4) for s in sigma[:20]]
                shares[name].append(round(float(sigma[:12].sum() / sigma.sum()), 6))
            layers.append(top)
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"top20_singular_values": layers, real_model.SHARE: shares}))
    return path


def run(capsys, *arguments):
    status = real_model.main([str(EMBEDDED_MODEL), *map(str, arguments), "--device", "cpu"])
    return status, capsys.readouterr().out


def test_spectra_are_as_in_the_reference_and_a_shifted_value_is_found(reference, tmp_path, capsys):
    own = ("--reference", reference, "--only", "spectra", "--out", tmp_path, "--json")
    status, out = run(capsys, *own)
    found = json.loads(out)["spectra"]
    assert (status, found["matrices"], found["values"]) == (0, 32, 640)
    assert 0 < found["sigma"] <= 5.1e-5
    assert found["share"] <= 1e-6
    kept = json.loads(reference.read_text())
    kept["top20_singular_values"][3]["mlp.dense_h_to_4h"][7] += 0.01
    reference.write_text(json.dumps(kept))
    status, out = run(capsys, *own)
    found = json.loads(out)["spectra"]
    assert status == 1
    assert found["sigma_at"] == "layer 3 dense_h_to_4h"
    assert found["sigma"] == pytest.approx(0.01, abs=1e-4)


def test_it_talks_and_takes_the_loss_that_evaluate_takes(tmp_path, capsys):
    rows = tmp_path / "valid.jsonl"
    rows.write_text("".join(json.dumps({"context": f"question {n}?", "target": "an answer."}) + "\n" for n in range(3)))
    asked = ("--only", "chat", "--only", "loss", "--valid", rows, "--question", "hello", "--max-new-tokens", 5)
    status, out = run(capsys, *asked, "--json")
    found = json.loads(out)
    assert status == 0
    assert [one["question"] for one in found["chat"]] == ["hello"]
    assert 1 <= found["chat"][0]["tokens"] <= 5
    assert found["loss"]["rows"] == 3
    assert 0 < found["loss"]["loss"] < 20
    assert found["loss"]["perplexity"] == pytest.approx(2.718281828 ** found["loss"]["loss"], rel=1e-5)


def test_what_is_missing_is_said_before_any_work(tmp_path, capsys):
    for arguments, words in (
        (("--reference", tmp_path / "none.json"), "there is no reference"),
        (("--only", "loss"), "--valid FILE.jsonl"),
    ):
        with pytest.raises(SystemExit):
            run(capsys, *arguments)
        assert words in capsys.readouterr().err


def test_a_reference_of_another_model_is_refused(tmp_path, capsys):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"top20_singular_values": [{"layer": 90, "a.dense": [1.0]}]}))
    with pytest.raises(SystemExit, match="no matrix of the same layer and type"):
        run(capsys, "--reference", path, "--only", "spectra", "--layers", "0", "--out", tmp_path)
