"""Which rows are trained on and which are evaluated on, and that none is both."""

import random

from glmspectra.tuning.data.row_store import RowStore
from glmspectra.tuning.data.rows import BadRow


def split_rows(rows: RowStore, fraction: float, seed: int) -> tuple[RowStore, RowStore]:
    """Keep about `fraction` of the rows for evaluation, the same ones for the same seed.

    Rows of one context stay on one side, so that nothing is evaluated on that was trained on. Both sides keep
    their order; each gets at least one context where there are two.
    """
    sizes: dict[bytes, int] = {}
    for context in rows.contexts:
        sizes[context] = sizes.get(context, 0) + 1
    order = list(sizes)
    random.Random(seed).shuffle(order)
    wanted, kept = round(fraction * len(rows)), 0
    valid: set[bytes] = set()
    for context in order[:-1]:  # one context at least stays in train
        if valid and kept + sizes[context] > wanted:
            continue
        valid.add(context)
        kept += sizes[context]
        if kept >= wanted:
            break
    sides = [
        [index for index, context in enumerate(rows.contexts) if (context in valid) is side] for side in (False, True)
    ]
    return rows.select(sides[0]), rows.select(sides[1])


def drop_duplicates(train: RowStore, valid: RowStore) -> tuple[RowStore, list[BadRow], int]:
    """Rows of `valid` without those that stand in `train` too (white space at the ends aside).

    Returns the rows that stay, the duplicates as bad rows, and how many of those that stay share a context with
    train but have another target: not a duplicate, but worth saying.
    """
    first = {key: index for index, key in reversed(list(enumerate(train.keys)))}
    contexts = set(train.contexts)
    kept, bad = [], []
    for index, key in enumerate(valid.keys):
        if key not in first:
            kept.append(index)
            continue
        row, twin = valid[index], train[first[key]]
        bad.append(BadRow(row.file, row.line, f"duplicate of line {twin.line} of {twin.file}, in train"))
    return valid.select(kept), bad, sum(valid.contexts[index] in contexts for index in kept)


def count_duplicates(rows: RowStore) -> int:
    """Rows that say what an earlier row says, white space at the ends aside."""
    return len(rows) - len(set(rows.keys))


def weighted(rows: RowStore, weight: float, seed: int) -> RowStore:
    """Each row `weight` times a pass: whole repetitions, and of the fraction that is left a share drawn by `seed`."""
    whole = int(weight)
    drawn = random.Random(seed).sample(range(len(rows)), round((weight - whole) * len(rows)))
    return rows.select([*(list(range(len(rows))) * whole), *sorted(drawn)])
