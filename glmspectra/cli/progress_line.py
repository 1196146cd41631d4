"""A progress bar for work that counts what is done, drawn on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yields progress(what, done, all), or None when quiet; one bar for each `what`."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from glmspectra.cli.console import stderr

    tasks: dict[str, int] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:

        def advance(what: str, done: int, count: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=count)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield advance
