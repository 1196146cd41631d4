"""A resumed run is the uninterrupted run, bit for bit; a killed one leaves its last whole checkpoint."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glmspectra.errors import RequestError, TrainingError
from glmspectra.files import REPLACED, atomic_folder, remove_leftovers
from glmspectra.tuning.training.checkpoints import checkpoints, find_resume
from glmspectra.tuning.training.run import train
from tests.tuning.tiny_run import ADALORA, make_run, write_args, write_data, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def losses(folder: Path) -> list[tuple[int, float]]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry.get("loss", entry.get("eval_loss"))) for entry in log if "train_runtime" not in entry]


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_resumed_run_equals_the_uninterrupted_one_bitwise(tmp_path, model, data, method):
    # Dropout draws random numbers, 8 steps an epoch put the end in the second epoch, logs every 3 steps do
    # not fall together with the checkpoint at 4, evaluation at 4 and 8 lies between, and AdaLoRA prunes at
    # steps 4, 6 and 9.
    finetune = {"method": method}
    lora = ADALORA if method == "adalora" else {}
    arguments = {
        "max_steps": 12, "logging_steps": 3, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4
    }  # fmt: skip
    whole = make_run(tmp_path / "whole", model, data, finetune, lora, arguments)
    train(whole)
    begun = tmp_path / "resumed" / "run"
    shutil.copytree(whole.output_dir / "checkpoint-4", begun / "checkpoint-4")
    if method == "adalora":
        shutil.copy(whole.output_dir / "rank_history.jsonl", begun)
    resumed = make_run(tmp_path / "resumed", model, data, finetune | {"resume_from_checkpoint": True}, lora, arguments)
    result = train(resumed)

    assert resumed.resume == begun / "checkpoint-4"
    assert losses(resumed.output_dir) == losses(whole.output_dir)
    for checkpoint in ("checkpoint-8/LoraAdapter", "checkpoint-12/LoraAdapter", "final_adapter"):
        expected = load_file(whole.output_dir / checkpoint / "adapter_model.safetensors")
        found = load_file(resumed.output_dir / checkpoint / "adapter_model.safetensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), checkpoint
    history = [run.output_dir / "rank_history.jsonl" for run in (whole, resumed)]
    if method == "adalora":
        assert history[0].read_text() == history[1].read_text()
        assert sum(result["ranks"].values()) == 2 * len(result["ranks"])
    optimizers = [
        torch.load(run.output_dir / "checkpoint-12/optimizer.pt", weights_only=True)["state"]
        for run in (whole, resumed)
    ]
    assert all(torch.equal(optimizers[0][i]["exp_avg"], optimizers[1][i]["exp_avg"]) for i in optimizers[0])


def test_a_checkpoint_of_other_ranks_is_refused(tmp_path, model, data):
    secret = "hf_" + "x" * 30
    run = make_run(tmp_path, model, data, train={"max_steps": 2, "save_steps": 2, "hub_token": secret})
    train(run)
    assert run.trainer.args.hub_token == secret
    assert not [file for file in run.output_dir.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
    assert {path.name for path in (run.output_dir / "checkpoint-2").iterdir()} == {
        "LoraAdapter", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin",
        "README.md", "progress.json",
    }  # fmt: skip
    other = make_run(
        tmp_path, model, data, {"resume_from_checkpoint": True}, {"r": 3}, {"max_steps": 4, "save_steps": 2}
    )
    assert any("lora.r: 3 is used; this run began with 4" in note for note in other.notes)
    with pytest.raises(TrainingError, match="other matrices or ranks"):
        train(other)


def test_the_best_checkpoint_is_what_is_saved_at_the_end(tmp_path, model, data):
    arguments = {
        "max_steps": 8, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1,
        "load_best_model_at_end": True, "learning_rate": 2.0, "max_grad_norm": 100.0,
    }  # fmt: skip
    run = make_run(tmp_path, model, data, train=arguments)
    result = train(run)
    evaluated = {entry["step"]: entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry}
    best = min(evaluated, key=evaluated.get)
    assert best != 8  # the rate is far too high
    assert Path(run.trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"
    expected = load_file(run.output_dir / f"checkpoint-{best}/LoraAdapter/adapter_model.safetensors")
    found = load_file(Path(result["adapter"]) / "adapter_model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert run.trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[best], abs=1e-6)


def test_resume_without_a_checkpoint_says_so(tmp_path, model, data):
    with pytest.raises(RequestError, match="holds no whole checkpoint"):
        make_run(tmp_path, model, data, {"resume_from_checkpoint": True})


def test_an_interrupted_write_leaves_the_old_folder(tmp_path):
    target = tmp_path / "checkpoint-4"
    with atomic_folder(target) as staging:
        (staging / "trainer_state.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as staging:
        (staging / "trainer_state.json").write_text("half")
        raise KeyboardInterrupt
    assert (target / "trainer_state.json").read_text() == "old"
    assert checkpoints(tmp_path) == [target]
    # Killed between the two renames of a replacement: the old folder goes back to its place.
    target.rename(tmp_path / f".checkpoint-4{REPLACED}")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert (target / "trainer_state.json").read_text() == "old"


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_usable_checkpoint(tmp_path, model, data):
    args = write_args(tmp_path / "args", model, data, train={"max_steps": 400, "save_steps": 1, "save_total_limit": 2})
    command = [sys.executable, "-m", "glmspectra", "train", "--args", str(args), "--device", "cpu", "--quiet"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
    output = tmp_path / "run"
    deadline = time.monotonic() + 120
    while len(checkpoints(output)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.137)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()
    last = find_resume(True, output)
    step = int(last.name.split("-")[1])
    resumed = make_run(
        tmp_path, model, data, {"resume_from_checkpoint": True}, train={"max_steps": step + 2, "save_steps": 1}
    )
    assert train(resumed)["steps"] == step + 2
    assert not list(output.glob(".*"))
