"""Several examples in one row of at most `max_length` tokens."""

import bisect
from collections.abc import Sequence
from typing import Any


def pack_lengths(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put items of the given lengths into as few rows of `size` as best-fit decreasing finds.

    Best-fit decreasing needs at most 11/9 of the fewest rows plus one (Johnson 1973). Returns the indices of each
    row; an item longer than `size` gets a row of its own, as it stands.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in order:
        length = lengths[index]
        place = bisect.bisect_left(free, (length, -1))
        if place == len(free):
            rows.append([index])
            room, row = size - length, len(rows) - 1
        else:
            room, row = free.pop(place)
            rows[row].append(index)
            room -= length
        if room > 0:
            bisect.insort(free, (room, row))
    return rows


def pack_dataset(dataset: Any, size: int) -> Any:
    """A dataset of packed rows: input_ids, labels, position_ids (from 0 in each example), length, examples."""
    from datasets import Dataset, Features, Value
    from datasets import Sequence as ListOf

    ids, labels = dataset["input_ids"][:], dataset["labels"][:]
    lengths = [len(row) for row in ids]
    rows = pack_lengths(lengths, size)
    numbers = ListOf(Value("int32"))
    features = Features(
        {
            "input_ids": numbers,
            "labels": numbers,
            "position_ids": numbers,
            "length": Value("int32"),
            "examples": Value("int32"),
        }
    )
    table: dict[str, list[Any]] = {
        "input_ids": [[token for index in row for token in ids[index]] for row in rows],
        "labels": [[label for index in row for label in labels[index]] for row in rows],
        "position_ids": [[position for index in row for position in range(lengths[index])] for row in rows],
        "length": [sum(lengths[index] for index in row) for row in rows],
        "examples": [len(row) for row in rows],
    }
    return Dataset.from_dict(table, features=features)
