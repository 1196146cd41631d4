"""What reading, checking and tokenizing found: counted, listed by line, and an error or a warning."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from glmspectra.errors import DataError
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
                f"{self._bad_heading()}:\n  " + "\n  ".join(self._bad_lines()) + "\n"
                "Mend them, or leave them out with --on-bad-data warn."
            )

    def lines(self) -> list[str]:
        """The report as lines to print."""
        lines = [line for facts in self.files for line in facts.lines()]
        for name, split in self.splits.items():
            text = (
                f"{name}: {split.rows:,} rows, {split.tokens:,} tokens ({split.supervised_tokens:,} learnt), "
                f"longest {split.longest:,}"
            )
            if split.packed_rows is not None:
                fill = split.tokens / (split.packed_rows * self.max_length) if split.packed_rows else 0.0
                text += f"; packed into {split.packed_rows:,} rows of {self.max_length:,}, {fill:.0%} full"
            lines.append(text)
            if split.context_cut or split.target_cut or split.dropped_long:
                lines.append(
                    f"{name}: longer than max_length {self.max_length:,} (on_long {self.on_long}): "
                    f"{split.context_cut:,} lost the start of their context, {split.target_cut:,} the end of their "
                    f"target (their eos is not learnt), {split.dropped_long:,} were left out; "
                    f"{split.tokens_cut:,} tokens cut"
                )
            if split.last_answer_only:
                lines.append(
                    f"{name}: of {split.last_answer_only:,} conversations only the last answer is learnt, since the "
                    "chat template rewrites earlier turns"
                )
        if self.bad:
            lines += [f"left out: {self._bad_heading()}", *(f"  {line}" for line in self._bad_lines())]
        if self.duplicates:
            lines.append(f"train: {self.duplicates:,} rows say what an earlier row says, and are learnt again")
        if self.shared_contexts:
            lines.append(
                f"{self.shared_contexts:,} rows of valid have a context that train has too, with another target"
            )
        return lines + self.notes

    def as_dict(self) -> dict[str, Any]:
        """The report for `--json`."""
        return {
            "template": self.template,
            "max_length": self.max_length,
            "on_long": self.on_long,
            "bad_rows": [asdict(bad) for bad in self.bad],
            # asdict makes a Counter of the pairs of a Counter
            "files": [vars(facts) | {"forms": dict(facts.forms), "unread": dict(facts.unread)} for facts in self.files],
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "duplicates": self.duplicates,
            "shared_contexts": self.shared_contexts,
            "notes": self.notes,
        }

    def _bad_heading(self) -> str:
        kinds = Counter(_kind(bad.reason) for bad in self.bad)
        parts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"{len(self.bad)} row{'s' if len(self.bad) > 1 else ''} cannot be used ({parts})"

    def _bad_lines(self) -> list[str]:
        lines = [str(bad) for bad in self.bad[:LISTED]]
        rest = len(self.bad) - len(lines)
        return [*lines, *([f"... and {rest} more"] if rest else [])]


def _kind(reason: str) -> str:
    """The kind of a reason, for counting: what stands before its particulars."""
    for mark in (":", " at byte", " of line", ";", " (", " among "):
        reason = reason.split(mark)[0]
    return reason
