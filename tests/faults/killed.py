"""Runs a piece of work in a child process and kills it, by SIGKILL, before the nth thing that it does to a file."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def run_until(work: Callable[[], object], event: int | None, count_file: Path | None = None) -> int:
    """Fork, run `work` in the child, and kill it before its file event number `event` (from 1; None: never).

    File events are: opening a file for writing, rename, remove, making and removing a folder, fsync.

    Args:
        work: What to run; it must start no thread that the parent already holds.
        event: The number of the event.
        count_file: Where the child leaves how many events there were.

    Returns:
        The exit status: 0, 1 after an exception, -9 when it was killed.
    """
    child = os.fork()
    if child == 0:
        _work_and_leave(work, event, count_file)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _work_and_leave(work: Callable[[], object], event: int | None, count_file: Path | None) -> None:
    seen = 0

    def hit() -> None:
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(name: str, arguments: tuple) -> None:
        writing = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing and not str(arguments[0]).startswith("/dev")) or name in CHANGING:
            hit()

    fsync = os.fsync

    def watched_fsync(file: int) -> None:
        hit()
        fsync(file)

    status = 1
    try:
        sys.addaudithook(watch)
        os.fsync = watched_fsync
        work()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if count_file is not None and event is None:
            number = seen
            count_file.write_text(str(number))
        sys.stderr.flush()
        os._exit(status)


def count_events(work: Callable[[], object], count_file: Path) -> int:
    """How many file events `work` has when it is left alone."""
    assert run_until(work, None, count_file) == 0
    return int(count_file.read_text())
