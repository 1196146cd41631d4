"""Sixteen hexadecimal digits that change when a checkpoint's weights change, without reading gigabytes.

Files up to 64 MiB are hashed whole. Of larger ones 4 KiB in every MiB are hashed, the first and the last
piece among them: any change of a whole matrix (training, merging, another quantization) touches a sample; a
change of a few bytes between two samples does not.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from glmspectra.errors import CheckpointError

WHOLE_UP_TO = 64 << 20
STRIDE = 1 << 20
SAMPLE = 4 << 10


class FileIdentity(NamedTuple):
    """What tells that a file is still the one that was opened: bytes, nanoseconds of last change, inode, device."""

    size: int
    modified: int
    inode: int
    device: int


def identity_of(path: Path) -> FileIdentity:
    """The identity of the file at `path` now. Raises OSError where there is none."""
    status = path.stat()
    return FileIdentity(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def check_unchanged(known: Mapping[Path, FileIdentity]) -> None:
    """See that files still have the identities that they had when they were opened.

    Raises:
        CheckpointError: One was changed, replaced or removed meanwhile.
    """
    for path, identity in known.items():
        try:
            same = identity_of(path) == identity
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be found again ({error.strerror}): it was there when the command began; run the same "
                "command again once it is back."
            ) from error
        if not same:
            raise CheckpointError(
                f"{path} changed while the command read it; what was finished before is of the earlier file and is "
                "kept as such; run the same command again for the file as it is now."
            )


def fingerprint_file(path: Path) -> str:
    """16 hex digits from the file's size and content (sampled when it is larger than 64 MiB).

    Not from its name or time.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_UP_TO:
            while chunk := file.read(STRIDE):
                digest.update(chunk)
        else:
            for offset in [*range(0, size - SAMPLE, STRIDE), size - SAMPLE]:
                file.seek(offset)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def fingerprint_set(files: Iterable[tuple[str, int, str]]) -> str:
    """16 hex digits of a set of files, each (name, size, fingerprint), whatever their order."""
    text = "\n".join(f"{name}\t{size}\t{fingerprint}" for name, size, fingerprint in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
