"""Checkpoint folders of a training run: found again, and kept to a number."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from glmspectra.errors import RequestError

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints of a folder, by step."""
    found = [
        path for path in output_dir.glob("checkpoint-*") if _NAME.search(path.name) and (path / STATE_FILE).is_file()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """N of a folder named checkpoint-N."""
    match = _NAME.search(checkpoint.name)
    if match is None:
        raise RequestError(f"{checkpoint}: a checkpoint is a folder named checkpoint-N.")
    return int(match[1])


def find_resume(resume: bool | str | None, output_dir: Path) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, or None for a fresh start.

    Raises RequestError when there is none, or the folder is no whole checkpoint.
    """
    if not resume:
        return None
    if resume is True or str(resume).lower() == "true":
        found = checkpoints(output_dir)
        if not found:
            raise RequestError(
                f"resume_from_checkpoint is true, and {output_dir} holds no whole checkpoint to go on from."
            )
        return found[-1]
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise RequestError(f"resume_from_checkpoint {path}: no {STATE_FILE} there, so it is no whole checkpoint.")
    return path


def prune(output_dir: Path, limit: int | None, keep: Path | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, never `keep` (the best one) and never the newest."""
    if not limit or limit <= 0:
        return
    found = checkpoints(output_dir)
    spare = [path for path in found[:-1] if keep is None or path.resolve() != keep.resolve()]
    for path in spare[: max(0, len(found) - limit)]:
        shutil.rmtree(path, ignore_errors=True)
