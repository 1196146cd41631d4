"""The end of each command's `--help`: a real call and what it printed, kept under `examples/`, one file a command."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from typer.core import TyperCommand

if TYPE_CHECKING:
    from click import Context, HelpFormatter

EXAMPLES = Path(__file__).with_name("examples")
SKIPPED = "..."  # a line that stands for lines left out, as in a doctest


def example_of(command: str) -> str:
    """The call of a command after `$ `, and below it the lines it printed on stdout."""
    return (EXAMPLES / f"{command}.txt").read_text(encoding="utf-8")


class CommandWithExample(TyperCommand):
    """A command whose help ends with its example, which keeps its line breaks: tables stand in it."""

    def format_help(self, ctx: "Context", formatter: "HelpFormatter") -> None:  # type: ignore[override]
        """Write the help as Typer does, then the example."""
        super().format_help(ctx, formatter)  # type: ignore[arg-type]
        formatter.write(f"\n Example\n\n{self._indented(formatter.width + 2)}")

    def _indented(self, width: int) -> str:
        """The example, a column from the edge; tables of 79 columns fit, sentences are broken between words."""
        lines = []
        for line in example_of(self.name or "").splitlines():
            lines += textwrap.wrap(
                line,
                width,
                initial_indent=" ",
                subsequent_indent="     ",
                drop_whitespace=False,
                break_long_words=False,
                break_on_hyphens=False,
            ) or [""]
        return "\n".join(line.rstrip() for line in lines) + "\n"
