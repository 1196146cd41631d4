"""Every command's help ends with a real call and what it really prints."""

import json
import re

import pytest

from glmspectra.cli.commands import MODULES
from glmspectra.cli.example import EXAMPLES, SKIPPED
from glmspectra.loop.demonstration import write_demo_settings
from tests.docs.documents import ROOT
from tests.docs.help_examples import (
    LONG,
    ORDER,
    TIME,
    alike,
    alike_lines,
    call_of,
    lines_of,
    printed_by,
    shown_by,
    words_of,
)
from tests.few_rows import keep_rows

COMMANDS = sorted(MODULES)


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        import torch

        patch.setattr(torch.cuda, "is_available", lambda: False)  # the examples were made on a CPU
        patch.setenv("COLUMNS", "80")
        yield patch


@pytest.fixture(scope="module")
def printed(patch, tmp_path_factory):
    """Command -> what its example prints: all of them in one folder, in their order."""
    patch.chdir(tmp_path_factory.mktemp("examples"))
    return {command: printed_by(call_of(command)) for command in ORDER}


def held(command: str, text: str) -> None:
    assert alike(lines_of(shown_by(command)), lines_of(text)), f"{command} prints\n{text}"


@pytest.mark.slow
@pytest.mark.parametrize("command", ORDER)
def test_an_example_prints_what_the_help_shows(command, printed):
    held(command, printed[command])


@pytest.mark.slow
def test_the_example_of_the_loop_prints_what_the_help_shows(printed):
    held("loop", printed_by(call_of("loop")))


@pytest.mark.slow
def test_the_demonstration_prints_the_lines_that_the_help_shows(patch, tmp_path, monkeypatch):
    """Shortened to two steps, so with other numbers and perhaps another verdict; the example is of the whole."""

    def short_settings(out):
        folder = write_demo_settings(out)
        keep_rows(out / "data", 24, 24)
        path = folder / "train_args.json"
        short = {"max_steps": 2, "eval_strategy": "no", "per_device_train_batch_size": 2}
        path.write_text(json.dumps(json.loads(path.read_text()) | short))
        return folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("glmspectra.loop.demonstration.write_demo_settings", short_settings)
    shown, said = lines_of(shown_by("demo")), lines_of(printed_by(call_of("demo")))
    verdict = [line.startswith("base:") for line in shown].index(True) + 3
    assert "uniform ranks of the same cost" in shown[verdict]
    assert "uniform ranks of the same cost" in said[verdict]
    del shown[verdict], said[verdict]
    assert [words_of(line) for line in shown] == [words_of(line) for line in said]


@pytest.mark.parametrize(("document", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_readme_shows_what_svd_prints(document, language, patch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```text\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    texts = [block[1], printed_by(["svd", "--layers", "all"], language)]
    shown, said = ([TIME.sub("TIME", line) for line in lines_of(text)] for text in texts)
    assert shown == said


def test_every_command_has_an_example_of_itself():
    assert sorted((*ORDER, *LONG)) == COMMANDS
    assert sorted(path.stem for path in EXAMPLES.iterdir()) == COMMANDS
    for command in COMMANDS:
        assert call_of(command)[0] == command
        assert any(line not in ("", SKIPPED) for line in lines_of(shown_by(command))), command


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_the_example_and_cuts_no_word(command, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = printed_by([command, "--help"])
    assert "…" not in text, "a word that is too long for its column"
    assert max(map(len, text.splitlines())) <= width
    example = text.partition(" Example\n")[2].split()
    assert example == ["$", "glmspectra", *call_of(command), *shown_by(command).split()]


def test_lines_are_alike_but_for_times_paths_and_last_digits():
    assert alike_lines("32 matrices, in 2.4 s on cpu.", "32 matrices, in 17.0 s on cpu.")
    assert alike_lines("merged into /a/glmspectra/nano: loss 4.047", "merged into /b/c/glmspectra/nano: loss 4.051")
    assert not alike_lines("loss 4.047", "loss 5.047")
    assert not alike_lines("36,864 parameters", "46,864 parameters")
    assert not alike_lines("tables: param_matrix/x", "report: param_matrix/x")
    assert alike(["a", SKIPPED, "d"], ["a", "b", "c", "d"])
    assert not alike(["a", SKIPPED], ["b", "a"])
    assert not alike(["a"], ["a", "b"])
