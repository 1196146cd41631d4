"""JSON Lines files that a run adds to as it goes, each line with the step it was written at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmspectra.errors import TrainingError
from glmspectra.files import write_text
from glmspectra.json_files import parse_json


def append(path: Path, step: int, values: Mapping[str, Any]) -> None:
    """Add one line {"step": N, ...}."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")


def cut(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, which a resumed run writes again; with step -1 the file goes."""
    if last_step < 0:
        path.unlink(missing_ok=True)
    elif path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        write_text(path, "".join(line + "\n" for line in lines if _step(line) <= last_step))


def _step(line: str) -> float:
    try:
        return float(parse_json(line, "a line", TrainingError)["step"])
    except (TrainingError, ValueError, KeyError, TypeError):
        return float("inf")  # half a line, of a process that was killed while it wrote
