"""Which rows are trained on and which are evaluated on, and that none is both."""

import random

from glmspectra.tuning.data.read import Rows
from glmspectra.tuning.data.rows import BadRow, Row


def take_bad(rows: Rows) -> tuple[list[Row], list[BadRow]]:
    """The rows that can be used, and those that cannot, each in order."""
    return [row for row in rows if isinstance(row, Row)], [row for row in rows if isinstance(row, BadRow)]


def split_rows(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Keep about `fraction` of the rows for evaluation, the same ones for the same seed.

    Rows of one context stay on one side, so that nothing is evaluated on that was trained on. Both sides keep
    their order; each gets at least one context where there are two.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_context(row), []).append(row)
    order = list(groups)
    random.Random(seed).shuffle(order)
    wanted, kept = round(fraction * len(rows)), 0
    valid: set[str] = set()
    for context in order[:-1]:  # one context at least stays in train
        if valid and kept + len(groups[context]) > wanted:
            continue
        valid.add(context)
        kept += len(groups[context])
        if kept >= wanted:
            break
    train_rows = [row for row in rows if _context(row) not in valid]
    return train_rows, [row for row in rows if _context(row) in valid]


def drop_duplicates(train: list[Row], valid: list[Row]) -> tuple[list[Row], list[BadRow], int]:
    """Rows of `valid` without those that stand in `train` too (white space at the ends aside).

    Returns the rows that stay, the duplicates as bad rows, and how many of those that stay share a context with
    train but have another target: not a duplicate, but worth telling.
    """
    seen = {_key(row): row for row in reversed(train)}
    contexts = {_context(row) for row in train}
    kept, bad = [], []
    for row in valid:
        twin = seen.get(_key(row))
        if twin is None:
            kept.append(row)
        else:
            bad.append(BadRow(row.file, row.line, f"duplicate of line {twin.line} of {twin.file}, in train"))
    return kept, bad, sum(_context(row) in contexts for row in kept)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(text.strip() for _, text in row.turns)


def _context(row: Row) -> str:
    return "\n".join(text.strip() for role, text in row.turns if role != "assistant")
