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
from glmspectra.files import REPLACED, atomic_folder, exclusive, remove_leftovers
from glmspectra.tuning.settings.load import Settings, load_settings
from glmspectra.tuning.training.checkpoints import checkpoints, newest_whole, step_of
from glmspectra.tuning.training.record import RunRecord
from glmspectra.tuning.training.run import run_training, train
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
    expected_loss = train(whole)["train_loss"]
    begun = tmp_path / "resumed" / "run"
    shutil.copytree(whole.output_dir / "checkpoint-4", begun / "checkpoint-4")
    shutil.copytree(whole.output_dir / "resolved_args", begun / "resolved_args")
    RunRecord.read(whole.output_dir).model_copy(update={"finished": None}).write(begun)
    if method == "adalora":
        shutil.copy(whole.output_dir / "rank_history.jsonl", begun)
    resumed = make_run(tmp_path / "resumed", model, data, finetune, lora, arguments)
    result = train(resumed)

    assert resumed.start.checkpoint == begun / "checkpoint-4"
    assert losses(resumed.output_dir) == losses(whole.output_dir)
    assert result["train_loss"] == expected_loss
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


def settings_of(root: Path, model: Path, data: Path, finetune=None, lora=None, **train) -> Settings:
    """Settings of a short run under `root`."""
    return load_settings(
        write_args(root / "args", model, data, finetune, lora, {"max_steps": 4, "save_steps": 2} | train)
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory, model, data) -> Path:
    """A folder with a run of 4 steps that stopped after the second: its checkpoint, and no result."""
    root = tmp_path_factory.mktemp("begun")
    train(make_run(root, model, data, train={"max_steps": 4, "save_steps": 2}))
    shutil.rmtree(root / "run" / "checkpoint-4")
    shutil.rmtree(root / "run" / "final_adapter")
    record = RunRecord.read(root / "run")
    record.model_copy(update={"finished": None}).write(root / "run")
    return root


def copied(begun: Path, root: Path) -> Path:
    shutil.copytree(begun / "run", root / "run")
    return root / "run"


def test_a_checkpoint_holds_what_its_sums_say_and_no_secret(tmp_path, model, data):
    secret = "hf_" + "x" * 30
    run = make_run(tmp_path, model, data, train={"max_steps": 2, "save_steps": 2})
    run.trainer.args.hub_token = secret  # no setting gives it; what the environment gives is not saved either
    train(run)
    assert not [file for file in run.output_dir.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
    checkpoint = run.output_dir / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} == {
        "LoraAdapter", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin",
        "README.md", "progress.json", "SHA256SUMS",
    }  # fmt: skip
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=checkpoint, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == 9


def test_the_same_command_goes_on_and_then_says_that_the_run_is_finished(tmp_path, model, data, begun):
    whole = run_training(settings_of(tmp_path / "whole", model, data), "cpu", quiet=True)
    copied(begun, tmp_path)
    said: list[str] = []
    settings = settings_of(tmp_path, model, data)
    result = run_training(settings, "cpu", quiet=True, say=said.append)
    assert f"the run goes on from {tmp_path / 'run' / 'checkpoint-2'}." in said
    assert result["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-12)  # the mean of four steps, not of two
    logged = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    assert logged[-1]["train_loss"] == result["train_loss"]
    assert result["train_loss"] == pytest.approx(sum(e["loss"] for e in logged if "loss" in e) / 4, abs=1e-4)
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*"))
    assert run_training(settings, "cpu", quiet=True) == result | {"finished_before": True}
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_run_killed_between_its_last_checkpoint_and_its_end_is_finished_without_a_further_step(
    tmp_path, model, data, method
):
    lora = ADALORA if method == "adalora" else {}
    arguments = {"max_steps": 6, "save_steps": 3, "num_train_epochs": 9}  # six steps are less than an epoch
    settings = settings_of(tmp_path, model, data, {"method": method}, lora, **arguments)
    expected = run_training(settings, "cpu", quiet=True)
    weights = load_file(tmp_path / "run/final_adapter/adapter_model.safetensors")
    shutil.rmtree(tmp_path / "run/final_adapter")
    RunRecord.read(tmp_path / "run").model_copy(update={"finished": None}).write(tmp_path / "run")
    result = run_training(settings, "cpu", quiet=True)
    assert (result["steps"], result["train_loss"]) == (6, expected["train_loss"])
    found = load_file(tmp_path / "run/final_adapter/adapter_model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in weights.items())


CHANGES = [
    ({"train": {"per_device_train_batch_size": 2}}, "train.per_device_train_batch_size: 2, was 4"),
    ({"train": {"learning_rate": 3e-3}}, "train.learning_rate: 0.003, was 0.01"),
    ({"train": {"max_steps": 6}}, "train.max_steps: 6, was 4"),
    ({"lora": {"r": 3}}, "lora.r: 3, was 4"),
    ({"lora": {"lora_alpha": 96}}, "lora.lora_alpha: 96, was 8"),
    ({"lora": {"target_modules": ["o_proj"]}}, 'lora.target_modules: ["o_proj"], was null'),
    ({"finetune": {"seed": 7}}, "finetune.seed: 7, was 1"),
]


@pytest.mark.parametrize(("changes", "sentence"), CHANGES)
def test_another_run_in_the_folder_is_refused_naming_each_difference(tmp_path, model, data, begun, changes, sentence):
    copied(begun, tmp_path)
    train_keys = changes.get("train", {}) | {"logging_steps": 2}
    settings = settings_of(tmp_path, model, data, changes.get("finetune"), changes.get("lora"), **train_keys)
    with pytest.raises(RequestError) as error:
        run_training(settings, "cpu", quiet=True)
    message = str(error.value)
    assert f"holds a run that began with other settings: {sentence} (and, without changing what is learnt: " in message
    assert "train.logging_steps: 2, was 1" in message
    assert message.endswith("move the run aside with --overwrite, or go on with what is changed with --allow-changed.")


def test_other_rows_and_other_weights_are_another_run(tmp_path, model, data, begun):
    copied(begun, tmp_path)
    rows = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    other = write_data(tmp_path / "data")
    (other / "train.jsonl").write_text("\n".join([rows[1], rows[0], *rows[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(RequestError, match="began with other settings: train data: another content"):
        run_training(settings_of(tmp_path, model, other), "cpu", quiet=True)
    with pytest.raises(RequestError, match="began with other settings: base weights: another content"):
        run_training(settings_of(tmp_path, write_model(tmp_path / "model", seed=5), data), "cpu", quiet=True)
    # The same content elsewhere is the same run.
    moved = shutil.copytree(model, tmp_path / "moved")
    assert run_training(settings_of(tmp_path, moved, data), "cpu", quiet=True)["steps"] == 4


def test_what_changes_no_number_is_named_and_gone_on_with(tmp_path, model, data, begun):
    copied(begun, tmp_path)
    said: list[str] = []
    settings = settings_of(tmp_path, model, data, save_total_limit=3)
    run_training(settings, "cpu", quiet=True, say=said.append)
    assert "differs from when the run began: train.save_total_limit: 3, was null." in said


def test_a_change_that_is_allowed_is_used_and_named(tmp_path, model, data, begun):
    copied(begun, tmp_path)
    said: list[str] = []
    settings = settings_of(tmp_path, model, data, max_steps=5)
    result = run_training(settings, "cpu", quiet=True, allow_changed=True, say=said.append)
    assert result["steps"] == 5
    assert "differs from when the run began: train.max_steps: 5, was 4." in said


def test_allowing_changes_makes_no_adapter_of_another_rank_fit(tmp_path, model, data, begun):
    copied(begun, tmp_path)
    with pytest.raises(TrainingError, match="other matrices or ranks"):
        run_training(settings_of(tmp_path, model, data, lora={"r": 3}), "cpu", quiet=True, allow_changed=True)


def test_overwrite_moves_the_earlier_run_aside(tmp_path, model, data, begun):
    first = copied(begun, tmp_path)
    marks = sorted(path.name for path in first.iterdir())
    (tmp_path / "run.1").mkdir()
    said: list[str] = []
    settings = settings_of(tmp_path, model, data, lora={"r": 3}, max_steps=2)
    assert run_training(settings, "cpu", quiet=True, overwrite=True, say=said.append)["steps"] == 2
    assert said[0] == f"the earlier run is now {tmp_path / 'run.2'}."
    assert sorted(path.name for path in (tmp_path / "run.2").iterdir()) == marks


def test_a_run_folder_of_unknown_settings_is_refused(tmp_path, model, data, begun):
    (copied(begun, tmp_path) / "run.json").unlink()
    with pytest.raises(
        RequestError, match=r"says not what it was trained on \(run.json is not there\).*--allow-changed"
    ):
        run_training(settings_of(tmp_path, model, data), "cpu", quiet=True)
    (tmp_path / "run" / "run.json").write_text('{"glmspectra_run": 1, "began": 5}')
    with pytest.raises(RequestError, match=r"run.json: began: input should be a valid string \(found 5\); base: field"):
        run_training(settings_of(tmp_path, model, data), "cpu", quiet=True)


FILES = ["LoraAdapter/adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "SHA256SUMS"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "one byte", "gone"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, begun, file, damage):
    folder = copied(begun, tmp_path)
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-10")
    assert newest_whole(folder) == (folder / "checkpoint-10", [])
    path = folder / "checkpoint-10" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-40] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    found, lines = newest_whole(folder)
    assert found == folder / "checkpoint-2"
    (line,) = lines
    assert line.en.startswith(f"{folder / 'checkpoint-10'} is damaged: ")
    assert file in line.en
    assert file in line.zh
    assert line.en.endswith("the one before it is taken.")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(tmp_path, model, data, begun):
    (copied(begun, tmp_path) / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        RequestError, match=r"no checkpoint is whole\. .*optimizer.pt is not what SHA256SUMS says.*--overwrite"
    ):
        run_training(settings_of(tmp_path, model, data), "cpu", quiet=True)
    resume = {"resume_from_checkpoint": str(tmp_path / "run/checkpoint-2")}
    with pytest.raises(RequestError, match=r"checkpoint-2 is damaged: optimizer\.pt is not what SHA256SUMS says"):
        run_training(settings_of(tmp_path, model, data, resume), "cpu", quiet=True)


def test_one_process_at_a_time_trains_into_a_folder(tmp_path, model, data):
    settings = settings_of(tmp_path, model, data)
    with exclusive(tmp_path / "run", "train", beside=True), pytest.raises(RequestError, match="run is in use: process"):
        run_training(settings, "cpu", quiet=True)
    assert not (tmp_path / "run").exists()


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


def test_resuming_where_there_is_nothing_and_beginning_where_there_is_something_are_refused(
    tmp_path, model, data, begun
):
    with pytest.raises(RequestError, match="holds no checkpoint to go on from"):
        make_run(tmp_path, model, data, {"resume_from_checkpoint": True})
    with pytest.raises(RequestError, match=r"nowhere: no trainer_state\.json there"):
        make_run(tmp_path, model, data, {"resume_from_checkpoint": "nowhere"})
    copied(begun, tmp_path)
    with pytest.raises(RequestError, match="holds a run already, and resume_from_checkpoint is false"):
        make_run(tmp_path, model, data, {"resume_from_checkpoint": False})


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
    deadline = time.monotonic() + 400
    while len(checkpoints(output)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.137)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()
    last, damaged = newest_whole(output)
    assert damaged == []
    step = step_of(last)
    resumed = make_run(tmp_path, model, data, train={"max_steps": step + 2, "save_steps": 1}, allow_changed=True)
    assert train(resumed)["steps"] == step + 2
    assert not list(output.glob(".*"))
