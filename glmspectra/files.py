"""A file or a folder is there whole or not at all, whatever kills the process or the machine.

Either is written beside its final place under a name of its own, flushed to the disk, then renamed: the rename is
atomic on POSIX file systems, and the parent folder is flushed so that the new name outlives a power cut too. Every
unfinished name ends in `UNFINISHED`, and `remove_leftovers` removes what a killed process left.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from glmspectra.errors import RequestError, StoreError

UNFINISHED = ".partial"
REPLACED = ".replaced"  # the earlier folder while its successor takes its name
WRITER = ".writer.lock"  # who writes a folder just now


def must_be_there(path: Path, origin: str = "", kind: str = "folder", file_too: bool = True) -> None:
    """Say that something is not there, before a command loads what would find out. Raises RequestError.

    What is neither a folder nor, `file_too`, a regular file (a pipe, a device) is not there either.
    """
    if not (path.is_dir() or (file_too and path.is_file())):
        raise RequestError(f"{origin} {path}: there is no such {kind}.".lstrip())


def explain(error: OSError, path: Path, doing: str = "be written") -> StoreError:
    """The one sentence for a file system error on `path`."""
    kept = "what was finished is kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{path} cannot {doing}: the disk is full; {kept}, so free some space and run the same command again."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(
            f"{path} cannot {doing}: its folder is read-only for this user; choose another folder with --out "
            f"or change its permissions ({kept})."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(f"{path} cannot {doing}: a file is in the way of a folder; move it or choose another --out.")
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return StoreError(f"{path} cannot {doing}: it is a file system of its own; name a folder inside it.")
    if error.errno == errno.ENAMETOOLONG:
        return StoreError(f"{path} cannot {doing}: its name is too long for this file system; choose a shorter one.")
    if error.errno == errno.EISDIR:
        return StoreError(f"{path} cannot {doing}: a folder of this name is there; choose another name.")
    return StoreError(
        f"{path} cannot {doing}: {error.strerror or error}; {kept}, run the same command again once it can."
    )


def readable(path: Path) -> str:
    r"""`path` as text that UTF-8 can hold: bytes that are none are written as their escapes, \xe9."""
    return os.fsencode(path).decode(errors="backslashreplace")


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A name of an existing file that UTF-8 can hold, for libraries that open no other; valid inside the block."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents. Raises StoreError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        if not isinstance(error, OSError):
            raise RequestError(f"{str(folder)!r} is no name of a folder: {error}.") from error
        raise explain(error, folder, "be created") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object], sweep: bool = True) -> None:
    """Let `write` fill a new file and put it at `path`, replacing what was there.

    The temporary name carries the process id, so that several processes may write into one folder, even the same file
    (the last rename wins).

    Args:
        path: The file.
        write: Writes the content into the open file.
        sweep: Remove what killed processes left of this file. It lists the folder; whoever writes thousands of files
            into one calls `remove_leftovers` once before.

    Raises:
        StoreError: The file system refuses; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush(path.parent)
        if sweep:
            _remove_unfinished(path.parent, f".{path.name}.")
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):  # after the rename there is nothing to remove
            temporary.unlink()


def write_text(path: Path, text: str) -> Path:
    r"""Put `text` (UTF-8) at `path` as `write_atomically` does, making its folder; returns the path.

    Names come from files that anybody may have written. Control characters in them, which neither HTML nor SVG can
    hold, become the escapes of JSON (\u001b), so that text that is JSON stays JSON, and half a surrogate pair, which a
    file name that is not UTF-8 brings along, a question mark.

    Raises:
        StoreError: The file system refuses.
    """
    make_folder(path.parent)
    text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))
    return path


_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")  # tab and line ends stay


@contextmanager
def atomic_folder(target: Path, main: bool = True, resume: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends without an error.

    An earlier `target` goes only then. Where the block fails, the unfinished folder is removed.

    Args:
        target: The final folder; a symbolic link stands for what it names.
        main: Whether this process makes and renames; others write into the same folder meanwhile.
        resume: Keep the unfinished folder when the block fails, and begin with the one that an earlier call left.

    Raises:
        StoreError: The file system refuses, the block's own writing included.
    """
    target = target.resolve()
    staging = target.with_name(f".{target.name}{UNFINISHED}")
    replaced = target.with_name(f".{target.name}{REPLACED}")
    if not main:
        yield staging
        return
    finished = False
    try:
        if replaced.exists() and not target.exists():
            replaced.rename(target)  # a process was killed between the two renames below
        if not resume:
            _remove_folder(staging)
        make_folder(staging)
        yield staging
        for path in [*staging.rglob("*"), staging]:
            _flush(path)
        _remove_folder(replaced)
        if target.exists():
            target.rename(replaced)
        staging.rename(target)
        _flush(target.parent)
        finished = True
    except Exception as error:
        fault = as_os_error(error, target.parent)
        if fault is None:
            raise
        raise explain(fault, Path(os.fsdecode(fault.filename)) if fault.filename else target) from error
    finally:
        if finished:
            _remove_folder(replaced)
        elif not resume:
            _remove_folder(staging)


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def as_os_error(error: BaseException, folder: Path) -> OSError | None:
    """What the file system said, out of an error of a library that wraps it; None where it is another error.

    Args:
        error: What was raised while something was written into `folder`.
        folder: A folder that exists, on the file system that was written to.
    """
    if isinstance(error, OSError):
        return error
    said = str(error)
    code = re.search(r"\(os error (\d+)\)", said)  # safetensors and tokenizers, which are written in Rust
    if code:
        return OSError(int(code[1]), os.strerror(int(code[1])))
    if re.search(r"PytorchStreamWriter failed|unexpected pos|file write failed", said):  # torch.save keeps no number
        full = shutil.disk_usage(folder).free < 1 << 20
        return OSError(errno.ENOSPC if full else errno.EIO, os.strerror(errno.ENOSPC if full else errno.EIO))
    return None


def check_target(target: Path, key: str, mark: str | None = None) -> None:
    """Stop where a folder that is to be written would take away something that is not an earlier result.

    Args:
        target: The folder to be written.
        key: What the target is called in the message.
        mark: A file by which an earlier result is known, which is replaced; None: nothing is.

    Raises:
        RequestError: Something else is there.
    """
    if not target.exists() or (target.is_dir() and (not any(target.iterdir()) or (mark and (target / mark).is_file()))):
        return
    found = f"holds other things than an earlier {mark}" if mark and target.is_dir() else "is there already"
    raise RequestError(f"{key} {target} {found}, and nothing is overwritten: name another folder, or remove it.")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`; files that a living process writes stay.

    A folder that was being replaced is put back when its successor did not take its name.
    """
    for replaced in folder.glob(f".*{REPLACED}"):
        target = replaced.with_name(replaced.name[1 : -len(REPLACED)])
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(target)
    for leftover in folder.glob(f".*{UNFINISHED}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
    _remove_unfinished(folder, ".")


def _remove_unfinished(folder: Path, prefix: str) -> None:
    """Remove the unfinished files of dead processes whose names begin with `prefix`."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if not (entry.name.startswith(prefix) and entry.name.endswith(UNFINISHED)) or entry.is_dir():
                continue
            process = entry.name.removesuffix(UNFINISHED).rsplit(".", 1)[-1]
            if not (process.isascii() and process.isdigit() and _is_running(int(process))):
                Path(entry.path).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the second: a number that no process has
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


@contextmanager
def exclusive(folder: Path, doing: str, beside: bool = False) -> Iterator[None]:
    """Be the only process that writes `folder` until the block ends; the folder is made where it is not there.

    The lock is the kernel's (flock) and falls with the process that holds it, however it dies, so a stale one is taken
    over without a question. Its file names the holder for whoever comes second, and goes when the block ends. Several
    processes of one command (torchrun) share one lock: only their main process takes it.

    Args:
        folder: The folder to be written.
        doing: The command, for whoever comes second: "train".
        beside: Keep the lock beside the folder and not in it: for a folder that appears only when it is whole.

    Raises:
        RequestError: Another process writes the folder; the message says which, where and since when.
        StoreError: The file system refuses the lock.
    """
    folder = folder.resolve()
    path = folder.with_name(f".{folder.name}{WRITER}") if beside else folder / WRITER
    make_folder(path.parent)
    descriptor = _take(path, folder)
    _held.add(descriptor)
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "doing": doing}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        except OSError as error:
            raise explain(error, path) from error
        yield
    finally:
        with suppress(OSError):
            if _is_at(descriptor, path):  # not where the folder was moved meanwhile
                path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked helper (a data loader's worker) must not keep its dead parent's locks."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def _take(path: Path, folder: Path) -> int:
    """A descriptor that holds the lock file at `path`, which is there under this name."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise explain(error, path) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(descriptor)
            os.close(descriptor)
            raise RequestError(
                f"{folder} is in use: {holder} writes it; wait until it is done, stop it, or name another folder."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise explain(error, path, "be locked") from error
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder removed it between our opening and our locking


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _describe_holder(descriptor: int) -> str:
    """Who holds a lock, by its note; the note may not be written yet."""
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(note['pid'])} on {note['host']} ({note['doing']}, since {note['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
