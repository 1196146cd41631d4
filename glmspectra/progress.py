"""How far a long work is, on stderr: a bar on a terminal; elsewhere a line now and then, so that a log tells it too."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from glmspectra.language import clauses, text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 30.0


def time_left(seconds: float) -> str:
    """A duration as people read it: '40 s', '3 min 20 s', '2 h 05 min'."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return text("progress-seconds", seconds=seconds)
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return text("progress-minutes", minutes=minutes, seconds=f"{seconds:02d}")
    hours, minutes = divmod(minutes, 60)
    return text("progress-hours", hours=hours, minutes=f"{minutes:02d}")


def bytes_text(count: float) -> str:
    """So many bytes as people read them: '512 B', '3.4 MiB', '12.5 GiB'."""
    power = 0
    while count >= 1024 and power < 3:
        count, power = count / 1024, power + 1
    unit = ("B", "KiB", "MiB", "GiB")[power]
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


class ProgressLine:
    """Counts what is done of one work.

    Args:
        title: What is being done: "training".
        total: How much there is of it.
        unit: What is counted: "steps".
        done: How much was there before; the time left follows what is done since.
        quiet: Say nothing.
        after: Seconds before anything is said; work that is over sooner says nothing.
        every: Seconds between two lines where stderr is no terminal.
        number: How a count is written.
        console: Where to, by default stderr.
    """

    def __init__(
        self,
        title: str,
        total: float,
        unit: str = "",
        *,
        done: float = 0,
        quiet: bool = False,
        after: float = 0.0,
        every: float = SECONDS_BETWEEN_LINES,
        number: Callable[[float], str] = lambda count: f"{count:,}",
        console: "Console | None" = None,
    ):
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.quiet, self.every, self.number = quiet, every, number
        self.said = ""
        self._left: float | None = None
        self._first, self._start = done, time.monotonic()
        self._last_line = self._start
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None
        if quiet:
            return
        if console is None:
            from rich.console import Console

            console = Console(stderr=True)
        self.console = console
        if console.is_terminal:
            self._bar = self._make_bar()
            self._timer = threading.Timer(after, self._bar.start)
            self._timer.daemon = True
            self._timer.start() if after else self._bar.start()

    def update(self, done: float, said: str | None = None, left: float | None = None) -> None:
        """`done` of the total is done.

        Args:
            done: Of the total.
            said: Further figures to show, from now on.
            left: Seconds that are left, where the caller knows better than by what was counted.
        """
        self.done, self._left = done, left
        self.said = self.said if said is None else said
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, said=self._figures())
        elif time.monotonic() - self._last_line >= self.every:
            self._last_line = time.monotonic()
            self.print(text("progress-line", title=self.title, figures=self._figures()))

    def advance(self, more: float, said: str | None = None, left: float | None = None) -> None:
        """`more` is done than before; the rest as `update`."""
        self.update(self.done + more, said, left)

    def print(self, line: str) -> None:
        """One line that stays, above the bar."""
        if not self.quiet:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """As the caller said, or by what was done since the beginning; None before anything was."""
        if self._left is not None:
            return self._left
        done = self.done - self._first
        return (time.monotonic() - self._start) * (self.total - self.done) / done if done > 0 else None

    def close(self) -> None:
        """Take the bar away."""
        if self._timer is not None:
            self._timer.cancel()
            with suppress(RuntimeError):  # it was never started
                self._timer.join()
        if self._bar is not None and self._bar.live.is_started:  # stopping what never showed prints an empty line
            self._bar.stop()
        self._bar, self.quiet = None, True

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _figures(self) -> str:
        done, total = self.number(self.done), self.number(self.total)
        parts = [text("progress-of", done=done, all=total, unit=self.unit).strip(), self.said]
        left = self.seconds_left()
        if left is not None:
            parts.append(text("progress-left", time=time_left(left)))
        return clauses(part for part in parts if part)

    def _make_bar(self) -> "Progress":
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[said]}", markup=False),
        )
        bar = Progress(*columns, console=self.console, transient=True)
        self._task = bar.add_task(self.title, total=self.total, completed=int(self.done), said=self._figures())
        return bar
