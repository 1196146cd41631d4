"""What a person sees when something is wrong: one sentence, whatever the characters, the terminal, the environment."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.cli.console import printable
from glmspectra.cli.failures import interruption, sentence
from glmspectra.errors import RequestError
from glmspectra.json_files import write_json
from glmspectra.launch import Launch, read_launch
from tests.faults.commands import Command


def run(*arguments, **environment):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "RANK", "WORLD"))}
    command = [sys.executable, "-m", "glmspectra", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=env | {"OMP_NUM_THREADS": "1"} | environment)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "0"}, "RANK and WORLD_SIZE are not set"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "cannot be together"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' of the environment is no number of processes"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "cannot be together"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "is no number of processes"),
    ],
)
def test_half_an_environment_of_a_launcher_is_refused(environment, sentence, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert read_launch() == Launch()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=sentence):
        read_launch()


def test_one_process_and_two_of_a_launcher_are_understood(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert read_launch() == Launch(0, 1, 0)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert read_launch() == Launch(3, 4, 0)
    assert not read_launch().first


def test_what_a_terminal_would_obey_is_written_out():
    hostile = "a\x1b[31mred\x07\x9b2J\u202eabc\ud800\u2028[bold]²\n中"
    assert printable(hostile) == "a\\x1b[31mred\\x07\\x9b2J\\u202eabc\\ud800\\u2028[bold]²\n中"


def test_json_with_control_characters_is_json_once_written(tmp_path):
    value = {"\x7f\x93": ["\x9f\ufffe", "\x1b[2J", "\\\x85"]}
    assert json.loads(write_json(tmp_path / "value.json", value).read_text(encoding="utf-8")) == value


HOSTILE = [
    "model.layers.0.[/]bold[red].weight",
    "model.layers.²².mlp.up_proj.weight",
    "model.layers.12345678901234567890.mlp.up_proj.weight",
    "model.layers.1.\x1b[2J\x07.weight",
    "model.layers.2.:smile:<b>&\"'.weight",
    "model.layers.3.\u202eabc.weight",
    "model.layers.4.$\\frac$.weight",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "[red]x"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(12, 8, generator=generator) for name in HOSTILE}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_names_are_shown_as_they_are_and_obeyed_by_nothing(hostile, tmp_path):
    done = run("inspect", "--model", hostile, "--matrices", "all")
    assert done.returncode in (0, 2), done.stderr
    assert b"Traceback" not in done.stderr
    for stream in (done.stdout, done.stderr):
        assert b"\x1b[2J" not in stream
        assert b"\x07" not in stream
    svd = Command(tmp_path / "log", "svd", "--model", hostile, "--layers", "all", "--out", tmp_path, "--svg")
    assert svd.wait() == 0, svd.said()
    assert "Traceback" not in svd.said()
    assert "not foreseen" not in svd.said()
    assert "\x1b[2J" not in svd.said()
    from xml.etree import ElementTree

    pictures = list(tmp_path.rglob("*.svg"))
    assert pictures
    for picture in pictures:
        ElementTree.parse(picture)
    page = next(tmp_path.rglob("reports/*/index.html")).read_text(encoding="utf-8")
    assert '<b>&"' not in page
    assert "\x1b" not in page


@pytest.mark.slow
def test_a_terminal_of_ascii_gets_every_result(tmp_path):
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("inspect", "--lang", "zh", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    done = run("inspect", "--json", **ascii_only)
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert json.loads(done.stdout)


def test_an_error_on_a_terminal_of_ascii_is_one_sentence(tmp_path):
    done = run("inspect", "--model", tmp_path / "中文", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 2
    assert b"\\u4e2d\\u6587" in done.stderr
    assert done.stderr.isascii()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_folder_whose_name_is_not_utf8_is_measured(tmp_path):
    from tests.sweep.small_checkpoint import write_small_checkpoint

    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    write_small_checkpoint(tmp_path / "model", layers=1)
    os.rename(tmp_path / "model", folder)
    out = os.fsencode(tmp_path) + b"/out\xff"
    command = [sys.executable, "-m", "glmspectra", "svd", "--layers", "all", "--model", folder, "--out", out]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run([*command, "--json"], capture_output=True)
    assert json.loads(again.stdout)["measured"] == 0
    missing = subprocess.run([*command[:4], "--model", folder + b"-"], capture_output=True)
    assert missing.returncode == 2
    assert missing.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("error", "words", "status"),
    [
        (OSError(28, "No space left on device"), "the disk is full", 1),
        (OSError("a library's own words"), "cannot be read or written: a library's own words", 1),
        (PermissionError(13, "Permission denied", "/x"), "/x cannot be read or written: its folder is read-only", 1),
        (MemoryError(), "not enough memory", 1),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory", 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory (CUDA out of", 1),
        (ValueError("embedded null byte"), "null character", 2),
        (KeyError("surprise"), "not foreseen", 1),
        (RequestError("plain"), "plain", 2),
    ],
)
def test_errors_of_every_kind_become_one_sentence(error, words, status):
    said, found = sentence(error)
    assert words in said
    assert found == status
    assert "\n" not in said


def test_a_full_disk_is_recognized_in_the_words_of_libraries(tmp_path):
    from safetensors import SafetensorError

    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "the disk is full" in sentence(error)[0]


def test_the_words_at_an_interruption_are_true_of_the_command():
    assert "goes on from there" in interruption(["--debug", "svd", "--quiet"])
    assert "begins anew" in interruption(["merge", "x"])
    assert "last checkpoint" in interruption(["train"])
    assert interruption([]).startswith("interrupted: ")


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "glmspectra", "inspect", "--matrices", "all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert b"Traceback" not in said
    assert b"error" not in said
