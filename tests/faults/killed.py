"""Runs a piece of work in a child process and kills it, by SIGKILL, before the nth thing that it does to a file.

The child is a fork of the process that runs the tests and must not be able to harm it: it has a session of its own, no
pipe or socket of its parent (a child that outlived a worker of pytest-xdist would keep that worker's channel open, and
the whole run waiting), ends with its parent, and ends by itself after LONGEST seconds.
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LONGEST = 500  # seconds: below the suite's own limit of a test
PR_SET_PDEATHSIG = 1  # of Linux's prctl
CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def run_until(
    work: Callable[[], object], event: int | None, count_file: Path | None = None, seconds: float | None = None
) -> int:
    """Fork, run `work` in the child, and kill it before its file event number `event` (from 1; None: never).

    File events are: opening a file for writing, rename, remove, making and removing a folder, fsync.

    Args:
        work: What to run; it must start no thread that the parent already holds.
        event: The number of the event.
        count_file: Where the child leaves how many events there were.
        seconds: Kill it after this time too.

    Returns:
        The exit status: 0, 1 after an exception, -9 when it was killed.
    """
    child = fork(work, event, count_file)
    ended = 0
    try:
        end = None if seconds is None else time.monotonic() + seconds
        while end is not None and not ended and time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        if not ended and end is None:
            ended, status = os.waitpid(child, 0)
    finally:
        if not ended:  # the time is over, or the test was ended while it waited
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def fork(work: Callable[[], object], event: int | None = None, count_file: Path | None = None) -> int:
    """The same without waiting: the number of the child."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _stand_alone(parent)
        _work_and_leave(work, event, count_file)
    return child


def _stand_alone(parent: int) -> None:
    """In the child: leave the parent's session, end when it ends, and let go of its pipes and sockets."""
    os.setsid()
    signal.alarm(LONGEST)  # a fork has no timers of its parent, and SIGALRM's handler of pytest-timeout none to tell
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(entry) > 2 and os.readlink(f"/proc/self/fd/{entry}").startswith(("pipe:", "socket:")):
                os.close(int(entry))


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
