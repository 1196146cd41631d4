"""What the libraries underneath do and say by themselves: nothing is fetched, and nothing said that tells no one."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO


def fetch_no_kernels() -> None:
    """Let no library bring compiled kernels from a hub; to be called before any of them is imported.

    They do so through the package `kernels`, where it is installed: bitsandbytes at its import on some CPUs (and peft
    imports it for every adapter, 4 bits or not), transformers for flash attention that is not installed. Without the
    package bitsandbytes goes on with what it has, and advises to install it.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None: importing it fails
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


COMPILED_AT_IMPORT = "bitsandbytes.backends.default.ops"


def compile_when_called() -> None:
    """Let bitsandbytes set up torch.compile at the first call of what it compiles, not at its import.

    It decorates four functions, none of which a GPU ever calls, and setting up loads torch's compiler: 3 of the 13
    seconds of processor time that `import peft` takes. To be called before either is imported.
    """
    if not any(isinstance(finder, _LaterCompilation) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LaterCompilation())


class _LaterCompilation(MetaPathFinder):
    """Finds that one module as Python does, and has it executed with a torch.compile that waits."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != COMPILED_AT_IMPORT:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(_executed, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _executed(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    import torch

    compile_now, torch.compile = torch.compile, _later  # type: ignore[assignment]
    try:
        execute(module)
    finally:
        torch.compile = compile_now  # type: ignore[assignment]


def _later(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    @functools.cache
    def compiled() -> Callable[..., Any]:
        import torch

        return torch.compile(function, **settings)

    return lambda *args, **kwargs: compiled()(*args, **kwargs)


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
