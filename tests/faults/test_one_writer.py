"""One process at a time writes a folder; what a dead one left is taken over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glmspectra.errors import RequestError
from glmspectra.files import WRITER, exclusive, write_text
from tests.faults.commands import Command

HOLD = """
import sys, time
from pathlib import Path
from glmspectra.files import exclusive
with exclusive(Path(sys.argv[1]), "train", beside=len(sys.argv) > 2):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path, *more: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.mark.parametrize("more", [(), ("beside",)])
def test_the_second_is_told_who_writes_and_since_when_and_a_dead_holder_is_no_holder(tmp_path, more):
    folder = tmp_path / "run"
    process = hold(folder, *more)
    try:
        with pytest.raises(RequestError) as refused, exclusive(folder, "svd", beside=bool(more)):
            pass
        said = str(refused.value)
        assert f"process {process.pid} on " in said
        assert "(train, since 20" in said
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with exclusive(folder, "svd", beside=bool(more)):
        pass
    assert not list(tmp_path.rglob(f"*{WRITER}")), "the lock's file goes with the block"


def test_the_folder_under_another_name_is_the_same_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        exclusive(tmp_path / "run", "train"),
        pytest.raises(RequestError, match="in use"),
        exclusive(tmp_path / "link", "train"),
    ):
        pass


def test_an_error_inside_frees_the_folder_and_a_moved_folder_keeps_its_own_lock(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "run", "train"):
        raise KeyError
    with exclusive(tmp_path / "run", "train"):
        (tmp_path / "run").rename(tmp_path / "old")
        with exclusive(tmp_path / "run", "train"):
            assert (tmp_path / "run" / WRITER).is_file()
    assert not (tmp_path / "run" / WRITER).exists()


@pytest.mark.parametrize(
    "note", ["", "[1]", '{"pid": 1', "[" * 4096, '{"pid": "x", "host": 1, "doing": 2, "since": 3}']
)
def test_a_holder_whose_note_is_not_one_is_another_process(tmp_path, note):
    with exclusive(tmp_path / "run", "train"):
        (tmp_path / "run" / WRITER).write_text(note)
        with pytest.raises(RequestError, match="another process"), exclusive(tmp_path / "run", "svd"):
            pass


def test_a_forked_helper_that_outlives_its_parent_holds_nothing(tmp_path):
    orphan = tmp_path / "pid"
    program = f"""
import os, signal, time
from pathlib import Path
from glmspectra.files import exclusive
with exclusive(Path({str(tmp_path / "run")!r}), "train"):
    if os.fork() == 0:
        Path({str(orphan)!r}).write_text(str(os.getpid()))
        time.sleep(600)
    while not Path({str(orphan)!r}).exists() or not Path({str(orphan)!r}).read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False, stdout=subprocess.DEVNULL)
    try:
        with exclusive(tmp_path / "run", "train"):
            pass
    finally:
        os.kill(int(orphan.read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_a_command_in_a_folder_that_another_writes_stops_with_status_2(tmp_path):
    first = Command(tmp_path / "log", "svd", "--quiet", "--no-report", "--out", tmp_path)
    assert first.wait() == 0, first.said()
    (folder,) = (tmp_path / "param_matrix").iterdir()
    process = hold(folder)
    try:
        for command in ("svd", "values"):
            refused = Command(tmp_path / "log", command, "--quiet", "--out", tmp_path)
            assert refused.wait() == 2
            assert refused.said().startswith("error: ")
            assert f"process {process.pid}" in refused.said()
            assert refused.said().count("\n") == 1
    finally:
        process.kill()
        process.wait()


def test_the_times_in_a_lock_are_readable(tmp_path):
    with exclusive(tmp_path / "run", "train"):
        text = (tmp_path / "run" / WRITER).read_text()
    assert time.strftime("%Y-%m-%d") in text


def test_a_file_written_again_takes_away_what_a_dead_process_left_of_it(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".page.html.{dead.pid}.partial", f".page.html.{os.getppid()}.partial", f".other.{dead.pid}.partial"):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "page.html", "whole")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f".other.{dead.pid}.partial", f".page.html.{os.getppid()}.partial", "page.html"])
