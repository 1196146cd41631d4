"""Whether a page need not be written again: nothing that it is made of has changed."""

from collections.abc import Iterable
from pathlib import Path

from glmspectra import __version__
from glmspectra.language.catalogue import chosen

PACKAGE = Path(__file__).resolve().parents[1]
GENERATOR = "glmspectra"


def written_here(path: Path) -> str | None:
    """The text of a page that was written here, None for any other file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text if f'name="generator" content="{GENERATOR}' in text[:3000] else None


def stands(page: Path, sources: Iterable[Path]) -> bool:
    """Whether `page` was written by this version, opens in the language asked for, and is newer than what it shows.

    Newer than each of `sources` (files; folders among them count by their own time) and than the package's own files,
    which differ within a version where the package is worked on.
    """
    text = written_here(page)
    if text is None or f'content="{GENERATOR} {__version__}"' not in text or f'"opens":"{chosen()}"' not in text:
        return False
    code = (path for path in PACKAGE.rglob("*.*") if path.suffix != ".pyc")
    try:
        written = page.stat().st_mtime_ns
        return all(path.stat().st_mtime_ns < written for path in (*sources, *code))
    except OSError:
        return False
