"""The one form that every row of training data takes, and the form of a row that cannot be used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One example: turns of (role, text), the roles being system, user and assistant.

    A pair of context and target is a conversation of two turns with `pair` true. `line` counts from 1: lines of
    a text file, rows of a table.
    """

    file: str
    line: int
    turns: tuple[tuple[str, str], ...]
    pair: bool


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the data."""

    context: str = "context"
    target: str = "target"
    messages: str = "messages"


def parse_row(file: str, line: int, value: Any, columns: Columns) -> Row | BadRow:
    """A row from the object of one line (a dict of columns)."""
    if not isinstance(value, Mapping):
        return BadRow(file, line, f"is no object with columns but {type(value).__name__}")
    parsed = _turns(value[columns.messages]) if columns.messages in value else _pair(value, columns)
    if isinstance(parsed, str):
        return BadRow(file, line, parsed)
    turns, pair = parsed
    for _, text in turns:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return BadRow(file, line, "holds half of a surrogate pair, which is no text")
    return Row(file, line, turns, pair)


_Parsed = tuple[tuple[tuple[str, str], ...], bool]


def _pair(value: Mapping[str, Any], columns: Columns) -> _Parsed | str:
    texts = []
    for name in (columns.context, columns.target):
        if value.get(name) is None:
            return f"no {name}"
        if not isinstance(value[name], str):
            return f"{name} is not text but {type(value[name]).__name__}"
        texts.append(value[name])
    if not texts[1].strip():
        return f"empty {columns.target}"
    return (("user", texts[0]), ("assistant", texts[1])), True


def _turns(messages: Any) -> _Parsed | str:
    """Turns from a list of {"role", "content"} or of {"from", "value"}; a string says what is wrong."""
    if isinstance(messages, Mapping) and all(isinstance(column, list) for column in messages.values()):
        # Older versions of `datasets` turn a list of objects into an object of lists.
        messages = [dict(zip(messages, values, strict=False)) for values in zip(*messages.values(), strict=False)]
    # A string has a length too, and is no list.
    if isinstance(messages, str | Mapping) or not hasattr(messages, "__len__") or not len(messages):
        return "messages is no list of turns"
    turns = []
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping):
            return f"turn {number} is no object with role and content"
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if role not in ROLES:
            return f"turn {number} has role {role!r}; known: {', '.join(ROLES)}"
        if not isinstance(content, str):
            return f"turn {number} has no text"
        turns.append((ROLES[role], content))
    while turns and turns[-1][0] != "assistant":  # a last question without an answer teaches nothing
        turns.pop()
    if not turns:
        return "no turn of the assistant"
    if any(role == "assistant" and not content.strip() for role, content in turns):
        return "empty answer of the assistant"
    order = [role for role, _ in turns if role != "system"]
    if order[::2] != ["user"] * len(order[::2]) or order[1::2] != ["assistant"] * len(order[1::2]):
        return "user and assistant do not take turns"
    if "system" in [role for role, _ in turns[1:]]:
        return "a system turn that is not the first"
    return tuple(turns), False
