"""Commands in processes of their own, forked from the one that runs the tests.

A process that begins by itself imports for 2 to 8 s before it works. Tests of that beginning, of its end, of the
terminal's characters and of launchers start theirs with `subprocess`.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from tests.faults.killed import fork


class Command:
    """A command under way, which writes what it says to a file.

    Args:
        log: That file.
        arguments: The command's.
        environment: What it has beside this process's environment.
    """

    def __init__(self, log: Path, *arguments: object, **environment: str):
        self.log = log
        self.status: int | None = None
        self.pid = fork(lambda: _run(log, [*map(str, arguments)], environment))

    def poll(self) -> int | None:
        """The exit status, minus the signal where one ended it; None while it runs."""
        return self._look(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait for its end; the exit status."""
        return self._look(0)

    def kill(self) -> None:
        """End it by SIGKILL, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def said(self) -> str:
        """What it has said so far, stdout and stderr together."""
        return self.log.read_text(encoding="utf-8")

    def _look(self, how: int) -> int | None:
        if self.status is None:
            ended, status = os.waitpid(self.pid, how)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status


def _run(log: Path, arguments: list[str], environment: dict[str, str]) -> None:
    from glmspectra.cli.main import main

    os.environ.update(environment)
    sys.stdout = sys.stderr = log.open("w", buffering=1, encoding="utf-8")
    for stream in (1, 2):  # what libraries write past Python
        os.dup2(sys.stdout.fileno(), stream)
    main(arguments)


def begin_two(folder: Path, *arguments: object) -> list[Command]:
    """A command as two processes, as torchrun would start it, but without torchrun, which would end both for one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    logs = [folder / f"log-{port}-{rank}" for rank in range(2)]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Command(logs[rank], *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]
