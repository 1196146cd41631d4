"""How the process ends: at once, with everything said and done that was registered for its end."""

import subprocess
import sys

import pytest

RUN = "import atexit, os, sys, threading, time\nfrom glmspectra.cli import main\n"


def ended(code: str, *arguments: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN + code + "\nmain.run()", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


def test_what_is_registered_for_the_end_is_done_and_nothing_is_freed_one_by_one():
    freed = "class Freed:\n    def __del__(self): os.write(1, b'freed')\nkept = Freed()\n"
    done = ended(freed + "atexit.register(print, 'registered')", "--version")
    assert done.returncode == 0
    assert done.stdout.endswith("registered\n")
    assert "freed" not in done.stdout


def test_a_thread_that_still_works_is_waited_for():
    done = ended("threading.Thread(target=lambda: (time.sleep(1), os.write(1, b'worked'))).start()", "--version")
    assert done.returncode == 0
    assert "worked" in done.stdout


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["svd", "--layers", "x"], 2), (["nothing"], 2)])
def test_the_status_is_that_of_the_command(arguments, status):
    assert ended("", *arguments).returncode == status


def test_an_error_nobody_foresaw_is_a_traceback_with_debug_and_one_sentence_without():
    fails = "def app(*args, **options): raise RuntimeError('unforeseen')\nmain.app = app"
    assert "Traceback" in ended(fails, "svd", "--debug").stderr
    plain = ended(fails, "svd")
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    assert "unforeseen" in plain.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_sentence(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        done = ended("", "--version", stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
