"""What a command says and how it ends: notes and progress on stderr, the result on stdout.

Names come from files that anybody may have written, so nothing in a text is taken for markup, and characters that a
terminal would obey are written out.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# C0 and C1 controls but tab and line feed, marks that turn the direction of text, separators of lines, half surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with every character that a terminal would obey written as its escape: \x1b for ESC."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write_any_character() -> None:
    """Let stdout and stderr take every character: what their encoding lacks (ASCII, say) is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def finish(result: Mapping[str, Any], lines: "str | Sequence[str | Table]", as_json: bool) -> None:
    """Print the result of a command: one JSON object under `--json`, else the lines and tables a person reads."""
    if as_json:
        from glmspectra.json_files import json_text

        encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
        sys.stdout.write(json_text(result, ascii_only=encoding != "utf8") + "\n")
        return
    for line in [lines] if isinstance(lines, str) else lines:
        if isinstance(line, str):
            print(printable(line))
        else:
            _draw(line)


def show_table(title: str, table: "Table") -> None:
    """Print a table under its title, which rich would break to the width of the table were it the table's own."""
    print(printable(title))
    _draw(table)


def _draw(table: "Table") -> None:
    from glmspectra.cli.drawing import stdout

    stdout.print(table)


def note(sentence: str | None, quiet: bool = False) -> None:
    """Print a sentence on stderr as it stands, where there is one and the command is not quiet."""
    if sentence and not quiet:
        print(printable(sentence), file=sys.stderr)
