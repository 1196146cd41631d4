"""Progress of work that says by itself what it does, drawn on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yields progress(what, done, all), or None when quiet; one line or bar for each `what`, one after the other."""
    if quiet:
        yield None
        return
    from glmspectra.progress import ProgressLine

    lines: dict[str, ProgressLine] = {}

    def advance(what: str, done: int, count: int) -> None:
        if what not in lines:
            for line in lines.values():
                line.close()
            lines[what] = ProgressLine(what, count)
        lines[what].update(done)

    try:
        yield advance
    finally:
        for line in lines.values():
            line.close()
