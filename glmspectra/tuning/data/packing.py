"""Several examples in one row of at most `max_length` tokens."""

import bisect
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmspectra.tuning.data.cache import BATCH, write_dataset


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
        fit = bisect.bisect_left(free, (length, -1))
        if fit == len(free):
            rows.append([index])
            room, row = size - length, len(rows) - 1
        else:
            room, row = free.pop(fit)
            rows[row].append(index)
            room -= length
        if room > 0:
            bisect.insort(free, (room, row))
    return rows


def pack_dataset(dataset: Any, size: int, folder: Path | None = None) -> Any:
    """A dataset of packed rows: input_ids, labels, position_ids (from 0 in each example), length, examples.

    The rows go to a file in a temporary folder inside `folder`, which lasts as long as the dataset.
    """
    from datasets import Dataset

    lengths = dataset["length"][:] if "length" in dataset.column_names else [len(row) for row in dataset["input_ids"]]
    rows = pack_lengths(lengths, size)
    own = Path(tempfile.mkdtemp(prefix="glmspectra-packed-", dir=folder if folder and folder.is_dir() else None))
    lists = ("input_ids", "labels", "position_ids")
    batches = (_packed(dataset, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))
    write_dataset(own / "packed.arrow", batches, ("length", "examples"), lists)
    packed = Dataset.from_file(str(own / "packed.arrow"))
    weakref.finalize(packed, shutil.rmtree, own, ignore_errors=True)
    return packed


def _packed(dataset: Any, rows: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """Packed rows as columns."""
    table: dict[str, list[Any]] = {"input_ids": [], "labels": [], "position_ids": [], "length": [], "examples": []}
    for row in rows:
        examples = [dataset[index] for index in row]
        ids = [token for example in examples for token in example["input_ids"]]
        table["input_ids"].append(ids)
        table["labels"].append([label for example in examples for label in example["labels"]])
        table["position_ids"].append([at for example in examples for at in range(len(example["input_ids"]))])
        table["length"].append(len(ids))
        table["examples"].append(len(row))
    return table
