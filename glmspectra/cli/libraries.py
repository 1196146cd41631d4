"""What the libraries underneath say by themselves: nothing on the terminal that tells no one."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


def hush() -> None:
    """Show no bars of loading and of tokenizing, and no notices to those who call the libraries (deprecations).

    To be called before the libraries are imported, or after.
    """
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(transformers|peft|pyarrow|torch)\b")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if "transformers" in sys.modules:
        from transformers.utils import logging as bars

        bars.disable_progress_bar()


@contextmanager
def library_log(path: Path | None = None) -> Iterator[None]:
    """Keep what libraries warn of off the terminal, and in a file where `path` says.

    Their warnings are addressed to those who call them (deprecations, defaults). What goes wrong still raises, and what
    they call an error still reaches stderr.

    Args:
        path: The file; it is written once its folder is there, and begins with what was said before.
    """
    import transformers  # noqa: F401 - it gives its logger a handler at import, which is replaced below

    handler = _LibraryLog(path)
    replaced = []
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        replaced.append((logger, logger.handlers, logger.propagate))
        logger.handlers, logger.propagate = [handler], False
    showing, warnings.showwarning = warnings.showwarning, handler.warn
    try:
        yield
    finally:
        warnings.showwarning = showing
        for logger, handlers, propagate in replaced:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


_LOGGERS = ("transformers", "peft", "accelerate", "datasets", "bitsandbytes", "torch", "huggingface_hub")


class _LibraryLog(logging.Handler):
    """Appends records to a file once its folder is there; errors go to stderr too."""

    def __init__(self, path: Path | None):
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.path = path
        self.waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            sys.stderr.write(f"{record.getMessage()}\n")
        self.waiting.append(self.format(record))
        self._write()

    def warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """In the place of `warnings.showwarning`."""
        text = f"{category.__name__} at {filename}:{lineno}: {message}"
        self.handle(logging.LogRecord("warnings", logging.WARNING, filename, lineno, text, None, None))

    def _write(self) -> None:
        if not self.waiting or self.path is None or not self.path.parent.is_dir():
            return
        with suppress(OSError), self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(f"{text}\n" for text in self.waiting))
            self.waiting.clear()

    def close(self) -> None:
        self._write()
        super().close()
