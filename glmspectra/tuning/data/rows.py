"""The one shape that every row of training data takes, a row that cannot be used, and the names of columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmspectra.errors import RequestError
from glmspectra.tuning.settings.models import parse_columns


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
    def parse(cls, text: str) -> "Columns":
        """`context=question,target=answer`, as `--columns` takes it. Raises RequestError."""
        try:
            return cls(**parse_columns(text))
        except ValueError as fault:
            raise RequestError(
                f"--columns {text}: {fault}; for example --columns context=question,target=answer."
            ) from None

    @classmethod
    def of(cls, named: Mapping[Any, str] | None) -> "Columns":
        return cls(**(named or {}))
