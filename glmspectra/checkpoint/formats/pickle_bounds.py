"""What a pickle may ask for, counted before it is read: torch's unpickler runs no code, but obeys every opcode.

Marks and empty lists take 60 bytes of memory for one byte of file, and a compressed archive holds millions of them in
a kilobyte. A state dictionary needs some 250 bytes of pickle a tensor and five marks at a time.
"""

import io
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import IO

from glmspectra.errors import CheckpointError

MAXIMUM_BYTES = 16 << 20  # of the pickle itself, without the numbers: some 60,000 tensors in one file
MAXIMUM_OPCODES = 8_000_000
MAXIMUM_MARKS = 1_000  # open at a time
PICKLES = 5  # in torch's format of before 2020: a magic number, a version, the system, the tensors, their storages


def check_pickles(path: Path) -> None:
    """See that the pickles of a torch file stay within the bounds above.

    Raises:
        CheckpointError: One passes them. What is no pickle or no archive is left to the reader to say.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if member.filename.rpartition("/")[2] == "data.pkl":
                        if member.file_size > MAXIMUM_BYTES:
                            raise _beyond(path, f"a pickle of {member.file_size:,} bytes", f"{MAXIMUM_BYTES:,}")
                        _check(path, io.BytesIO(archive.read(member)))
            return
        with path.open("rb") as file:
            for _ in range(PICKLES):
                _check(path, file)
    except (MemoryError, OverflowError):
        raise CheckpointError(f"{path} asks for more memory than there is: it was not read.") from None
    except (ValueError, EOFError, IndexError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return  # cut, or no pickle: torch says what is wrong


def _check(path: Path, file: IO[bytes]) -> None:
    start, marks = file.tell(), 0
    for count, (opcode, _, position) in enumerate(pickletools.genops(file)):
        if opcode.name == "MARK":
            marks += 1
        elif opcode.stack_before and pickletools.markobject in opcode.stack_before:
            marks -= 1
        if marks > MAXIMUM_MARKS:
            raise _beyond(path, "marks nested in its pickle", f"{MAXIMUM_MARKS:,}")
        if count > MAXIMUM_OPCODES:
            raise _beyond(path, "opcodes in its pickle", f"{MAXIMUM_OPCODES:,}")
        if (position or 0) - start > MAXIMUM_BYTES:
            raise _beyond(path, "bytes of pickle", f"{MAXIMUM_BYTES:,}")


def _beyond(path: Path, what: str, bound: str) -> CheckpointError:
    return CheckpointError(f"{path} has {what} beyond the bound of {bound}, which no model needs: it was not read.")
