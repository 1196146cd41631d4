"""Checkpoint folders of a training run: written whole or not at all, found again, and kept to a number.

A checkpoint is written into a hidden folder beside its place and renamed when every file is on disk. A
process that is killed at any moment leaves the last whole checkpoint as it was, and a hidden folder that the
next run removes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glmspectra.errors import RequestError

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


@contextmanager
def written_whole(target: Path, main: bool = True) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends without an error; an older `target`
    goes then.

    main: whether this process does the making and renaming; other processes write into the same folder
    meanwhile.
    """
    staging = target.with_name(f".{target.name}.writing")
    if main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    yield staging
    if main:
        _to_disk(staging)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def check_place(target: Path, key: str, mark: str | None = None) -> None:
    """Stop where a folder that is to be written whole would take away something that is not its like.

    key: what the target is called in the message. mark: a file by which an earlier one of its kind is known, which
    is replaced; None: nothing is. Raises RequestError.
    """
    if not target.exists() or (target.is_dir() and (not any(target.iterdir()) or (mark and (target / mark).is_file()))):
        return
    kind = f"holds other things than an earlier {mark}" if mark and target.is_dir() else "is there already"
    raise RequestError(f"{key} {target} {kind}, and nothing is overwritten: name another folder, or remove it.")


def clear_unfinished(output_dir: Path) -> None:
    """Remove what a killed process left behind; a checkpoint that was being replaced is put back first."""
    for old in output_dir.glob(".*.old"):
        target = old.with_name(old.name[1 : -len(".old")])
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for staging in output_dir.glob(".*.writing"):
        shutil.rmtree(staging)


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


def _to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
