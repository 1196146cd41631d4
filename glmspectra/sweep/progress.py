"""The progress of a sweep: matrices done, GB/s, time left by cost; only beyond two seconds."""

import time
from types import TracebackType
from typing import TYPE_CHECKING

from glmspectra.language import text
from glmspectra.progress import ProgressLine

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BEFORE_SHOWN = 2.0


class SweepProgress:
    """Counts matrices, bytes and cost; shows itself after `SECONDS_BEFORE_SHOWN`, unless quiet.

    The time left follows the cost done, not the matrices: a 27392 x 4096 matrix counts for what it takes.
    """

    def __init__(
        self, matrices: int, cost: float, quiet: bool = False, label: str = "", console: "Console | None" = None
    ):
        self.bytes_done = 0.0
        self.cost_done = 0.0
        self.cost = cost
        self._start = time.monotonic()
        self._line = ProgressLine(
            label or text("progress-measuring"),
            matrices,
            text("progress-matrices"),
            quiet=quiet,
            after=SECONDS_BEFORE_SHOWN,
            console=console,
        )

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()

    def advance(self, nbytes: float, cost: float) -> None:
        """One more matrix is done, of `nbytes` stored bytes."""
        self.bytes_done += nbytes
        self.cost_done += cost
        seconds = time.monotonic() - self._start
        left = seconds * (self.cost - self.cost_done) / self.cost_done if self.cost_done else None
        self._line.advance(1, f"{self.bytes_done / 1e9 / max(seconds, 1e-9):.2f} GB/s", left)
