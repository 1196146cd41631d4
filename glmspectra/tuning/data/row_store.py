"""Rows on disk: a million of them take no more memory than their keys, some 120 bytes each."""

import array
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from glmspectra.tuning.data.rows import Row

IN_MEMORY = 16 << 20  # bytes that are kept in memory before they go to the disk


class RowStore(Sequence[Row]):
    """A sequence of rows that can be added to, and of which parts can be chosen without a copy.

    Attributes:
        keys: Of each row a digest of all its texts, white space at the ends aside, as of `key`.
        contexts: Of each row a digest of the texts that are no answers.
        prompt_types: (pair, template, whether a system text is there) of any row.
    """

    def __init__(self, rows: Iterable[Row] = (), folder: Path | None = None):
        self.folder = folder
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115 (gone with the store)
        self._ends = array.array("q", [0])
        self._chosen: Sequence[int] | None = None
        self.keys: list[bytes] = []
        self.contexts: list[bytes] = []
        self.prompt_types: set[tuple[bool, str, bool]] = set()
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        if self._chosen is not None:
            raise ValueError("rows are added to a whole store only")
        values = (row.file, row.line, row.turns, row.pair, row.silent, row.tools, row.template)
        self._file.seek(self._ends[-1])
        written = self._file.write(json.dumps(values, ensure_ascii=False).encode())
        self._ends.append(self._ends[-1] + written)
        self.keys.append(key(row))
        self.contexts.append(context_key(row))
        self.prompt_types.add((row.pair, row.template, row.turns[0][0] == "system"))

    def select(self, indices: Iterable[int]) -> "RowStore":
        """The rows of these indices, in this order; an index may stand several times."""
        chosen = array.array("q", indices)
        part = object.__new__(RowStore)
        part.folder, part.prompt_types, part._file, part._ends = self.folder, self.prompt_types, self._file, self._ends
        part._chosen = chosen if self._chosen is None else array.array("q", (self._chosen[index] for index in chosen))
        part.keys = [self.keys[index] for index in chosen]
        part.contexts = [self.contexts[index] for index in chosen]
        return part

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        at = at if self._chosen is None else self._chosen[at]
        self._file.seek(self._ends[at])
        file, line, turns, pair, silent, tools, template = json.loads(
            self._file.read(self._ends[at + 1] - self._ends[at])
        )
        return Row(file, line, tuple((role, text) for role, text in turns), pair, tuple(silent), tools, template)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def joined(stores: Sequence[RowStore]) -> RowStore:
    """The rows of several stores, one after the other; the only one of a single store, as it is."""
    if len(stores) == 1:
        return stores[0]
    return RowStore((row for store in stores for row in store), folder=next((store.folder for store in stores), None))


def key(row: Row) -> bytes:
    """A digest (16 bytes) of what a row says, so that two rows of one key are duplicates."""
    return _digest([text.strip() for _, text in row.turns] + [row.tools])


def context_key(row: Row) -> bytes:
    """A digest (16 bytes) of what is asked in a row."""
    return _digest([text.strip() for role, text in row.turns if role != "assistant"])


def _digest(texts: list[str]) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()
