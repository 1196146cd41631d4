"""What a command says and how it ends: notes and progress on stderr, the result on stdout."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from glmspectra.json_files import json_text

stderr = Console(stderr=True)
stdout = Console()


def finish(result: Mapping[str, Any], lines: str | list[str], as_json: bool) -> None:
    """Print the result of a command: one JSON object under `--json`, else the lines a person reads."""
    if as_json:
        sys.stdout.write(json_text(result) + "\n")
        return
    for line in [lines] if isinstance(lines, str) else lines:
        stdout.print(line, highlight=False, markup=False, soft_wrap=True)


def note(sentence: str | None, quiet: bool = False) -> None:
    """Print a sentence on stderr as it stands, where there is one and the command is not quiet."""
    if sentence and not quiet:
        stderr.print(sentence, highlight=False, markup=False, soft_wrap=True)
