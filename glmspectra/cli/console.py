"""What a command says and how it ends: notes and progress on stderr, the result on stdout."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

stderr = Console(stderr=True)
stdout = Console()


def finish(result: Mapping[str, Any], lines: str | list[str], as_json: bool) -> None:
    """Print the result of a command: one JSON object under `--json`, else the lines a person reads."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(result), ensure_ascii=False, default=str, allow_nan=False) + "\n")
        return
    for line in [lines] if isinstance(lines, str) else lines:
        stdout.print(line, highlight=False, markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
