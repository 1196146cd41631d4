"""Sixteen hexadecimal digits that change when a checkpoint's weights change, without reading gigabytes.

Files up to 64 MiB are hashed whole. Of larger ones 4 KiB in every MiB are hashed, the first and the last
piece among them: any change of a whole matrix (training, merging, another quantisation) touches a sample; a
change of a few bytes between two samples does not.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

WHOLE_UP_TO = 64 << 20
STRIDE = 1 << 20
SAMPLE = 4 << 10


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
