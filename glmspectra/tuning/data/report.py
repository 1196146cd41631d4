"""What reading, checking and tokenizing found: counted, listed by line, and an error or a warning."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from glmspectra.errors import DataError
from glmspectra.language import text
from glmspectra.tuning.data.encode import IGNORED, Example
from glmspectra.tuning.data.recognize import FileFacts
from glmspectra.tuning.data.rows import BadRow

LISTED = 20


@dataclass
class SplitCounts:
    """Counts of one split after everything; tokens are those a run sees in one epoch, padding left out."""

    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    context_cut: int = 0
    target_cut: int = 0
    dropped_long: int = 0
    tokens_cut: int = 0
    last_answer_only: int = 0
    packed_rows: int | None = None

    def add(self, example: Example) -> None:
        """Count an example."""
        self.rows += 1
        self.tokens += len(example.input_ids)
        self.supervised_tokens += len(example.labels) - example.labels.count(IGNORED)
        self.longest = max(self.longest, len(example.input_ids))
        self.context_cut += example.context_cut > 0
        self.target_cut += example.target_cut > 0
        self.tokens_cut += example.context_cut + example.target_cut
        self.last_answer_only += example.last_answer_only


@dataclass
class DataReport:
    """Everything worth telling about the data of a run."""

    template: str = ""
    max_length: int = 0
    on_long: str = ""
    bad: list[BadRow] = field(default_factory=list)
    files: list[FileFacts] = field(default_factory=list)
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    duplicates: int = 0
    shared_contexts: int = 0
    notes: list[str] = field(default_factory=list)

    def settle(self, on_bad_data: str) -> None:
        """Raise `DataError` with the list of bad rows, unless `on_bad_data` is "warn": then `lines` tells them."""
        if self.bad and on_bad_data == "error":
            raise DataError(
                f"{self._bad_heading('en')}:\n  " + "\n  ".join(self._bad_lines("en")) + "\n"
                "Mend them, or leave them out with --on-bad-data warn."
            )

    def lines(self) -> list[str]:
        """The report as lines to print."""
        lines = [line for facts in self.files for line in facts.lines()]
        for name, split in self.splits.items():
            lines += self._split_lines(name, split)
        if self.bad:
            lines.append(text("data-bad-left-out", bad=self._bad_heading()))
            lines += [f"  {line}" for line in self._bad_lines()]
        if self.duplicates:
            lines.append(text("data-duplicates", count=self.duplicates))
        if self.shared_contexts:
            lines.append(text("data-shared", count=self.shared_contexts))
        return lines + self.notes

    def _split_lines(self, name: str, split: SplitCounts) -> list[str]:
        values: dict[str, Any] = {
            "name": name,
            "rows": split.rows,
            "tokens": split.tokens,
            "learnt": split.supervised_tokens,
            "longest": split.longest,
        }
        if split.packed_rows is None:
            lines = [text("data-split", **values)]
        else:
            full = split.tokens / (split.packed_rows * self.max_length) if split.packed_rows else 0.0
            packed: dict[str, Any] = {"packed": split.packed_rows, "length": self.max_length, "full": f"{full:.0%}"}
            lines = [text("data-split-packed", **values, **packed)]
        if split.context_cut or split.target_cut or split.dropped_long:
            lines.append(
                text(
                    "data-long",
                    name=name,
                    length=self.max_length,
                    rule=self.on_long,
                    contexts=split.context_cut,
                    targets=split.target_cut,
                    dropped=split.dropped_long,
                    tokens=split.tokens_cut,
                )
            )
        if split.last_answer_only:
            lines.append(text("data-last-answer", name=name, count=split.last_answer_only))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The report for `--json`."""
        return {
            "template": self.template,
            "max_length": self.max_length,
            "on_long": self.on_long,
            "bad_rows": [asdict(bad) for bad in self.bad],
            # asdict makes a Counter of the pairs of a Counter
            "files": [
                vars(facts) | {"forms": dict(facts.row_formats), "unread": dict(facts.unread)} for facts in self.files
            ],
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "duplicates": self.duplicates,
            "shared_contexts": self.shared_contexts,
            "notes": self.notes,
        }

    def _bad_heading(self, language: str | None = None) -> str:
        causes = Counter(_cause(bad.reason) for bad in self.bad)
        parts = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
        return text("data-bad", language, count=len(self.bad), causes=parts)

    def _bad_lines(self, language: str | None = None) -> list[str]:
        lines = [str(bad) for bad in self.bad[:LISTED]]
        rest = len(self.bad) - len(lines)
        return [*lines, *([text("data-bad-more", language, count=rest)] if rest else [])]


def _cause(reason: str) -> str:
    """The cause that a reason names, for counting: what stands before its particulars."""
    for mark in (":", " at byte", " of line", ";", " (", " among "):
        reason = reason.split(mark)[0]
    return reason
