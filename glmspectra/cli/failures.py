"""Any error as one sentence and an exit status; what an interrupted command left."""

import re
from collections.abc import Sequence
from pathlib import Path

from glmspectra.errors import GlmspectraError, RequestError
from glmspectra.language import text

INTERRUPTED = 130
MOST_CHARACTERS = 2000  # of a sentence on the terminal
# What is true of a command after Ctrl-C, by its name in the catalogue; all others write their result whole at the end.
GOES_ON, GOES_ON_FROM_CHECKPOINT, BEGINS_ANEW = "interrupted-goes-on", "interrupted-checkpoint", "interrupted-anew"
AFTER_INTERRUPTION = dict.fromkeys(("svd", "values", "delta", "suggest-rank", "convert", "loop", "demo"), GOES_ON) | {
    "train": GOES_ON_FROM_CHECKPOINT
}


def interruption(arguments: Sequence[str]) -> str:
    """What is true of an interrupted command: whether something is kept, and what the same command does next."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    kept = AFTER_INTERRUPTION.get(command, BEGINS_ANEW)
    return text(BEGINS_ANEW if {"--dry-run", "--find-lr"} & set(arguments) else kept)


def sentence(error: Exception) -> tuple[str, int]:
    """What to print for an error, and the exit status.

    Libraries wrap what the file system and the memory say in errors of their own; these are found again. An error that
    no one foresaw is one sentence too.
    """
    from glmspectra.files import as_os_error, explain
    from glmspectra.launch import lost_process, tells_of_lost_process

    if isinstance(error, GlmspectraError):
        return _bounded(str(error)), error.exit_status
    if tells_of_lost_process(error):
        return str(lost_process(error)), GlmspectraError.exit_status
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or _not_allocated(error):
        said = _first_line(error) or "the system gives no more"
        return (
            f"there is not enough memory ({said}): free some, take a smaller batch or sequence length, or another "
            "device; what was finished is kept.",
            GlmspectraError.exit_status,
        )
    fault = as_os_error(error, Path.cwd())
    if fault is not None:
        named = fault.filename if isinstance(fault.filename, str | bytes) else None
        path = Path(named.decode(errors="backslashreplace") if isinstance(named, bytes) else named or "a result")
        return str(explain(fault, path, "be read or written")), GlmspectraError.exit_status
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path holds a null character, which no file name can.", RequestError.exit_status
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{_bounded(what)} (not foreseen; what was finished is kept; --debug at the end of the command shows where).",
        GlmspectraError.exit_status,
    )


def _bounded(text: str) -> str:
    """A sentence may quote what a file says, which can be of any length: its two ends then."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


def _not_allocated(error: Exception) -> bool:
    """PyTorch's allocator for the CPU raises a plain RuntimeError."""
    return isinstance(error, RuntimeError) and bool(re.search(r"can't allocate memory|not enough memory", str(error)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200].rstrip(". ")
