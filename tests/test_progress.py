"""The progress line: a bar on a terminal, a line now and then elsewhere, nothing of what is over at once."""

import io

import pytest
from rich.console import Console

from glmspectra import progress
from glmspectra.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def log() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def test_a_log_gets_a_whole_line_every_so_often(clock):
    console = log()
    with ProgressLine("training", 1200, "steps", done=200, console=console) as line:
        for step in range(201, 401):
            clock[0] += 1
            line.update(step, "loss [0.5]")
    written = console.file.getvalue().splitlines()
    assert len(written) == 6  # 200 seconds, a line each 30
    assert written[0] == "training: 230 of 1,200 steps, loss [0.5], 16 min 10 s left"


def test_what_is_over_soon_or_quiet_says_nothing(clock):
    console = log()
    with ProgressLine("measuring", 10, console=console) as line:
        clock[0] += 29
        line.update(10)
    with ProgressLine("measuring", 10, quiet=True, console=console) as line:
        clock[0] += 60
        line.update(9)
        line.print("a line")
    assert console.file.getvalue() == ""


def test_the_caller_may_know_better_how_long_it_takes(clock):
    console = log()
    with ProgressLine("measuring", 4, "matrices", console=console) as line:
        clock[0] += 31
        line.advance(1, "2.00 GB/s", left=7500)
    assert console.file.getvalue() == "measuring: 1 of 4 matrices, 2.00 GB/s, 2 h 05 min left\n"


def test_lines_stand_above_the_bar_of_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressLine("[train]", 3, "steps", console=console) as line:
        line.update(2, "loss 0.5000")
        line.print("step 2: evaluation loss 0.4")
    text = console.file.getvalue()
    assert "step 2: evaluation loss 0.4\n" in text
    assert "[train]" in text
    assert "2 of 3 steps, loss 0.5000" in text
