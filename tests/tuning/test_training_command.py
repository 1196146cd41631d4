"""`glmspectra train` as people run it: once more after it stopped, stopped early, read on the way, in a log."""

import json
import logging
import warnings

import pytest
import torch
from safetensors.torch import load_file

from glmspectra.cli.failures import interruption
from glmspectra.cli.libraries import library_log
from glmspectra.cli.main import main
from glmspectra.errors import ConfigError
from tests.tuning.tiny_run import make_run, write_args


@pytest.fixture
def command(capsys):
    """Runs the command as the shell would: (exit status, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(leaving.value.code or 0), said.out, said.err

    return run


def test_the_same_command_twice(tmp_path, model, data, command):
    args = write_args(tmp_path / "args", model, data, train={"max_steps": 3})
    line = ("train", "--args", args, "--device", "cpu", "--no-report")
    status, out, err = command(*line)
    assert status == 0
    assert "Loading weights" not in err
    assert "Warning" not in err
    assert not [text for text in err.splitlines() if "/site-packages/" in text]
    assert out.startswith("lora: 3 steps, training loss ")
    status, again, _ = command(*line)
    assert status == 0
    assert (
        again
        == f"{tmp_path / 'run'} holds this run, finished before; --overwrite moves it aside and begins anew.\n{out}"
    )
    status, _, err = command(*line, "--set", "lora.lora_alpha=5", "--set", "train.learning_rate=1e-3")
    assert status == 2
    assert "began with other settings: lora.lora_alpha: 5, was 8; train.learning_rate: 0.001, was 0.01." in err
    status, out, _ = command(*line, "--set", "lora.lora_alpha=5", "--overwrite", "--json")
    assert status == 0
    assert json.loads(out)["steps"] == 3
    assert (tmp_path / "run.1" / "final_adapter").is_dir()


def test_training_stops_early_and_keeps_the_best(tmp_path, model, data, command):
    changes = {
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "learning_rate": 2.0,
        "max_grad_norm": 100.0,
    }
    finetune = {"early_stopping_patience": 3, "eval_samples": 2, "eval_samples_max_new_tokens": 8}
    args = write_args(tmp_path / "args", model, data, finetune, train=changes)
    status, out, err = command("train", "--args", args, "--device", "cpu", "--no-report", "--json")
    assert status == 0, err
    result = json.loads(out)
    log = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    evaluated = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    best = min(evaluated, key=evaluated.get)
    assert result["steps"] == best + 6 < 40
    assert (result["best_step"], result["best_eval_loss"]) == (best, evaluated[best])
    adapters = [
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "run/final_adapter", tmp_path / f"run/checkpoint-{best}/LoraAdapter")
    ]
    assert all(torch.equal(adapters[0][name], value) for name, value in adapters[1].items())
    samples = [json.loads(line) for line in (tmp_path / "run/eval_samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in samples] == [step for step in evaluated for _ in range(2)]
    rows = {row["context"]: row["target"] for row in map(json.loads, (data / "valid.jsonl").open(encoding="utf-8"))}
    assert all(rows[line["context"].strip()] == line["reference"] for line in samples)
    assert {"step", "context", "reference", "answer"} == set(samples[0])


def test_early_stopping_without_evaluations_is_refused(tmp_path, model, data):
    with pytest.raises(ConfigError, match="early_stopping_patience counts evaluations, and there are none"):
        make_run(tmp_path, model, data, {"early_stopping_patience": 2})


def test_what_libraries_say_is_kept_in_a_file_once_its_folder_is_there(tmp_path, capsys):
    path = tmp_path / "run" / "libraries.log"
    with warnings.catch_warnings(), library_log(path):
        warnings.simplefilter("always")
        logging.getLogger("transformers.trainer").warning("a default is used")
        path.parent.mkdir()
        warnings.warn("an old name", FutureWarning, stacklevel=1)
        logging.getLogger("peft").error("something is wrong")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [text in line for text, line in zip(("a default", "an old name", "wrong"), lines, strict=True)] == [True] * 3
    assert capsys.readouterr().err == "something is wrong\n"
    assert logging.getLogger("transformers").handlers != []


def test_the_words_at_an_interruption_are_those_of_the_command():
    assert "goes on from the last checkpoint" in interruption(["train", "--args", "args_file"])
    assert "goes on from there" in interruption(["svd", "--layers", "all"])
    for line in (["evaluate"], ["chat", "a"], ["train", "--dry-run"], ["train", "--find-lr"]):
        assert interruption(line) == "interrupted: nothing was written yet; the same command begins anew."
