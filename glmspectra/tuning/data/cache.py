"""Tokenised once: examples are kept on disk under a key of everything they depend on.

The key covers the content of the rows, the tokenizer, template, max_length and the policy for long pairs. A change of
any of them is another key; a cached split that cannot be read is made anew.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmspectra.errors import CheckpointError, StoreError
from glmspectra.files import atomic_folder, locked, make_folder
from glmspectra.json_files import read_object, write_json
from glmspectra.tuning.data.encode import Encoder
from glmspectra.tuning.data.report import SplitCounts
from glmspectra.tuning.data.rows import BadRow, Row

FORM = 1  # raise when what is stored changes its meaning


@dataclass
class EncodedSplit:
    """A tokenised split: a `datasets.Dataset` with input_ids, labels, length and row (index of the row that the example
    was made of); its counts; and of each row that turned out bad the index and the reason."""

    dataset: Any
    counts: SplitCounts
    bad: list[tuple[int, str]]

    def bad_rows(self, rows: Sequence[Row]) -> list[BadRow]:
        return [BadRow(rows[index].file, rows[index].line, reason) for index, reason in self.bad]


def default_cache() -> Path:
    """$XDG_CACHE_HOME/glmspectra/tokens, or ~/.cache/glmspectra/tokens."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "glmspectra" / "tokens"


def tokenizer_fingerprint(tokenizer: Any) -> str:
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
    settings = (FORM, encoder.template, encoder.max_length, encoder.on_long, tokenizer_fingerprint(encoder.tokenizer))
    digest.update(json.dumps(settings).encode())
    for row in rows:
        digest.update(json.dumps(row.turns, ensure_ascii=False).encode())
    return digest.hexdigest()[:32]


def encoded(rows: Sequence[Row], encoder: Encoder, folder: Path | None) -> EncodedSplit:
    """The tokenised split, from `folder` when it is there, else made and stored there (None: not stored).

    Processes may do this at once: each writes a folder of its own and renames it when it is whole.
    """
    if folder is None:
        return _encode(rows, encoder)
    place = folder / cache_key(rows, encoder)
    stored = _load(place)
    if stored is not None:
        return stored
    split = _encode(rows, encoder)
    _store(split, place)
    return split


def _encode(rows: Sequence[Row], encoder: Encoder) -> EncodedSplit:
    from datasets import Dataset, Features, Value
    from datasets import Sequence as ListOf

    counts = SplitCounts()
    bad: list[tuple[int, str]] = []
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    used: list[int] = []
    for index, row in enumerate(rows):
        example = encoder.encode(row)
        if example is None:
            counts.dropped_long += 1
            continue
        if isinstance(example, str):
            bad.append((index, example))
            continue
        used.append(index)
        ids.append(example.input_ids)
        labels.append(example.labels)
        counts.context_cut += example.context_cut > 0
        counts.target_cut += example.target_cut > 0
        counts.tokens_cut += example.context_cut + example.target_cut
        counts.last_answer_only += example.last_answer_only
    lengths = [len(row_ids) for row_ids in ids]
    counts.rows, counts.tokens, counts.longest = len(ids), sum(lengths), max(lengths, default=0)
    counts.supervised_tokens = sum(label != -100 for row_labels in labels for label in row_labels)
    numbers, number = ListOf(Value("int32")), Value("int32")
    features = Features({"input_ids": numbers, "labels": numbers, "length": number, "row": number})
    table: dict[str, list[Any]] = {"input_ids": ids, "labels": labels, "length": lengths, "row": used}
    return EncodedSplit(Dataset.from_dict(table, features=features), counts, bad)


def _load(place: Path) -> EncodedSplit | None:
    from datasets import Dataset

    try:
        notes = read_object(place / "notes.json")
        dataset = Dataset.load_from_disk(str(place / "rows"))
        counts = SplitCounts(**notes["counts"])
        bad = [(int(index), str(reason)) for index, reason in notes["bad"]]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return None  # absent or damaged: made anew
    return EncodedSplit(dataset, counts, bad) if len(dataset) == counts.rows else None


def _store(split: EncodedSplit, place: Path) -> None:
    import datasets

    # A second or two, of which `datasets` would show a bar of its own.
    showing = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        _write(split, place)
    finally:
        if showing:
            datasets.enable_progress_bars()


def _write(split: EncodedSplit, place: Path) -> None:
    try:
        make_folder(place.parent)
        with locked(place.parent), atomic_folder(place) as staging:  # others may write the same rows at once
            split.dataset.save_to_disk(str(staging / "rows"))
            write_json(staging / "notes.json", {"counts": asdict(split.counts), "bad": split.bad})
    except StoreError:
        pass  # a cache that cannot be written costs time at the next run, and nothing else
