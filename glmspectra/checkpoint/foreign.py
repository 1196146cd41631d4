"""Folders that anybody may have written, read by transformers and PEFT: what these raise becomes one sentence."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from glmspectra.errors import CheckpointError, GlmspectraError

MOST_WORDS = 500  # characters of a library's message: it may quote a file


@contextmanager
def read_by_library(place: Path, failed: str, advice: str = "") -> Iterator[None]:
    """Let a library read a folder or file of a model or an adapter.

    A damaged or hostile file makes the library fail in any way (AttributeError for a list in the place of an object,
    say), so every error of its is taken; ours and the want of memory stay as they are.

    Args:
        place: The folder or file.
        failed: What could not be done, after the name of the place.
        advice: What stands at the end of the sentence.

    Raises:
        CheckpointError: The library raised an error, or a pipe or device lies in the folder, which would be waited for.
    """
    refuse_pipes(place)
    try:
        yield
    except (GlmspectraError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = first_line(error).rstrip(".")
        raise CheckpointError(f"{place}: {failed}: {said}{'; ' if advice else ''}{advice}.") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, with the one that it announces; its class where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0]
    return said if len(said) <= MOST_WORDS else said[: MOST_WORDS - 3] + "..."


def refuse_pipes(place: Path) -> None:
    """Raise CheckpointError for a pipe, a socket or a device at this place or in this folder: reading could wait."""
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        if path.exists() and not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
            raise CheckpointError(f"{path} is not a regular file, and reading it could wait for ever: take it away.")
