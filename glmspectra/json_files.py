"""JSON files: written whole or not at all; read bounded and strict, with one sentence when they are wrong.

Python's reader takes more than JSON: NaN and infinities, the last of two equal keys, half of a surrogate pair, a pipe
that never ends. None of these can mean anything in a file that we measure or train by, so each is refused.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from glmspectra.errors import CheckpointError, GlmspectraError
from glmspectra.files import write_text

MAX_BYTES = 256 << 20  # the index of 405B parameters takes under 1 MiB, a tokenizer.json some 20
MAX_DEPTH = 100  # levels of lists and objects: what copies or writes a value later calls itself at each

if TYPE_CHECKING:  # pydantic takes 0.1 s to import, and `--help` needs only the writing half of this file
    from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound="BaseModel")


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as readable JSON, whole or not at all, making the folder; returns the path. Raises StoreError."""
    return write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """`value` as JSON that any reader takes: null for NaN and infinity, the text of what JSON has no type for."""
    return json.dumps(plain(value), ensure_ascii=ascii_only, indent=indent, default=str, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as `read_json` would give it back once written: null for NaN and infinity, no half surrogates."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def read_bytes(path: Path, error: type[GlmspectraError] = CheckpointError, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        GlmspectraError: Of class `error`, when the file is missing, unreadable, no regular file, or larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for its writer
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            check_regular(path, status, error)
            if status.st_size > limit:
                raise error(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read of a file of this sort.")
            return file.read(limit + 1)
    except (OSError, ValueError) as fault:  # ValueError: a null character in the path
        raise error(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}.") from fault


def check_regular(path: Path, status: os.stat_result, error: type[GlmspectraError] = CheckpointError) -> None:
    """Raise `error` for a pipe, a socket or a device: reading it could wait for ever."""
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a regular file, and reading it could wait for ever: take it away.")


def read_json(
    path: Path, error: type[GlmspectraError] = CheckpointError, limit: int = MAX_BYTES, allow_nan: bool = False
) -> Any:
    """The JSON value in a file (UTF-8, with or without a byte order mark).

    Args:
        path: The file.
        error: The class of what is raised.
        limit: The most bytes that are read.
        allow_nan: Take NaN and infinities, which transformers writes into trainer_state.json.

    Raises:
        GlmspectraError: Of class `error`, in one sentence that names the file and, where known, line and column.
    """
    return parse_json(read_bytes(path, error, limit), str(path), error, allow_nan)


def parse_json(
    content: bytes | str, origin: str, error: type[GlmspectraError] = CheckpointError, allow_nan: bool = False
) -> Any:
    """The JSON value in `content`; `origin` names it in messages. Raises `error` as `read_json` does."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        numbers: dict[str, Any] = {} if allow_nan else {"parse_constant": _no_constant, "parse_float": _finite}
        value = json.loads(text, object_pairs_hook=_no_duplicates, **numbers)
        if _deeper_than(MAX_DEPTH, value):
            raise RecursionError
        if "\\u" in text or not text.isascii():
            json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    except UnicodeDecodeError as fault:
        raise error(f"{origin} is not UTF-8 text (byte {fault.start}): it is damaged, or no JSON file.") from fault
    except UnicodeEncodeError as fault:
        raise error(f"{origin} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character.") from fault
    except RecursionError as fault:
        raise error(f"{origin} is nested too deeply to be one of the files it is named as.") from fault
    except json.JSONDecodeError as fault:
        raise error(
            f"{origin} is not JSON (line {fault.lineno}, column {fault.colno}: {fault.msg}); mend it or fetch it anew."
        ) from fault
    except ValueError as fault:
        digits = "a number has more than 4,300 digits" if "integer string conversion" in str(fault) else fault
        raise error(f"{origin}: {digits}.") from fault
    return value


def read_object(
    path: Path, error: type[GlmspectraError] = CheckpointError, limit: int = MAX_BYTES, allow_nan: bool = False
) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` as `read_json` does, and when the value is no object."""
    value = read_json(path, error, limit, allow_nan)
    if not isinstance(value, dict):
        raise error(f"{path} holds {_sort(value)} where a JSON object was expected.")
    return value


def read_model(path: Path, model: type[Model], error: type[GlmspectraError] = CheckpointError) -> Model:
    """The file as an instance of the pydantic class `model`, validated strictly: no string is taken for a number.

    Raises:
        GlmspectraError: Of class `error`, naming every key that is wrong and why.
    """
    return validate(read_object(path, error), model, str(path), error)


def validate(
    value: dict[str, Any], model: type[Model], origin: str, error: type[GlmspectraError] = CheckpointError
) -> Model:
    """`value` as an instance of `model`, strictly; `origin` names it in messages. Raises `error`."""
    from pydantic import ValidationError

    try:
        return model.model_validate(value, strict=True)
    except ValidationError as fault:
        raise error(f"{origin}: {explain(fault)}.") from fault
    except RecursionError as fault:
        raise error(f"{origin} is nested too deeply to be one of the files it is named as.") from fault


def explain(fault: "ValidationError", most: int = 6) -> str:
    """The faults of a pydantic model in one sentence, at most `most` of them."""
    found = []
    for item in fault.errors(include_url=False, include_context=False)[:most]:
        where = ".".join(str(part) for part in item["loc"]) or "the object"
        shown = "" if item["type"] == "missing" else f" (found {_short(item['input'])})"
        found.append(f"{where}: {item['msg'][:1].lower()}{item['msg'][1:]}{shown}")
    more = fault.error_count() - len(found)
    return "; ".join(found) + (f"; and {more} more" if more > 0 else "")


def _short(value: object) -> str:
    if isinstance(value, (dict, list)):
        return _sort(value)
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of over 20 digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _sort(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def _deeper_than(levels: int, value: Any) -> bool:
    level = [value]
    for _ in range(levels + 1):
        level = [
            item
            for holder in level
            if isinstance(holder, (dict, list))
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} stands where a number must, and is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is beyond what a float can hold")
    return number


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found
