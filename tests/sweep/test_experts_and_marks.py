"""Experts one by one, convolutions as matrices, what cannot be read as a row that says so, what is left out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.selection import left_out, left_out_sentence
from glmspectra.cli.main import main
from glmspectra.store import RunStore, read_run
from glmspectra.sweep import SweepOptions, source_of, sweep
from glmspectra.sweep.delta import measure_delta
from glmspectra.sweep.delta_plan import DeltaOptions, plan_delta
from tests.sweep.small_checkpoint import write_small_checkpoint

EXPERTS, WIDE, HIDDEN = 3, 24, 32
GATE_UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
CONVOLUTION = "model.layers.0.conv.weight"
CONFIG = {"model_type": "mixtral", "hidden_size": HIDDEN, "num_attention_heads": 4}


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        GATE_UP: (EXPERTS, 2 * WIDE, HIDDEN),
        DOWN: (EXPERTS, HIDDEN, WIDE),
        f"{GATE_UP}_bias": (EXPERTS, 2 * WIDE),
        CONVOLUTION: (16, 4, 3, 3),
        "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.pos_embed": (1, 7, HIDDEN),
        "model.layers.0.empty.weight": (0, HIDDEN),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder, stored, config=CONFIG):
    folder.mkdir(exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measured(folder, root, **options):
    with open_checkpoint(folder) as checkpoint:
        store = RunStore.of(root, source_of(checkpoint))
        result = sweep(checkpoint, select(checkpoint), SweepOptions(quiet=True, device="cpu", **options), store)
    return result, read_run(store.folder)


def largest(weight):
    return float(torch.linalg.svdvals(weight.double())[0])


def test_a_row_for_each_expert_and_for_a_convolution(tmp_path):
    stored = tensors()
    result, run = measured(write(tmp_path / "model", stored), tmp_path / "out", split="parts")
    rows = run.matrices.set_index(["name", "part"])
    expected = {(CONVOLUTION, "whole"): stored[CONVOLUTION].reshape(16, 36)}
    for n in range(EXPERTS):
        expected[GATE_UP, f"expert_{n}"] = stored[GATE_UP][n]
        expected[GATE_UP, f"expert_{n}.gate"] = stored[GATE_UP][n, :WIDE]
        expected[GATE_UP, f"expert_{n}.up"] = stored[GATE_UP][n, WIDE:]
        expected[DOWN, f"expert_{n}"] = stored[DOWN][n]
    assert set(rows.index) == {*expected, ("model.layers.0.self_attn.q_proj.weight", "whole")}
    for key, weight in expected.items():
        assert rows.loc[key, "spectral_norm"] == pytest.approx(largest(weight), rel=1e-12)
        assert rows.loc[key, "mean"] == pytest.approx(float(weight.double().mean()), abs=1e-12)
        assert (rows.loc[key, "rows"], rows.loc[key, "cols"]) == tuple(weight.shape)
    values = run.singular_values
    of_expert = values[(values["name"] == DOWN) & (values["part"] == "expert_2")]["sigma"]
    assert np.allclose(of_expert, torch.linalg.svdvals(stored[DOWN][2].double()), rtol=1e-10)
    assert result.matrices == 4
    details = run.manifest["checkpoint"]["details"]["left_out"]
    assert details["count"] == 2
    assert set(details["tensors"]) == {"model.layers.0.pos_embed", "model.layers.0.empty.weight"}


def test_one_expert_alone_is_read(tmp_path):
    with open_checkpoint(write(tmp_path / "model", tensors())) as checkpoint:
        stack = checkpoint.read(GATE_UP)
        one = checkpoint.read_expert(GATE_UP, 2)
        assert torch.equal(one, stack[2])
        checkpoint.release(GATE_UP, 2)
        assert torch.equal(one, stack[2])
        assert left_out_sentence(checkpoint).startswith("model: 2 tensors are left out, model.layers.0.")
        assert "holds no number" in left_out(checkpoint)["model.layers.0.empty.weight"]


def test_gate_and_up_are_not_taken_apart_where_inputs_come_first(tmp_path):
    for config in (CONFIG | {"model_type": "gpt_oss"}, CONFIG | {"hidden_size": 2 * WIDE}):
        with open_checkpoint(write(tmp_path / "model", tensors(), config)) as checkpoint:
            assert checkpoint.tensors[GATE_UP].fused_parts == ()


def test_fp8_experts_with_a_scale_each(tmp_path):
    weight = torch.randn(2, 64, 64)
    scale = weight.abs().amax((1, 2), keepdim=True) / 448
    stored = {DOWN: (weight / scale).to(torch.float8_e4m3fn), f"{DOWN}_scale_inv": scale}
    _, run = measured(write(tmp_path / "model", stored), tmp_path / "out", values=False)
    expected = [largest(matrix) for matrix in stored[DOWN].float() * scale]
    assert list(run.matrices["part"]) == ["expert_0", "expert_1"]
    assert np.allclose(run.matrices["spectral_norm"], expected, rtol=1e-10)


def test_the_change_of_each_expert(tmp_path):
    before, after = tensors(), tensors()
    after[DOWN] = after[DOWN] + 0.1 * torch.randn(DOWN_SHAPE := (EXPERTS, HIDDEN, WIDE))
    assert after[DOWN].shape == DOWN_SHAPE
    plan = plan_delta(
        write(tmp_path / "a", before), write(tmp_path / "b", after), DeltaOptions(against_base=True, device="cpu")
    )
    result = measure_delta(plan, tmp_path / "out")
    plan.close()
    rows = read_run(result.folder).matrices
    change = rows[(rows["name"] == DOWN) & (rows["quantity"] == "delta")].set_index("part")
    merged = rows[(rows["name"] == DOWN) & (rows["quantity"] == "merged")].set_index("part")
    assert list(change.index) == [f"expert_{n}" for n in range(EXPERTS)]
    for n in range(EXPERTS):
        difference = after[DOWN][n] - before[DOWN][n]
        assert change.loc[f"expert_{n}", "spectral_norm"] == pytest.approx(largest(difference), rel=1e-6)
        assert merged.loc[f"expert_{n}", "spectral_norm"] == pytest.approx(largest(after[DOWN][n]), rel=1e-9)
    assert any("left out" in note for note in result.notes)


def test_what_cannot_be_read_has_a_row_that_says_so(tmp_path, capsys):
    stored = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(16, 16),
        "model.layers.1.mlp.up_proj.weight": torch.randn(16, 16).to(torch.float8_e4m3fn),
        "model.layers.2.mlp.up_proj.weight": torch.full((16, 16), 1e300, dtype=torch.float64),
    }
    folder = write(tmp_path / "model", stored)
    with pytest.raises(SystemExit) as leaving:
        main(["svd", "--model", str(folder), "--out", str(tmp_path), "--no-report", "--quiet"])
    assert leaving.value.code == 1
    said = capsys.readouterr().out
    assert "1 of them cannot be read, model.layers.1.mlp.up_proj.weight: it is stored in float8_e4m3fn" in said
    rows = read_run(next((tmp_path / "param_matrix").iterdir())).matrices.set_index("layer")
    assert list(rows["status"]) == ["ok", "unreadable", "nonfinite"]
    assert np.isnan(rows.loc[1, "spectral_norm"])
    assert rows.loc[2, "share_inf"] == 1.0  # beyond float32, by which values are counted


def test_weights_in_another_form_beside_those_that_are_read_are_named(tmp_path):
    model = write_small_checkpoint(tmp_path / "model", layers=1)
    torch.save({}, model / "training_args.bin")  # a trainer's, no weights
    with open_checkpoint(model) as checkpoint:
        assert left_out_sentence(checkpoint) is None
    torch.save({"transformer.encoder.final_layernorm.weight": torch.ones(8)}, model / "pytorch_model.bin")
    with open_checkpoint(model) as checkpoint:
        assert (
            left_out_sentence(checkpoint) == "model: pytorch_model.bin lies beside model.safetensors and is not read."
        )
    with open_checkpoint(model / "model.safetensors") as checkpoint:
        assert left_out_sentence(checkpoint) is None, "one file was asked for"
