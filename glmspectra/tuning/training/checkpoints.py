"""Checkpoint folders of a training run: found again by their checksums, and kept to a number.

A checkpoint appears whole or not at all (`glmspectra.files`), and carries SHA256SUMS, so that what a disk, a copy or a
hand did to it afterwards is seen before it is trained on. The file is that of sha256sum: `sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from glmspectra.errors import RequestError
from glmspectra.files import write_text
from glmspectra.language import Words, both

STATE_FILE = "trainer_state.json"
SUMS_FILE = "SHA256SUMS"
_NAME = re.compile(r"checkpoint-(\d+)$")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_CHUNK = 1 << 20


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a folder, by step; their content is not looked at."""
    found = [path for path in output_dir.glob("checkpoint-*") if _NAME.search(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """N of a folder named checkpoint-N."""
    match = _NAME.search(checkpoint.name)
    if match is None:
        raise RequestError(f"{checkpoint}: a checkpoint is a folder named checkpoint-N.")
    return int(match[1])


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every file of a checkpoint that is being written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_FILE)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    write_text(folder / SUMS_FILE, "".join(lines))


def damage_of(checkpoint: Path) -> Words | None:
    """What is wrong with a checkpoint, as the end of a sentence, or None where every file is as it was written."""
    try:
        lines = (checkpoint / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return both("damage-sums-unreadable", file=SUMS_FILE)
    found = [_LINE.fullmatch(line) for line in lines]
    names = [match[2] for match in found if match]
    if len(names) < len(lines) or STATE_FILE not in names:
        return both("damage-sums-other", file=SUMS_FILE)
    for match in found:
        assert match is not None  # counted above
        path = checkpoint / match[2]
        try:
            same = _sha256(path) == match[1]
        except OSError:
            return both("damage-file-missing", file=match[2])
        if not same:
            return both("damage-file-other", file=match[2], sums=SUMS_FILE)
    return None


def newest_whole(output_dir: Path) -> tuple[Path | None, list[Words]]:
    """The newest checkpoint whose files are all as they were written, and a line for each newer one that is damaged."""
    lines: list[Words] = []
    for checkpoint in reversed(checkpoints(output_dir)):
        damage = damage_of(checkpoint)
        if damage is None:
            return checkpoint, lines
        lines.append(both("training-damaged", path=str(checkpoint), damage=damage))
    return None, lines


def prune(output_dir: Path, limit: int | None, keep: Path | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, never `keep` (the best one) and never the newest."""
    if not limit or limit <= 0:
        return
    found = checkpoints(output_dir)
    spare = [path for path in found[:-1] if keep is None or path.resolve() != keep.resolve()]
    for path in spare[: max(0, len(found) - limit)]:
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
