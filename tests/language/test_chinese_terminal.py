"""Every command, spoken to in Chinese on the embedded model: what it prints is Chinese but for technical names."""

import json
import re
from pathlib import Path

import pytest

from glmspectra.cli import main as command_line
from glmspectra.language import catalogue
from tests.few_rows import keep_rows

# What is English in every language: what can be typed or lies on a disk, and names of the field.
NOT_WORDS = re.compile(
    r"`[^`]*`"  # code
    r"|\S*[/\\]\S*"  # paths
    r"|--[a-z-]+(?:[= ]\S+)?"  # options
    r"|(?:glmspectra|pip install|apt install) .*"  # commands
    r"|\b[\w-]+(?:[._:=-][\w-]+)+\b"  # names of weights, criteria, files, keys with values
)
SENTENCE = re.compile(r"\b[A-Za-z]*[a-z]{2,}(?:[ ,]+[a-z]{2,}){1,}\b")
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture
def speak(tmp_path, monkeypatch, capsys):
    """Runs a command in Chinese in a folder of its own; its stdout and stderr, checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(catalogue, "_chosen", "auto")

    def run(*arguments: object, exit_status: int | None = None) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            command_line.main([*map(str, arguments), "--lang", "zh"])
        printed = capsys.readouterr()
        said = printed.out + printed.err
        assert left.value.code in ((0, None) if exit_status is None else (exit_status,)), said
        assert CHINESE.search(said), f"{arguments}: {said}"
        assert not english(said), f"{arguments}: {english(said)}"
        return said

    return run


def english(said: str) -> list[str]:
    """Runs of two English words or more that are no technical names."""
    return [found for line in said.splitlines() for found in SENTENCE.findall(NOT_WORDS.sub(" ", line))]


def test_english_is_seen():
    assert english("3 个矩阵, 2 of them finished before") == ["of them finished before"]
    assert english("drawing the report ...") == ["drawing the report"]
    assert not english("秩：args_file/ranks.json（glmspectra train --ranks args_file/ranks.json）")
    assert not english("按 delta-threshold 得到的秩：float32 下 0.4 MiB，预算 like:r=8")


def test_commands_that_measure_speak_chinese(speak):
    speak("init")
    said = speak("inspect")
    assert "存储类型" in said
    speak("inspect", "--tensors", "--layers", "0")
    assert "中位数" in speak("values", "--layers", "0", "--no-report", "--device", "cpu")
    speak("svd", "--layers", "0", "--device", "cpu")
    said = speak("svd", "--layers", "0-1", "--device", "cpu", "--export-jsonl", "--no-report")
    assert "先前已完成" in said
    tables = next(Path("param_matrix").iterdir())
    speak("report", tables)
    speak("suggest-rank", "--device", "cpu", "--no-report")
    speak("suggest-rank", "--criterion", "uniform", "--no-report")
    speak("convert", "--out", "converted")


def test_doctor_speaks_chinese(speak, monkeypatch):
    with pytest.raises(SystemExit):
        command_line.main(["doctor", "--json"])
    speak("doctor", exit_status=None if _is_well() else 1)


def _is_well() -> bool:
    from glmspectra.cli.doctor import BAD, packages

    return not any(check.state == BAD for check in packages())


@pytest.mark.slow
def test_commands_that_train_speak_chinese(speak):
    speak("init")
    keep_rows(Path("data"), 24, 8)
    for file, changed in (
        ("train", {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "eval_strategy": "steps"}),
        ("finetune", {"max_length": 64, "valid_fraction": 0.05}),
    ):
        path = Path(f"args_file/lora/{file}_args.json")
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    settings = ("--args", "args_file/lora", "--device", "cpu")
    speak("train", *settings, "--dry-run")
    speak("train", *settings, "--find-lr", "--lr-steps", "2")
    speak("train", *settings, "--out", "run")
    assert "先前已完成" in speak("train", *settings, "--out", "run")
    adapter = "run/final_adapter"
    speak("delta", "nano", "run", "--against-base", "--no-report", "--device", "cpu")
    speak("delta", adapter, "--compare", adapter, "--no-report", "--device", "cpu")
    speak("evaluate", *settings, "--adapter", adapter, "--limit", "4", "--samples", "1", "--max-new-tokens", "4")
    speak("merge", adapter, "--out", "merged", "--verify")
    speak("squeeze", adapter, "--budget", "like:r=2", "--out", "small")
    Path("questions.jsonl").write_text('{"context": "头晕怎么办？"}\n', encoding="utf-8")
    speak("infer", "questions.jsonl", "--out", "answers.jsonl", "--adapter", adapter, "--max-new-tokens", "4")
    speak("svd", "--no-report", "--device", "cpu")
    speak("suggest-rank", *settings, "--pilot", "2", "--pilot-seeds", "2", "--no-report")
    speak("report", "--training", "run")


@pytest.mark.slow
def test_the_loop_speaks_chinese(speak):
    speak("init")
    keep_rows(Path("data"), 24, 8)
    short = [
        word
        for key in ("train.max_steps=2", "train.eval_strategy=no", "finetune.max_length=64", "train.save_strategy=no")
        for word in ("--set", key)
    ]
    loop = ("loop", "--args", "args_file/lora", "--pilot-steps", "2", "--samples", "1", "--device", "cpu", *short)
    said = speak(*loop)
    assert "均匀秩" in said
    assert "先前已完成" in speak(*loop)
