"""What a command does not need is not imported: each runs in a process of its own, which tells what it loaded."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
HEAVY = ("torch", "transformers", "peft", "datasets", "scipy", "matplotlib", "pandas")
UNUSED = ("scipy.optimize", "scipy.integrate", "charset_normalizer.cd")  # most of what scipy takes
LIGHTER = ("numpy", "pyarrow", "jinja2", "rich", "fluent")
CODE = f"""
import atexit, sys
from glmspectra.cli.main import run
wanted = {(*HEAVY, *UNUSED, *LIGHTER)!r}
atexit.register(lambda: print("loaded:", *[name for name in wanted if name in sys.modules]))
run()
"""
MATRICES = ("--model", "nano", "--layers", "0-1")


def loaded(folder, *arguments, status=0, among=HEAVY):
    """The libraries that a command loaded."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == status, done.stderr
    return [name for name in done.stdout.splitlines()[-1].removeprefix("loaded:").split() if name in among]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with settings files, and tables of two layers of nano; what measuring them loaded."""
    folder = tmp_path_factory.mktemp("measured")
    assert loaded(folder, "init") == []
    return folder, loaded(folder, "svd", *MATRICES, "--no-report", "--device", "cpu", among=(*HEAVY, *UNUSED))


def test_measuring_loads_what_computes(measured):
    assert {"torch", "scipy"} <= set(measured[1])  # the walk sees what is loaded
    assert not set(UNUSED) & set(measured[1])


@pytest.mark.parametrize(
    "command",
    [
        ("svd", *MATRICES),  # all finished before
        ("suggest-rank", "--model", "nano"),
        ("report",),
    ],
    ids=lambda command: command[0],
)
def test_work_on_stored_tables_loads_pandas_alone(measured, command):
    assert loaded(measured[0], *command) == ["pandas"]


@pytest.mark.parametrize(
    "command",
    [("--version",), ("inspect", "--model", "nano"), ("suggest-rank", "--list")],
    ids=lambda command: command[0],
)
def test_what_is_told_from_headers_or_words_loads_none(measured, command):
    assert loaded(measured[0], *command) == []


def test_a_wrong_setting_is_refused_before_anything_is_loaded(measured):
    assert loaded(measured[0], "train", "--set", "no_such_key=3", status=2, among=(*HEAVY, *LIGHTER)) == []


def test_a_page_that_stands_is_not_drawn_again(measured):
    assert "jinja2" in loaded(measured[0], "svd", *MATRICES, "--out", "drawn", among=LIGHTER)
    assert "jinja2" not in loaded(measured[0], "svd", *MATRICES, "--out", "drawn", among=LIGHTER)
