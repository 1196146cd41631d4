"""A sweep over a small checkpoint: right numbers, nothing measured twice, nothing lost to a kill, the same
from two processes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.store import RunStore, read_run, read_vectors
from glmspectra.sweep import SweepOptions, source_of, sweep
from tests.faults.commands import begin_two
from tests.sweep.small_checkpoint import matrix, write_small_checkpoint


def options(**changes):
    """Spectra alone unless told: the fits of value distributions would take most of the time of these tests."""
    return SweepOptions(**{"values": False, "quiet": True, "device": "cpu", **changes})


QUIET = options()
COMMAND = [sys.executable, "-m", "glmspectra", "svd", "--no-values", "--no-report", "--quiet", "--device", "cpu"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("models") / "small")


def run_sweep(model, out, asked=QUIET, **selection):
    with open_checkpoint(model) as checkpoint:
        store = RunStore.of(out, source_of(checkpoint))
        result = sweep(checkpoint, select(checkpoint, **selection), asked, store)
    return result, read_run(store.folder)


def assert_same(one, other):
    """Equal tables but for seconds."""
    pd.testing.assert_frame_equal(one.matrices.drop(columns="seconds"), other.matrices.drop(columns="seconds"))
    pd.testing.assert_frame_equal(one.singular_values, other.singular_values)
    pd.testing.assert_frame_equal(one.histograms, other.histograms)


def test_singular_values_and_moments_are_numpys(model, tmp_path):
    result, run = run_sweep(model, tmp_path, options(values=True), layers="1-2")
    assert (result.matrices, result.measured, result.nonfinite) == (8, 8, [])
    tensors = load_file(model / "model.safetensors")
    assert run.matrices["matrix"].tolist() == ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"] * 2
    assert run.matrices["layer"].tolist() == [1] * 4 + [2] * 4
    for _, row in run.matrices.iterrows():
        weight = tensors[row["name"]].double().numpy()
        sigma = run.singular_values[run.singular_values["name"] == row["name"]]
        expected = np.linalg.svd(weight, compute_uv=False)
        assert sigma["index"].tolist() == list(range(len(expected)))
        assert (np.abs(sigma["sigma"] - expected) <= sigma["error_bound"] + 1e-14 * expected[0]).all()
        assert row["spectral_norm"] == pytest.approx(expected[0], rel=1e-12)
        assert row["mean"] == pytest.approx(weight.mean(), abs=1e-12)
        assert row["std"] == pytest.approx(weight.std(), rel=1e-9)
        assert (row["rows"], row["cols"], row["count"]) == (*weight.shape, weight.size)
        histogram = run.histograms[run.histograms["name"] == row["name"]]
        assert histogram["count"].sum() == weight.size


def test_split_measures_parts_and_heads_in_the_same_read(model, tmp_path):
    asked = options(split="heads")
    _, run = run_sweep(model, tmp_path, asked, layers="1", matrices="query_key_value")
    heads = [f"q.head_{head}" for head in range(4)] + ["k.head_0", "k.head_1", "v.head_0", "v.head_1"]
    assert run.matrices["part"].tolist() == ["whole", "q", "k", "v", *heads]
    assert run.matrices["rows"].tolist() == [128, 64, 32, 32] + [16] * 8
    weight = load_file(model / "model.safetensors")[matrix(1, "query_key_value")].double().numpy()
    k = run.singular_values[run.singular_values["part"] == "k"]
    np.testing.assert_allclose(k["sigma"], np.linalg.svd(weight[64:96], compute_uv=False), rtol=1e-9)
    asked = options(values=True, spectrum=False, split="parts")
    _, run = run_sweep(model, tmp_path, asked, layers="1", matrices="query_key_value")
    row = run.matrices.set_index("part").loc["k"]
    assert row["mean"] == pytest.approx(weight[64:96].mean(), abs=1e-12)
    assert row["count"] == 32 * 64


def test_topk_gives_the_largest_and_says_so(model, tmp_path):
    _, run = run_sweep(model, tmp_path, options(method="topk", top_k=5), matrices="dense")
    assert set(run.matrices["method"]) == {"topk"}
    assert len(run.singular_values) == 15
    exact = run_sweep(model, tmp_path / "exact", matrices="dense")[1].singular_values
    top = exact[exact["index"] < 5].reset_index(drop=True)
    np.testing.assert_allclose(run.singular_values["sigma"], top["sigma"], rtol=1e-4)


def test_vectors_are_kept_and_are_singular_vectors(model, tmp_path):
    asked = options(split="parts", vectors=3)
    _, run = run_sweep(model, tmp_path, asked, layers="0", matrices="query_key_value")
    name = matrix(0, "query_key_value")
    weight = load_file(model / "model.safetensors")[name].double().numpy()
    vectors = read_vectors(run.folder, name)
    assert set(vectors) == {"whole", "q", "k", "v"}
    for part, rows in {"whole": slice(0, 128), "v": slice(96, 128)}.items():
        left, right = vectors[part]
        sigma = run.singular_values[run.singular_values["part"] == part]["sigma"].to_numpy()[:3]
        assert left.shape == (rows.stop - rows.start, 3)
        np.testing.assert_allclose(left.T @ weight[rows] @ right, np.diag(sigma), atol=1e-5)


def test_nothing_is_measured_twice(model, tmp_path):
    assert run_sweep(model, tmp_path, layers="0")[0].measured == 4
    assert run_sweep(model, tmp_path)[0].measured == 8
    assert run_sweep(model, tmp_path)[0].measured == 0
    assert run_sweep(model, tmp_path, options(fresh=True))[0].measured == 12


@pytest.mark.parametrize("first", ["values", "spectrum"])
def test_values_and_spectra_taken_apart_give_the_table_taken_together(model, tmp_path, first):
    chosen = {"layers": "0", "include": ["*attention*"]}
    together = run_sweep(model, tmp_path / "together", options(values=True), **chosen)[1]
    for kind in (first, "spectrum" if first == "values" else "values"):
        asked = options(values=kind == "values", spectrum=kind == "spectrum")
        _, run = run_sweep(model, tmp_path / "apart", asked, **chosen)
    assert len(run.matrices) == 2
    assert_same(run, together)


def test_a_changed_file_is_another_run(tmp_path):
    model = write_small_checkpoint(tmp_path / "model", layers=1)
    _, before = run_sweep(model, tmp_path)
    write_small_checkpoint(tmp_path / "model", layers=1, seed=1)
    result, after = run_sweep(model, tmp_path)
    assert result.measured == 4
    assert before.folder != after.folder
    assert (before.matrices["spectral_norm"] != after.matrices["spectral_norm"]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_matrix_is_said_and_the_others_are_measured(tmp_path, bad):
    spoilt = matrix(1, "query_key_value")
    model = write_small_checkpoint(tmp_path / "model", layers=2, spoil={spoilt: bad})
    asked = options(values=True, split="parts")
    result, run = run_sweep(model, tmp_path, asked, include=["*attention*"], layers="1")
    assert result.nonfinite == [spoilt] == run.manifest["nonfinite"]
    rows = run.matrices[run.matrices["name"] == spoilt].set_index("part")
    assert rows["status"].to_dict() == {"whole": "nonfinite", "q": "ok", "k": "ok", "v": "nonfinite"}
    assert rows["spectral_norm"].isna().to_dict() == {"whole": True, "q": False, "k": False, "v": True}
    assert rows["share_nan"]["whole"] + rows["share_inf"]["whole"] == pytest.approx(1 / (128 * 64))
    others = run.matrices[run.matrices["name"] != spoilt]
    assert (others["status"] == "ok").all()
    assert others["spectral_norm"].notna().all()
    assert set(run.singular_values[run.singular_values["name"] == spoilt]["part"]) == {"q", "k"}


def wait_for_parts(out, count, process):
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.spectrum-*.npz"))) < count:
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_command_goes_on_and_ends_like_an_uninterrupted_one(tmp_path, how):
    model = write_small_checkpoint(tmp_path / "model", layers=24)
    command = [*COMMAND, "--model", str(model), "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "broken")],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs behind it with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_parts(tmp_path / "broken", 5, process)
    process.send_signal(how)
    message = process.communicate(timeout=60)[1]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert message == "interrupted: what was finished is kept; the same command goes on from there.\n"
    else:
        assert process.returncode == -signal.SIGKILL
    finished = len(list((tmp_path / "broken").rglob("*.spectrum-*.npz")))
    assert 5 <= finished < 96
    result, broken = run_sweep(model, tmp_path / "broken" / "param_matrix")
    assert 96 - finished <= result.measured <= 96 - finished + 1  # one may have had its values but not its spectrum
    assert broken.complete
    assert_same(broken, run_sweep(model, tmp_path / "straight")[1])


@pytest.mark.slow
def test_two_processes_share_the_work_and_give_the_same_tables(model, tmp_path):
    two = begin_two(tmp_path, *COMMAND[3:], "--json", "--model", model, "--out", tmp_path)
    assert [one.wait() for one in two] == [0, 0], two[0].said()
    assert two[0].said().count('"run"') == 1
    assert two[1].said() == "", "one process speaks for all"
    (folder,) = (tmp_path / "param_matrix").iterdir()
    shared, alone = read_run(folder), run_sweep(model, tmp_path / "alone")[1]
    assert shared.manifest["requests"]["weight/spectrum"]["processes"] == 2
    assert shared.complete
    key = ["name", "part", "index"]
    pd.testing.assert_frame_equal(shared.singular_values[key], alone.singular_values[key])
    difference = np.abs(shared.singular_values["sigma"] - alone.singular_values["sigma"])
    assert (difference <= shared.singular_values["error_bound"] + alone.singular_values["error_bound"]).all()
    pd.testing.assert_frame_equal(
        shared.matrices.drop(columns="seconds"), alone.matrices.drop(columns="seconds"), rtol=1e-6
    )


@pytest.mark.slow
def test_an_error_in_one_of_two_processes_ends_both_with_one_sentence(model, tmp_path):
    (tmp_path / "param_matrix").write_text("in the way")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, "-m", *COMMAND[2:], "--model", str(model), "--out", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "a file is in the way of a folder" in done.stderr


@pytest.mark.gpu
def test_cuda_gives_the_tables_of_the_cpu(model, tmp_path):
    asked = options(values=True, split="parts", vectors=2, device="cuda")
    result, run = run_sweep(model, tmp_path / "cuda", asked)
    _, expected = run_sweep(model, tmp_path / "cpu", options(values=True, split="parts"))
    assert result.device == "cuda:0"
    difference = np.abs(run.singular_values["sigma"] - expected.singular_values["sigma"])
    assert (difference <= run.singular_values["error_bound"] + expected.singular_values["error_bound"]).all()
    pd.testing.assert_frame_equal(run.histograms, expected.histograms)
    pd.testing.assert_frame_equal(
        run.matrices.drop(columns="seconds"), expected.matrices.drop(columns="seconds"), rtol=1e-6
    )
