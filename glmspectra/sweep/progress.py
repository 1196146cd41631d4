"""The progress bar of a sweep: matrices done, GB/s, time left; on stderr, and only beyond two seconds."""

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BEFORE_SHOWN = 2.0


def time_left(seconds: float) -> str:
    """A duration as people read it: '40 s', '3 min 20 s', '2 h 05 min'."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


class SweepProgress:
    """Counts matrices, bytes and cost; shows itself after `SECONDS_BEFORE_SHOWN` on a terminal, unless quiet.

    The time left follows the cost done, not the matrices: a 27392 x 4096 matrix counts for what it takes.
    """

    def __init__(
        self, matrices: int, cost: float, quiet: bool = False, label: str = "", console: Console | None = None
    ):
        self.bytes_done = 0
        self.cost_done = 0.0
        self.cost = cost
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("matrices"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(label or "measuring", total=matrices, rate="", left="")
        hidden = quiet or not self._bar.console.is_terminal  # a log file needs no bar
        self._timer = None if hidden else threading.Timer(SECONDS_BEFORE_SHOWN, self._bar.start)
        if self._timer is not None:
            self._timer.daemon = True

    def __enter__(self) -> "SweepProgress":
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            if self._bar.live.is_started:  # stopping what never showed would print an empty line
                self._bar.stop()

    def advance(self, nbytes: int, cost: float) -> None:
        """One more matrix is done, of `nbytes` stored bytes."""
        self.bytes_done += nbytes
        self.cost_done += cost
        seconds = time.monotonic() - self._start
        left = seconds * (self.cost - self.cost_done) / self.cost_done if self.cost_done else 0.0
        self._bar.update(
            self._task,
            advance=1,
            rate=f"{self.bytes_done / 1e9 / max(seconds, 1e-9):.2f} GB/s",
            left=f"{time_left(left)} left",
        )
