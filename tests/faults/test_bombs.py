"""Files made to cost time or memory, or to wait for ever, are refused by a bound, in moments.

No test asserts a time: one that hangs is ended by the suite's timeout, one that takes the memory by the limit that the
child process sets itself.
"""

import json
import os
import resource
import zipfile
from pathlib import Path

import pytest

from glmspectra.checkpoint import open_checkpoint
from glmspectra.errors import CheckpointError, GlmspectraError
from glmspectra.figures.training_log import read_training
from glmspectra.json_files import read_json
from glmspectra.store import read_manifest
from tests.faults.killed import run_until
from tests.sweep.small_checkpoint import write_small_checkpoint

MEMORY = 3 << 30


def refused(work) -> None:
    """`work` ends with an error of our own, within MEMORY bytes above what this process has."""

    def limited():
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
        with pytest.raises(GlmspectraError):
            work()

    assert run_until(limited, None) == 0


def pickled(path, body: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", body)
        archive.writestr("x/version", "3\n")


@pytest.mark.parametrize(
    ("name", "opcodes"),
    [
        pytest.param("marks", b"\x80\x02" + b"(" * 40_000_000 + b".", marks=pytest.mark.slow),
        pytest.param("lists", b"\x80\x02" + b"]" * 40_000_000 + b".", marks=pytest.mark.slow),
        pytest.param("twice", b"\x80\x02]" + b"2" * 40_000_000 + b".", marks=pytest.mark.slow),
        ("nested", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    ],
)
def test_a_pickle_of_millions_of_opcodes(tmp_path, name, opcodes):
    path = tmp_path / "pytorch_model.bin"
    pickled(path, opcodes)
    refused(lambda: open_checkpoint(path))
    path.write_bytes(opcodes)  # the form of before 2020 has no archive round it
    refused(lambda: open_checkpoint(path))


@pytest.mark.slow
def test_a_pickle_that_unpacks_to_gigabytes(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w") as member:
        for _ in range(64):
            member.write(b"(" * (1 << 24))
    refused(lambda: open_checkpoint(path))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "config.json", "x.safetensors"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    folder = write_small_checkpoint(tmp_path / "model", layers=1)
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    else:
        (folder / name).unlink()
    os.mkfifo(folder / name)
    for path in (folder,) if name == "config.json" else (folder, folder / name):
        with pytest.raises(GlmspectraError):
            open_checkpoint(path)


def test_a_pipe_is_no_json_file(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"num_layers": ' + b"9" * 5000 + b"}",
        b'{"num_layers": 1e999}',
        b'{"num_layers": NaN}',
        b'{"num_layers": 3, "num_layers": 4}',
        b'{"model_type": "\\ud800"}',
        b'{"model_type": "\xff"}',
        b"\x00" * 100,
        b'"text"',
        b"",
    ],
)
def test_json_that_is_none_or_means_nothing(tmp_path, content):
    folder = write_small_checkpoint(tmp_path / "model", layers=1)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(GlmspectraError, match=r"config\.json"):
        open_checkpoint(folder)
    for name, read in (("manifest.json", read_manifest), ("trainer_state.json", read_training)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GlmspectraError, match=name):
            read(tmp_path)


def test_a_json_file_beyond_the_bound_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(300 << 20)  # sparse: nothing is written
    with pytest.raises(CheckpointError, match="at most 268,435,456 are read"):
        read_json(path)


def test_a_configuration_of_a_thousand_million_layers_costs_nothing_to_look_at(tmp_path):
    from glmspectra.cli.main import main

    folder = write_small_checkpoint(tmp_path / "model", layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 10**9, "num_attention_heads": 10**9}))

    def look():
        with pytest.raises(SystemExit) as left:
            main(["inspect", "--model", str(folder), "--quiet"])
        assert left.value.code in (0, 1, 2)
        raise CheckpointError("looked at")

    refused(look)


def test_a_model_that_the_configuration_makes_enormous_is_not_built(tmp_path):
    from glmspectra.chatglm2 import convert_folder

    folder = write_small_checkpoint(tmp_path / "model", layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 10**9}))
    refused(lambda: convert_folder(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
