"""Reading rows from files: JSON Lines, JSON, CSV, Parquet, Arrow, and folders that `datasets` saved.

A row that cannot be read becomes a `BadRow` with its line; a file that cannot be read as a whole is a `DataError`.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from glmspectra.checkpoint.foreign import first_line, refuse_pipes
from glmspectra.errors import DataError, RequestError
from glmspectra.json_files import parse_json
from glmspectra.language import both
from glmspectra.language import text as said
from glmspectra.tuning.data.recognize import FileFacts, is_recognized, parse_question, parse_row
from glmspectra.tuning.data.rows import BadRow, Columns, Row
from glmspectra.tuning.data.text_file import COMPRESSED_SUFFIXES, LONGEST_LINE, TextFile, bad_bytes
from glmspectra.tuning.settings.at_hand import refuse_missing_data

COLUMNAR = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", *COLUMNAR)
ARROW_FILE = b"ARROW1"  # of the format with an index behind the rows; a stream has none
BATCH = 1024  # rows in memory as Python's
TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "validation", "val", "dev", "eval", "test")
UNREAD = (".orc", ".avro", ".xlsx", ".xls", ".db", ".sqlite", ".pkl", ".zip", ".tar", ".lance")
_PIECE = re.compile(r"[-_.](\d{1,9})[-_.]of[-_.](\d{1,9})$")
DELIMITERS = (",", "\t", ";", "|")

Values = Iterator[tuple[int, Any] | BadRow]
Parse = Callable[[str, int, Any, Columns, FileFacts], Row | BadRow]


@dataclass
class Source:
    """Files (or a split of a saved dataset) whose rows are one part of the data."""

    files: list[Path]
    saved: Any = None
    facts: list[FileFacts] = field(default_factory=list)

    def rows(self, columns: Columns, parse: Parse = parse_row) -> Iterator[Row | BadRow]:
        """The rows in order, one at a time; `facts` grows by one entry a file."""
        for path in self.files:
            facts = FileFacts(path.name)
            self.facts.append(facts)
            values = iter(enumerate(self.saved, 1)) if self.saved is not None else values_of(path, facts)
            yield from _parsed(path, values, columns, facts, parse)


def find_sources(path: Path) -> tuple[dict[str, Source], list[str]]:
    """Where the rows of train and of valid stand, without reading them, and notes on files that are not read.

    A file is all train. A folder is a DatasetDict or Dataset saved by `datasets`, or holds files named train.* and
    valid.*, in several pieces too (train-00000-of-00002.parquet).

    Raises:
        RequestError: Nothing is there, or it is of no known format.
        DataError: It cannot be read.
    """
    if path.is_file():
        return {"train": Source([path])}, []
    refuse_missing_data(path)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved_sources(path)
    return _folder_sources(path)


def read_file(path: Path, columns: Columns) -> list[Row | BadRow]:
    """All rows of one file, in order. Its suffix says the format; what has none of the known ones is read as JSONL."""
    return list(Source([path]).rows(columns))


def read_dataset(path: Path, columns: Columns) -> dict[str, list[Row | BadRow]]:
    """All rows of a file or folder, by split; see `find_sources`."""
    return {split: list(source.rows(columns)) for split, source in find_sources(path)[0].items()}


def read_questions(path: Path, columns: Columns) -> tuple[list[tuple[dict[str, Any], Row]], list[str]]:
    """The rows of a file that are to be answered, each with its own columns, and what was recognized, in lines.

    Raises:
        RequestError: There is no such file.
        DataError: A row cannot be used, by its line; or there is none.
    """
    facts = FileFacts(path.name)
    found = []
    for item in values_of(path, facts):
        if isinstance(item, BadRow):
            raise DataError(f"{path}, line {item.line}: {item.reason}.")
        row = parse_question(path.name, *item, columns, facts)
        if isinstance(row, BadRow):
            raise DataError(f"{path}, line {row.line}: {row.reason}.")
        found.append((dict(item[1]), row))
    if not found:
        raise DataError(f"{path}: holds no rows.")
    return found, facts.lines()


def values_of(path: Path, facts: FileFacts) -> Values:
    """(line, object) of each row of a file, as its suffix says; how it was read goes to `facts`."""
    if not path.is_file():
        raise RequestError(f"{path}: there is no such data file.")
    suffix = _suffix(path)
    if suffix in COLUMNAR:
        return _columnar(path, COLUMNAR[suffix])
    text = TextFile(path)
    facts.how += text.how
    if suffix in (".csv", ".tsv"):
        return _csv(text, facts, "\t" if suffix == ".tsv" else ",")
    return _json(text, facts) if suffix == ".json" else _json_lines(text)


def _parsed(path: Path, values: Values, columns: Columns, facts: FileFacts, parse: Parse) -> Iterator[Row | BadRow]:
    first: Mapping[str, Any] | None = None
    for item in values:
        if isinstance(item, BadRow):
            facts.rows += 1
            yield item
            continue
        line, value = item
        row = parse(path.name, line, value, columns, facts)
        if isinstance(row, BadRow) and isinstance(value, Mapping) and first is None:
            first = value
        yield row
    if not facts.rows:
        raise DataError(f"{path}: holds no rows.")
    if not facts.row_formats and first is not None and not is_recognized(map(str, first), columns):
        raise DataError(
            f"{path}: no question and answer are recognized among its columns {', '.join(map(str, first))}; say which "
            "they are: --columns context=COLUMN,target=COLUMN, or messages=COLUMN for conversations."
        )


def _suffix(path: Path) -> str:
    """The suffix of a file's name, that of a compressed one without the compression's."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED_SUFFIXES else suffix


def _stem(path: Path) -> str:
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.stem


def _folder_sources(path: Path) -> tuple[dict[str, Source], list[str]]:
    files = [file for file in sorted(path.iterdir()) if file.is_file() and _suffix(file) in SUFFIXES]
    pieces: dict[str, list[Path]] = {}
    for file in files:  # "train-00000-of-00002" is a piece of "train"
        pieces.setdefault(re.sub(r"[-_.]\d+([-_.]of[-_.]\d+)?$", "", _stem(file)), []).append(file)
    found: dict[str, Source] = {}
    for split, names in (("train", TRAIN_NAMES), ("valid", VALID_NAMES)):
        name = next((name for name in names if name in pieces), None)
        if name is None:
            continue
        stems = [_stem(file) for file in pieces[name]]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            both = ", ".join(file.name for file in pieces[name] if _stem(file) == twice)
            raise RequestError(f"dataset_path {path}: {both} may each be the {split} part; keep one, or name the file.")
        _check_pieces(path, stems)
        found[split] = Source(pieces[name])
    if "train" not in found:
        raise RequestError(
            f"dataset_path {path}: the folder is no saved DatasetDict and holds no train file "
            f"({', '.join('train' + suffix for suffix in SUFFIXES)})."
        )
    read = [file for source in found.values() for file in source.files]
    others = (file for file in sorted(path.iterdir()) if file.suffix.lower() in UNREAD and file.is_file())
    left = [file.name for file in (*files, *others) if file not in read]
    return found, [f"{path}: files that are not read: {', '.join(left)}"] if left else []


def _check_pieces(path: Path, stems: list[str]) -> None:
    """Raise DataError where a piece is missing: "train-00000-of-00003" says how many there are, from 0 or from 1."""
    pieces: dict[int, set[int]] = {}
    for stem in stems:
        if found := _PIECE.search(stem):
            pieces.setdefault(int(found[2]), set()).add(int(found[1]))
    for count, numbers in pieces.items():
        first = 1 if count in numbers else 0
        missing = next((number for number in range(first, first + count) if number not in numbers), None)
        if missing is not None:
            raise DataError(f"{path}: of {count} pieces of {stems[0]} number {missing} is not there; fetch it.")


def _json_lines(text: TextFile) -> Values:
    for item in text.lines():
        if isinstance(item, BadRow):
            yield item
        elif item[1].strip():  # blank lines separate nothing and lose nothing
            yield _json_line(text.path.name, *item)


def _json_line(file: str, number: int, line: str) -> tuple[int, Any] | BadRow:
    try:
        return number, parse_json(line, "the line", DataError)
    except DataError as fault:
        reason = str(fault).partition("; mend")[0].removesuffix(".").removeprefix("the line: ")
        return BadRow(file, number, reason)


def _json(text: TextFile, facts: FileFacts) -> Values:
    """A list of objects, or an object that holds one list of them; or JSON Lines under the name .json."""
    content = text.text()
    if content.lstrip("\ufeff \r\n\t")[:1] == "{" and _is_lines(content):
        yield from _json_lines(text)
        return
    value = parse_json(content, str(text.path), DataError)
    if isinstance(value, Mapping) and not _is_row(value):
        lists = {name: item for name, item in value.items() if isinstance(item, list) and item}
        if len(lists) > 1:
            raise DataError(f"{text.path}: holds several lists ({', '.join(lists)}); write the rows as one list.")
        if lists:
            facts.how.append(said("data-how-list", name=next(iter(lists))))
        value = next(iter(lists.values()), [value])
    elif isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{text.path}: holds no list of rows.")
    yield from enumerate(value, 1)


def _is_row(value: Mapping[str, Any]) -> bool:
    return isinstance(parse_row("", 0, value, Columns()), Row)


def _is_lines(content: str) -> bool:
    """Whether the first line is an object by itself, with more behind it."""
    first, _, rest = content.lstrip("\ufeff \r\n\t").partition("\n")
    return first.rstrip().endswith("}") and rest.lstrip()[:1] == "{"


class _BoundedLines:
    """Lines for csv's reader, which would take one of any length; one that is too long is an error in its place."""

    def __init__(self, file: IO[str]):
        self._file = file

    def __iter__(self) -> "_BoundedLines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) <= LONGEST_LINE or line.endswith("\n"):
            return line
        while (rest := self._file.readline(LONGEST_LINE)) and not rest.endswith("\n"):
            pass
        raise csv.Error(f"a line of more than {LONGEST_LINE:,} characters")


def _csv(text: TextFile, facts: FileFacts, expected: str) -> Values:
    csv.field_size_limit(LONGEST_LINE)
    with text.open("") as file:
        delimiter = _delimiter(file.readline(LONGEST_LINE), expected)
    if delimiter != expected:
        mark = both("data-how-tab") if delimiter == "\t" else delimiter
        facts.how.append(said("data-how-delimiter", mark=mark))
    file_name = text.path.name
    with text.open("") as file:
        reader = csv.DictReader(_BoundedLines(file), delimiter=delimiter, strict=True)
        try:
            header = [name for name in reader.fieldnames or [] if name]
        except csv.Error as error:
            raise DataError(f"{text.path}: its header is broken CSV: {error}.") from None
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"{text.path}: the column {twice} stands twice in the header; rename one.")
        while True:
            start = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(file_name, max(start, 2), f"broken CSV: {error}")
                continue  # with the next line
            line = max(start, 2)  # the header is read with the first row
            if any(isinstance(value, str) and bad_bytes(value) is not None for value in values.values()):
                yield BadRow(file_name, line, "bad UTF-8")
            elif None in values:
                yield BadRow(file_name, line, "has more fields than the header")
            elif None in values.values():
                yield BadRow(file_name, line, "has fewer fields than the header")
            else:
                yield line, values


def _delimiter(header: str, expected: str) -> str:
    """The delimiter by which the header has columns that are recognized, else the one that splits it most."""

    def fields(delimiter: str) -> list[str]:
        return next(csv.reader([header.removeprefix("\ufeff").rstrip("\r\n")], delimiter=delimiter), [])

    known = [mark for mark in DELIMITERS if is_recognized(fields(mark), Columns())]
    if expected in known or (not known and len(fields(expected)) > 1):
        return expected
    return known[0] if known else max(DELIMITERS, key=lambda mark: len(fields(mark)))


def _columnar(path: Path, format_name: str) -> Values:
    """Rows of Parquet, or of Arrow as a stream (as `datasets` writes it) or a file (Feather): some at a time."""
    import pyarrow

    line = 0
    try:
        with _opened(path, format_name) as (names, batches):
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise DataError(f"{path}: the column {twice} is there twice; rename one.")
            for batch in batches:
                batch.validate(full=True)  # offsets and texts of a file that anybody may have written
                for start in range(0, batch.num_rows, BATCH):
                    for value in batch.slice(start, BATCH).to_pylist():
                        line += 1
                        yield line, value
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds text that is no UTF-8 after row {line}.") from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as {format_name}: {first_line(error)}") from None


@contextmanager
def _opened(path: Path, format_name: str) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """Names of the columns, and batches of rows."""
    import pyarrow.parquet

    if format_name == "Parquet":
        with pyarrow.parquet.ParquetFile(path) as parquet:
            yield parquet.schema_arrow.names, parquet.iter_batches(batch_size=BATCH)
        return
    with pyarrow.memory_map(str(path)) as source:
        if source.read(len(ARROW_FILE)) == ARROW_FILE:
            with pyarrow.ipc.open_file(source) as file:
                yield file.schema.names, (file.get_batch(number) for number in range(file.num_record_batches))
            return
        source.seek(0)
        with pyarrow.ipc.open_stream(source) as stream:
            yield stream.schema.names, iter(stream)


def _saved_sources(path: Path) -> tuple[dict[str, Source], list[str]]:
    """A DatasetDict or Dataset saved by any version of `datasets`: Arrow files and JSON, nothing is executed."""
    import datasets

    for folder in (path, *(inner for inner in path.iterdir() if inner.is_dir())):
        refuse_pipes(folder)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # its JSON files may hold anything
        raise DataError(f"{path}: cannot be opened as a saved dataset: {first_line(error)}") from None
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    found, names_read = {}, []
    for split, names in (("train", TRAIN_NAMES), ("valid", VALID_NAMES)):
        name = next((name for name in names if name in splits), None)
        if name is not None:
            names_read.append(name)
            found[split] = Source([path / name], splits[name])
    if "train" not in found:
        raise DataError(f"{path}: has the splits {', '.join(splits)} and none named train.")
    left = [name for name in splits if name not in names_read]
    return found, [f"{path}: splits that are not read: {', '.join(left)}"] if left else []
