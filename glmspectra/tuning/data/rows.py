"""The one shape that every row of training data takes, a row that cannot be used, and the names of columns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from glmspectra.errors import RequestError


@dataclass(frozen=True, slots=True)
class Row:
    """One example: turns of (role, text), the roles being system, user, assistant and tool.

    Attributes:
        file: Name of the file the row stands in.
        line: Counts from 1: lines of a text file, rows of a table.
        turns: (role, text) in order; the last is an answer, except in a question that is to be answered.
        pair: A single question with its answer, which needs no chat template; a system text may stand before it.
        silent: Indices of answers that are read and not learnt.
        tools: JSON text of the tools that the conversation may call; "" for none.
        template: How the row is written: "plain", "chat", or "auto" for what the run uses.
    """

    file: str
    line: int
    turns: tuple[tuple[str, str], ...]
    pair: bool
    silent: tuple[int, ...] = ()
    tools: str = ""
    template: str = "auto"


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
    """Names of the columns in the data; None: recognized by the names in use (see `recognize`)."""

    context: str | None = None
    target: str | None = None
    messages: str | None = None
    input: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None

    @classmethod
    def names(cls) -> list[str]:
        return [item.name for item in fields(cls)]

    @classmethod
    def parse(cls, text: str) -> "Columns":
        """`context=question,target=answer`, as `--columns` takes it.

        Raises:
            RequestError: An entry is not of this form, or names what no column is for.
        """
        return cls(**parse_columns(text))

    @classmethod
    def of(cls, named: Mapping[str, str] | None) -> "Columns":
        return cls(**(named or {}))


def parse_columns(text: str) -> dict[str, str]:
    """The names in `context=question,target=answer`. Raises RequestError as `Columns.parse` does."""
    found: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not column or name not in Columns.names() or name in found:
            raise RequestError(
                f"--columns {text}: {pair.strip() or 'an empty entry'} is not NAME=COLUMN with one of the names "
                f"{', '.join(Columns.names())}, each once; for example --columns context=question,target=answer."
            )
        found[name] = column
    return found
