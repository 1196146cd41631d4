"""A file is there whole or not at all, whatever kills the process or the machine.

Written beside its final place under a name of its own, flushed to the disk, then renamed: the rename is
atomic on POSIX file systems, and the folder is flushed so that the new name outlives a power cut too.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from glmspectra.errors import StoreError

TEMPORARY_SUFFIX = ".partial"


def explain(error: OSError, path: Path, doing: str = "be written") -> StoreError:
    """The one sentence for a file system error on `path`."""
    kept = "what was finished is kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{path} cannot {doing}: the disk is full; {kept}, so free some space and run the same command again."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(
            f"{path} cannot {doing}: its folder is read-only for this user; choose another place with --out "
            f"or change its permissions ({kept})."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(f"{path} cannot {doing}: a file is in the way of a folder; move it or choose another --out.")
    if error.errno == errno.EISDIR:
        return StoreError(f"{path} cannot {doing}: a folder of this name is there; choose another name.")
    return StoreError(
        f"{path} cannot {doing}: {error.strerror or error}; {kept}, run the same command again once it can."
    )


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents. Raises StoreError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder, "be created") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file and put it at `path`, replacing what was there.

    The temporary name carries the process id, so that several processes may write into one folder, even the
    same file (the last rename wins). Raises StoreError, with nothing left behind, where the file system
    refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):  # after the rename there is nothing to remove
            temporary.unlink()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while writing; those of living ones stay."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        process = leftover.name.removesuffix(TEMPORARY_SUFFIX).rsplit(".", 1)[-1]
        if not (process.isdigit() and _is_running(int(process))):
            with suppress(OSError):
                leftover.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one process at a time reads and rewrites the manifest and the merged tables.

    The lock is the kernel's (flock) and falls with the process that holds it, so a killed run leaves none
    behind.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain(error, folder / ".lock") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
