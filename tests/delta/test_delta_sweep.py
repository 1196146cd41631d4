"""Delta runs over small checkpoints: tables against dense truth, growth over checkpoints, resume, refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.figures.tables import similarity_table
from glmspectra.language import text
from glmspectra.store import read_run
from glmspectra.sweep.delta import measure_delta
from glmspectra.sweep.delta_plan import DeltaOptions, plan_delta
from tests.delta.made_runs import (
    SHAPES,
    base_weights,
    modules,
    random_factors,
    write_adapter,
    write_base,
    write_merged,
)

QUIET = {"device": "cpu", "quiet": True}


def measured(tmp_path, base, tuned, **options):
    plan = plan_delta(base, tuned, DeltaOptions(**QUIET, **options))
    try:
        result = measure_delta(plan, tmp_path / "param_matrix")
    finally:
        plan.close()
    return read_run(result.folder), result


def sigma_of(run, name, quantity="delta", step=None):
    frame = run.singular_values
    frame = frame[(frame["quantity"] == quantity) & (frame["name"] == name)]
    frame = frame[frame["step"].isna()] if step is None else frame[frame["step"] == step]
    return frame.sort_values("index")["sigma"].to_numpy()


def rows_of(run, quantity="delta"):
    return run.matrices[run.matrices["quantity"] == quantity].set_index("name")


def test_an_adapter_without_a_base(tmp_path):
    factors = random_factors(3, 16, seed=1, true_rank=3)
    run, result = measured(tmp_path, None, write_adapter(tmp_path / "adapter", factors))
    rows = rows_of(run)
    assert len(rows) == 12
    assert result.measured == 12
    for module, (b, a) in factors.items():
        row = rows.loc[f"{module}.weight"]
        dense = 2.0 * b.double() @ a.double()
        np.testing.assert_allclose(
            sigma_of(run, f"{module}.weight")[:3], torch.linalg.svdvals(dense)[:3].numpy(), rtol=1e-6
        )
        assert (row["allotted_rank"], row["rank"]) == (16, 3), "planted rank 3 inside r = 16"
        assert row["frobenius_norm"] == pytest.approx(float(dense.norm()), rel=1e-6)
        assert 1 <= row["stable_rank"] <= row["effective_rank"] <= 3.001
        assert row["share_of_rank_in_use"] <= 3 / 16
        assert (row["layer"], row["matrix"]) == (int(module.split(".")[3]), module.split(".")[-1])
    assert run.manifest["checkpoint"]["details"]["base"] is None
    again, second = measured(tmp_path, None, tmp_path / "adapter")
    assert second.measured == 0
    assert again.folder == run.folder


def test_against_the_base_every_column_is_that_of_dense_algebra(tmp_path):
    base = write_base(tmp_path / "base")
    factors = random_factors(3, 4, seed=2, size=0.05)
    run, _ = measured(
        tmp_path, base, write_adapter(tmp_path / "adapter", factors), against_base=True, directions=6, layers="0"
    )
    rows, weights = rows_of(run), base_weights(base)
    for module in modules(1):
        b, a = factors[module]
        name = f"{module}.weight"
        row, w = rows.loc[name], weights[name]
        d = 2.0 * b.double() @ a.double()
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        du, ds, dvh = torch.linalg.svd(d, full_matrices=False)
        mu, ms, _ = torch.linalg.svd(w + d, full_matrices=False)
        assert row["relative_frobenius"] == pytest.approx(float(d.norm() / w.norm()), rel=1e-6)
        assert row["overlap_directions"] == 4
        left = float((du[:, :4].T @ u[:, :4]).square().sum() / 4)
        right = float((dvh[:4] @ vh[:4].T).square().sum() / 4)
        assert row["overlap_left"] == pytest.approx(left, abs=1e-6)
        assert row["overlap_right"] == pytest.approx(right, abs=1e-6)
        inside = du[:, :4].T @ w @ dvh[:4].T
        assert row["amplification"] == pytest.approx(float(ds[:4].norm() / inside.norm()), rel=1e-5)
        cosines = (mu.T @ u).abs().max(dim=1).values[:10].numpy()
        np.testing.assert_allclose(row["intruder_cosines"], cosines, atol=1e-5)
        assert row["intruders"] == int((cosines < 0.5).sum())
        np.testing.assert_allclose(sigma_of(run, name, "merged"), ms.numpy(), rtol=1e-6)
        np.testing.assert_allclose(sigma_of(run, name, "weight"), s.numpy(), rtol=1e-6)
    assert rows["intruders"].sum() > 0, "random factors of this size do intrude"
    assert run.manifest["checkpoint"]["details"]["base"]["name"] == "base"
    table = similarity_table(run.matrices[run.matrices["quantity"] == "delta"])
    assert set(table["side"]) == {"left", "right"}
    assert len(table) == 4 * 2 * 16


def test_two_checkpoints_and_the_floor_of_half_precision(tmp_path):
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    factors = random_factors(3, 2, seed=3, size=2e-4)
    merged = write_merged(base, tmp_path / "merged", factors)
    run, _ = measured(tmp_path, base, merged)
    rows, weights = rows_of(run), base_weights(base)
    tuned = base_weights(merged)
    for name, row in rows.iterrows():
        truth = torch.linalg.svdvals(tuned[name] - weights[name]).numpy()
        np.testing.assert_allclose(sigma_of(run, name), truth, rtol=1e-4, atol=1e-9 * truth[0])
        assert row["rank"] <= 3, "the planted two, give or take an edge of so small a matrix"
        assert row["effective_rank"] > 2 * row["effective_rank_above_floor"], "what no floor would report"
        assert 0 < row["share_unchanged"] < 1
        assert row["noise_floor"] > 0
    exact, _ = measured(tmp_path, None, write_adapter(tmp_path / "adapter", factors))
    assert (rows_of(exact)["rank"] == 2).all()


def test_every_checkpoint_of_a_run_and_a_run_that_grew(tmp_path):
    base = write_base(tmp_path / "base")
    for step in (20, 100):
        write_adapter(
            tmp_path / "run" / f"checkpoint-{step}" / "LoraAdapter", random_factors(3, 4, step, size=step * 1e-4)
        )
    run, result = measured(tmp_path, base, tmp_path / "run")
    assert result.states == 2
    norms = rows_of(run).groupby("step")["frobenius_norm"].mean()
    assert list(norms.index) == [20, 100]
    assert norms[100] > 4 * norms[20]
    assert len(sigma_of(run, f"{next(iter(modules(3)))}.weight", step=20)) == 4
    single, _ = measured(tmp_path, base, tmp_path / "run" / "checkpoint-100")
    assert set(single.matrices["step"]) == {100}


def test_dora_streams_the_base_and_is_full_rank(tmp_path):
    base = write_base(tmp_path / "base")
    factors = random_factors(3, 4, seed=5, size=0.01)
    adapter = write_adapter(tmp_path / "adapter", factors, use_dora=True)
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    weights = base_weights(base)
    magnitudes = {}
    for module, (b, a) in factors.items():
        merged = weights[f"{module}.weight"] + 2 * b.double() @ a.double()
        magnitudes[module] = (merged.norm(dim=1) * (1 + 0.1 * torch.rand(merged.shape[0]))).float()
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = magnitudes[module]
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(RequestError, match="dora cannot be computed without the base"):
        plan_delta(None, adapter, DeltaOptions(**QUIET))
    run, _ = measured(tmp_path, base, adapter)
    for module, (b, a) in factors.items():
        w = weights[f"{module}.weight"]
        merged = w + 2 * b.double() @ a.double()
        truth = merged * (magnitudes[module].double() / merged.norm(dim=1))[:, None] - w
        sigma = sigma_of(run, f"{module}.weight")
        np.testing.assert_allclose(sigma, torch.linalg.svdvals(truth).numpy(), rtol=1e-3, atol=1e-6)
        assert len(sigma) == min(w.shape)


def test_a_start_that_was_kept_is_taken_off(tmp_path):
    start = random_factors(3, 4, seed=6)
    later = {m: (b + 0.001, a + 0.01 * torch.randn(a.shape)) for m, (b, a) in start.items()}
    adapter = write_adapter(tmp_path / "run", later, init_lora_weights="pissa")
    with pytest.raises(CheckpointError, match="took its first factors out"):
        plan_delta(None, adapter, DeltaOptions(**QUIET))
    write_adapter(tmp_path / "run" / "initial_adapter", start)
    run, _ = measured(tmp_path, None, adapter)
    for module in start:
        truth = 2 * (
            later[module][0].double() @ later[module][1].double()
            - start[module][0].double() @ start[module][1].double()
        )
        sigma = sigma_of(run, f"{module}.weight")
        np.testing.assert_allclose(sigma, torch.linalg.svdvals(truth)[:8].numpy(), rtol=1e-5, atol=1e-9)
    # LoftQ on a base loaded in 4 bits: an ordinary LoRA configuration with its start beside it.
    plain = write_adapter(tmp_path / "loftq_like", later)
    write_adapter(plain / "initial_adapter", start)
    other, _ = measured(tmp_path, None, plain)
    name = f"{next(iter(start))}.weight"
    np.testing.assert_allclose(sigma_of(other, name), sigma_of(run, name), rtol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "started", "dora"])
def test_an_adapter_that_was_not_trained_is_told(tmp_path, kind):
    """All B zero, or the product that training began with: `merge` and `delta` say so, and not of a trained one."""
    base, factors = write_base(tmp_path / "base", layers=1), random_factors(1, 4, seed=6)
    untrained = factors if kind == "started" else {name: (0 * b, a) for name, (b, a) in factors.items()}
    said = {}
    for name, found in (("untrained", untrained), ("trained", {m: (b + 0.01, a) for m, (b, a) in untrained.items()})):
        adapter = write_adapter(tmp_path / name, found, use_dora=kind == "dora")
        if kind == "started":
            write_adapter(adapter / "initial_adapter", factors)
        if kind == "dora":
            weights, stored = base_weights(base), load_file(adapter / "adapter_model.safetensors")
            for module in found:
                norms = torch.linalg.vector_norm(weights[f"{module}.weight"], dim=1).float()
                stored[f"base_model.model.{module}.lora_magnitude_vector"] = norms
            save_file(stored, adapter / "adapter_model.safetensors")
        lines = [] if kind == "started" else merge(base, adapter, tmp_path / f"{name}-merged").lines()
        plan = plan_delta(base, adapter, DeltaOptions(**QUIET))
        plan.close()
        lines += [] if kind == "dora" else plan.notes
        said[name] = [line for line in lines if line == text("adapter-zero", path=str(adapter))]
    assert len(said["untrained"]) == (2 if kind == "plain" else 1)
    assert said["trained"] == []


def test_selection_and_names_that_do_not_fit(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", random_factors(3, 4, seed=7))
    run, _ = measured(tmp_path, base, adapter, layers="0-1", matrices="dense,query_key_value")
    assert len(run.matrices) == 4
    without, _ = measured(tmp_path, None, adapter, layers="2", matrices="dense*")
    assert set(rows_of(without)["matrix"]) == {"dense", "dense_h_to_4h", "dense_4h_to_h"}
    with pytest.raises(RequestError, match="leaves nothing"):
        plan_delta(None, adapter, DeltaOptions(**QUIET, matrices="no_such"))
    with pytest.raises(CheckpointError, match="of which the base has none"):
        plan_delta(write_base(tmp_path / "two", layers=2), adapter, DeltaOptions(**QUIET))


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", random_factors(3, 4, seed=8))
    from glmspectra.sweep.delta_measure import DeltaMeasurer

    done = []
    original = DeltaMeasurer.measure

    def stop_after_five(self, *arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(DeltaMeasurer, "measure", stop_after_five)
    plan = plan_delta(base, adapter, DeltaOptions(**QUIET))
    with pytest.raises(KeyboardInterrupt):
        measure_delta(plan, tmp_path / "param_matrix")
    plan.close()
    monkeypatch.undo()
    run, result = measured(tmp_path, base, adapter)
    assert result.measured == 12 - 5
    assert len(run.matrices) == 12


def test_the_cost_is_said_before_it_is_paid(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", random_factors(3, 4, seed=9))
    plan = plan_delta(base, adapter, DeltaOptions(**QUIET, against_base=True))
    sentence = plan.sentence("cpu")
    stored = 2 * sum(rows * cols for rows, cols in SHAPES.values()) * 3
    assert plan.bytes_read == stored
    assert "12 matrices, 1 state" in sentence
    plan.close()
    assert plan_delta(None, adapter, DeltaOptions(**QUIET)).bytes_read == 0


def test_the_quantization_error_is_stored_beside_the_weights(tmp_path):
    pytest.importorskip("bitsandbytes")
    from glmspectra.checkpoint import open_checkpoint, select
    from glmspectra.checkpoint.formats.round_trip import quantized_copy
    from glmspectra.store import RunStore
    from glmspectra.sweep import source_of
    from glmspectra.sweep.quantization import sweep_quantization_error

    with open_checkpoint(write_base(tmp_path / "base", layers=1)) as checkpoint:
        store = RunStore.of(tmp_path / "param_matrix", source_of(checkpoint))
        sweep_quantization_error(checkpoint, select(checkpoint), "nf4", store, top_k=12, device="cpu", quiet=True)
        run = read_run(store.folder)
        for name in checkpoint.tensors:
            weight = checkpoint.read(name).float()
            truth = torch.linalg.svdvals((weight - quantized_copy(weight, "nf4")).double())[:12].numpy()
            np.testing.assert_allclose(sigma_of(run, name, "quant_error"), truth, rtol=1e-4)
            assert json.loads(json.dumps(int(rows_of(run, "quant_error").loc[name, "rows"]))) == weight.shape[0]


def test_what_an_svd_of_the_base_kept_is_used_without_streaming(tmp_path):
    from glmspectra.checkpoint import open_checkpoint, select
    from glmspectra.store import RunStore
    from glmspectra.sweep import SweepOptions, source_of, sweep

    base = write_base(tmp_path / "base", layers=1)
    adapter = write_adapter(tmp_path / "adapter", random_factors(1, 4, seed=10, size=0.05))
    before, _ = measured(tmp_path, base, adapter)
    assert before.matrices["relative_frobenius"].isna().all()
    with open_checkpoint(base) as checkpoint:
        options = SweepOptions(values=False, vectors=6, quiet=True, device="cpu")
        sweep(checkpoint, select(checkpoint), options, RunStore.of(tmp_path / "param_matrix", source_of(checkpoint)))
    plan = plan_delta(base, adapter, DeltaOptions(**QUIET))
    assert not plan.streams
    plan.close()
    kept, result = measured(tmp_path, base, adapter)
    assert result.measured == 4, "the new columns are filled in"
    full, _ = measured(tmp_path, base, adapter, against_base=True, directions=6)
    for column in ("relative_frobenius", "overlap_left", "overlap_right"):
        np.testing.assert_allclose(rows_of(kept)[column], rows_of(full)[column], rtol=1e-4, atol=1e-6)
    assert kept.matrices["intruders"].isna().all()


def test_a_quantized_checkpoint_is_not_subtracted(tmp_path):
    from safetensors.torch import load_file, save_file

    base = write_base(tmp_path / "base", layers=1)
    tuned = write_base(tmp_path / "tuned", layers=1)
    tensors = load_file(tuned / "model.safetensors")
    for module, (rows, cols) in modules(1).items():
        tensors[f"{module}.weight"] = torch.zeros(rows, cols, dtype=torch.int8)
        tensors[f"{module}.weight_scale"] = torch.ones(rows, dtype=torch.float16)
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tuned / "config.json").read_text()) | {"quantization_bit": 8}
    (tuned / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is stored as int8, and a difference would hold its error"):
        plan_delta(base, tuned, DeltaOptions(**QUIET))


def test_a_plain_run_does_not_replace_what_was_measured_against_the_base(tmp_path):
    base = write_base(tmp_path / "base", layers=1)
    adapter = write_adapter(tmp_path / "adapter", random_factors(1, 4, seed=11))
    full, _ = measured(tmp_path, base, adapter, against_base=True)
    for given in (base, None):
        again, result = measured(tmp_path, given, adapter)
        assert result.measured == 0
        assert (rows_of(again)["intruders"] == rows_of(full)["intruders"]).all()
        assert again.manifest["checkpoint"]["details"]["base"]["name"] == "base"
    other = write_base(tmp_path / "other_base", layers=1, dtype=torch.float32)
    replaced, result = measured(tmp_path, other, adapter)
    assert result.measured == 4
    assert rows_of(replaced)["intruders"].isna().all()
