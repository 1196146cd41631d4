"""Tokenized once: examples are kept on disk under a key of everything they depend on.

The key covers the content of the rows, the tokenizer, template, max_length and the policy for long pairs. A change of
any of them is another key; a cached split that cannot be read is made anew. Examples go to the disk as they are made
and are read from there, so that memory does not grow with the data.
"""

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.errors import CheckpointError, DataError, StoreError
from glmspectra.files import atomic_folder, locked, make_folder
from glmspectra.json_files import read_object, write_json
from glmspectra.tuning.data.encode import Encoder
from glmspectra.tuning.data.report import SplitCounts
from glmspectra.tuning.data.rows import BadRow, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS, EXAMPLES, NOTES = "tokens", "examples.arrow", "notes.json"
BATCH = 1000  # examples that are in memory at once
VERSION = 2  # raise when what is stored changes its meaning


@dataclass
class EncodedSplit:
    """A tokenized split.

    Attributes:
        dataset: a `datasets.Dataset` with input_ids, labels, length and row (index of the row that the example was made
            of).
        counts: its counts.
        bad: of each row that turned out bad the index and the reason.
    """

    dataset: Any
    counts: SplitCounts
    bad: list[tuple[int, str]]

    def bad_rows(self, rows: Sequence[Row]) -> list[BadRow]:
        return [BadRow(rows[index].file, rows[index].line, reason) for index, reason in self.bad]


def default_cache() -> Path:
    """$XDG_CACHE_HOME/glmspectra/tokens, or ~/.cache/glmspectra/tokens."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "glmspectra" / "tokens"


def writable(folder: Path) -> Path | None:
    """The folder, made where it is absent; None where nothing can be written there."""
    try:
        make_folder(folder)
    except StoreError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of what decides how a tokenizer splits and templates text, whatever file it came from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core = backend.to_str()
    else:
        processor = getattr(tokenizer, "sp_model", None)
        serialized = getattr(processor, "serialized_model_proto", None)
        core = hashlib.sha256(serialized()).hexdigest() if serialized else json.dumps(sorted(tokenizer.get_vocab()))
    parts = [
        type(tokenizer).__name__,
        core,
        str(getattr(tokenizer, "chat_template", None)),
        str(tokenizer.eos_token_id),
        # Options such as add_bos_token show in what a text becomes.
        str(list(tokenizer.encode("a 问：1\n\n答："))),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def cache_key(rows: Sequence[Row], encoder: Encoder) -> str:
    """The key of a split: 32 hex digits."""
    digest = hashlib.sha256()
    settings = (
        VERSION,
        encoder.template,
        encoder.max_length,
        encoder.on_long,
        encoder.separator,
        tokenizer_fingerprint(encoder.tokenizer),
    )
    digest.update(json.dumps(settings).encode())
    for row in rows:
        digest.update(json.dumps((row.turns, row.silent, row.tools, row.template), ensure_ascii=False).encode())
    return digest.hexdigest()[:32]


def encoded(rows: Sequence[Row], encoder: Encoder, folder: Path) -> EncodedSplit:
    """The tokenized split, from `folder` when it is there, else made and stored there.

    Processes that ask for the same rows at once (torchrun) wait for the first, which makes them. Where `folder` cannot
    be written, the examples live in a temporary folder as long as the dataset.
    """
    own = folder / cache_key(rows, encoder)
    stored = _load(own / TOKENS)
    if stored is not None:
        return stored
    try:
        make_folder(own)
        with locked(own):
            stored = _load(own / TOKENS)
            if stored is None:
                with atomic_folder(own / TOKENS) as staging:
                    _write(rows, encoder, staging)
                stored = _load(own / TOKENS)
    except StoreError:
        pass  # a cache that cannot be written costs time at the next run, and nothing else
    return stored if stored is not None else _temporary(rows, encoder)


def _temporary(rows: Sequence[Row], encoder: Encoder) -> EncodedSplit:
    folder = Path(tempfile.mkdtemp(prefix="glmspectra-tokens-"))
    _write(rows, encoder, folder)
    split = _load(folder)
    if split is None:
        raise DataError(f"{folder}: the tokenized rows cannot be read back; free some space there, or set TMPDIR.")
    weakref.finalize(split.dataset, shutil.rmtree, folder, ignore_errors=True)
    return split


def write_dataset(
    path: Path, batches: Iterable[dict[str, list[Any]]], numbers: Sequence[str], lists: Sequence[str]
) -> None:
    """Batches of rows into an Arrow file, one after the other, which `datasets.Dataset.from_file` opens in place.

    numbers, lists: the columns of one int32 a row, and of a list of int32 a row.
    """
    import pyarrow

    schema = pyarrow.schema(
        [(name, pyarrow.list_(pyarrow.int32())) for name in lists] + [(name, pyarrow.int32()) for name in numbers]
    )
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pyarrow.RecordBatch.from_pydict(batch, schema=schema))


def _write(rows: Sequence[Row], encoder: Encoder, folder: Path) -> None:
    counts = SplitCounts()
    bad: list[tuple[int, str]] = []
    batches = _batches(rows, encoder, counts, bad)
    write_dataset(folder / EXAMPLES, batches, ("length", "row"), ("input_ids", "labels"))
    write_json(folder / NOTES, {"counts": asdict(counts), "bad": bad})


def _batches(
    rows: Sequence[Row], encoder: Encoder, counts: SplitCounts, bad: list[tuple[int, str]]
) -> Iterator[dict[str, list[Any]]]:
    """Columns of up to `BATCH` examples at a time; `counts` and `bad` grow with them."""
    table: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": [], "row": []}
    for index, row in enumerate(rows):
        example = encoder.encode(row)
        if example is None:
            counts.dropped_long += 1
            continue
        if isinstance(example, str):
            bad.append((index, example))
            continue
        counts.add(example)
        table["input_ids"].append(example.input_ids)
        table["labels"].append(example.labels)
        table["length"].append(len(example.input_ids))
        table["row"].append(index)
        if len(table["row"]) == BATCH:
            yield table
            table = {name: [] for name in table}
    yield table


def _load(folder: Path) -> EncodedSplit | None:
    from datasets import Dataset

    try:
        notes = read_object(folder / NOTES)
        dataset = Dataset.from_file(str(folder / EXAMPLES))
        counts = SplitCounts(**notes["counts"])
        bad = [(int(index), str(reason)) for index, reason in notes["bad"]]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return None  # absent or damaged: made anew
    return EncodedSplit(dataset, counts, bad) if len(dataset) == counts.rows else None
