"""Reading rows from files: JSON Lines, JSON, CSV, Parquet, and folders that `datasets` saved.

A row that cannot be read becomes a `BadRow` with its line; a file that cannot be read as a whole is a `DataError`.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glmspectra.errors import DataError, RequestError
from glmspectra.tuning.data.rows import BadRow, Columns, Row, parse_row

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "validation", "dev", "eval", "test")

Rows = list[Row | BadRow]


def read_dataset(path: Path, columns: Columns) -> dict[str, Rows]:
    """Rows of a file ({"train": ...}) or of a folder ({"train": ..., "valid": ...}, valid where there is one).

    A folder is a DatasetDict or Dataset saved by `datasets`, or holds files named train.* and valid.*.

    Raises:
        RequestError: nothing is there, or it is of no known form.
        DataError: it cannot be read.
    """
    if path.is_file():
        return {"train": read_file(path, columns)}
    if not path.is_dir():
        raise RequestError(f"dataset_path {path}: there is no such file or folder.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _read_saved(path, columns)
    files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES}
    found = {
        split: next((files[name] for name in names if name in files), None)
        for split, names in (("train", TRAIN_NAMES), ("valid", VALID_NAMES))
    }
    if found["train"] is None:
        raise RequestError(
            f"dataset_path {path}: the folder is no saved DatasetDict and holds no train file "
            f"({', '.join('train' + suffix for suffix in SUFFIXES)})."
        )
    return {split: read_file(file, columns) for split, file in found.items() if file is not None}


def read_file(path: Path, columns: Columns) -> Rows:
    """Rows of one file, in order. Its suffix says the form; what has none of the known ones is read as JSONL."""
    if not path.is_file():
        raise RequestError(f"{path}: there is no such data file.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        values: Iterator[tuple[int, Any] | BadRow] = _parquet(path)
    elif suffix in (".csv", ".tsv"):
        values = _csv(path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".json":
        values = _json(path)
    else:
        values = _json_lines(path)
    return _parse(path, values, columns)


def _parse(path: Path, values: Iterator[tuple[int, Any] | BadRow], columns: Columns) -> Rows:
    rows: Rows = []
    first: Mapping[str, Any] | None = None
    known = False  # whether any row has the columns that are asked for
    for item in values:
        if isinstance(item, BadRow):
            rows.append(item)
            continue
        line, value = item
        if isinstance(value, Mapping):
            first = value if first is None else first
            known = known or columns.messages in value or columns.target in value
        rows.append(parse_row(path.name, line, value, columns))
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    if first is not None and not known:
        there = ", ".join(map(str, first))
        raise DataError(
            f"{path}: no row has a column {columns.target} or {columns.messages}; it has {there}; "
            f"name them, for example --columns context={next(iter(first))},target={list(first)[-1]}."
        )
    return rows


def _json_lines(path: Path) -> Iterator[tuple[int, Any] | BadRow]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if not raw.strip():  # blank lines separate nothing and lose nothing
                continue
            try:
                yield line, json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow(path.name, line, f"bad UTF-8 at byte {error.start + 1} of the line")
            except json.JSONDecodeError as error:
                yield BadRow(path.name, line, f"broken JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield BadRow(path.name, line, "broken JSON: nested too deep")


def _json(path: Path) -> Iterator[tuple[int, Any] | BadRow]:
    """A list of objects, or an object that holds one list; or JSON Lines under the name .json."""
    raw = path.read_bytes()
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: bad UTF-8 in line {line}; a .json file is read as a whole.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and raw.lstrip()[:1] == b"{":
            yield from _json_lines(path)
            return
        raise DataError(f"{path}: is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    if isinstance(value, Mapping):
        lists = [item for item in value.values() if isinstance(item, list)]
        # One object that is a row itself ({"context": ..., "target": ...}) holds no list, and counts as one row.
        value = lists[0] if len(lists) == 1 and not {"messages", "conversations"} & set(value) else [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: holds no list of rows.")
    yield from enumerate(value, 1)


def _csv(path: Path, delimiter: str) -> Iterator[tuple[int, Any] | BadRow]:
    # Bytes that are no UTF-8 become surrogates, which are then found in the row that holds them.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(path.name, max(start, 2), f"broken CSV: {error}")
                return
            line = max(start, 2)  # the header is read with the first row
            texts = [text for text in values.values() if isinstance(text, str)]
            if any("\udc80" <= character <= "\udcff" for text in texts for character in text):
                yield BadRow(path.name, line, "bad UTF-8")
            elif None in values:
                yield BadRow(path.name, line, "has more fields than the header")
            else:
                yield line, values


def _parquet(path: Path) -> Iterator[tuple[int, Any] | BadRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    line += 1
                    yield line, value
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).strip()}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds text that is no UTF-8 after row {line}.") from None


def _read_saved(path: Path, columns: Columns) -> dict[str, Rows]:
    """A DatasetDict or Dataset saved by any version of `datasets`: Arrow files and JSON, nothing is executed."""
    import datasets
    import pyarrow

    try:
        saved = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be opened as a saved dataset: {str(error).strip()}") from None
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    rows = {}
    for split, names in (("train", TRAIN_NAMES), ("valid", VALID_NAMES)):
        name = next((name for name in names if name in splits), None)
        if name is not None:
            rows[split] = _parse(path / name, iter(enumerate(splits[name], 1)), columns)
    if "train" not in rows:
        raise DataError(f"{path}: has the splits {', '.join(splits)} and none named train.")
    return rows
