"""Folders that anybody may have written, read by transformers and PEFT: what these raise becomes one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from glmspectra.errors import CheckpointError, GlmspectraError
from glmspectra.json_files import check_regular

MOST_WORDS = 500  # characters of a library's message: it may quote a file


@contextmanager
def read_by_library(path: Path, failed: str, advice: str = "") -> Iterator[None]:
    """Let a library read a folder or file of a model or an adapter.

    A damaged or hostile file makes the library fail in any way (AttributeError for a list where an object belongs,
    say), so every error of its is taken; ours and the want of memory stay as they are.

    Args:
        path: The folder or file.
        failed: What could not be done, after its name.
        advice: What stands at the end of the sentence.

    Raises:
        CheckpointError: The library raised an error, or a pipe or device lies in the folder, which would be waited for.
    """
    refuse_pipes(path)
    try:
        yield
    except (GlmspectraError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = first_line(error).rstrip(".")
        raise CheckpointError(f"{path}: {failed}: {said}{'; ' if advice else ''}{advice}.") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, with the one that it announces; its class where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0]
    return said if len(said) <= MOST_WORDS else said[: MOST_WORDS - 3] + "..."


def refuse_pipes(path: Path) -> None:
    """Raise CheckpointError for a pipe, a socket or a device at this path or in this folder: reading could wait."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.exists() and not file.is_dir():
            check_regular(file, file.stat())
