"""What libraries do while they are imported, and no command needs: fetching, compiling, loading what no one calls.

`prepare_imports` is called once, before any of them is imported.
"""

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

# Libraries of thousands of modules.
LARGE = {"accelerate", "datasets", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "sympy", "torch", "transformers"}


def prepare_imports() -> None:
    """Let libraries be imported without what no command needs of it; see the functions that do it.

    No library may bring compiled kernels from a hub either. They do so through the package `kernels`, where it is
    installed: bitsandbytes at its import on some CPUs (and peft imports it for every adapter, 4 bits or not),
    transformers for flash attention that is not installed. Without the package they go on with what they have.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None: importing it fails
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, cast(Any, _Finder()))


class _Finder:
    """Finds modules as Python does, and has some of them executed inside a context of their own."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        context = _CONTEXTS.get(fullname)
        if context is None:
            if not (gc.isenabled() and fullname.partition(".")[0] in LARGE):
                return None
            context = _uncollected if "transformers.modeling_utils" in sys.modules else _kept_for_good
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = functools.partial(_executed, execute, context)  # type: ignore[method-assign]
        return spec


def _executed(execute: Callable[[ModuleType], None], context: Callable[[], Any], module: ModuleType) -> None:
    with context():
        execute(module)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for: an import makes hundreds of thousands of objects, and nearly all of them stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _kept_for_good() -> Iterator[None]:
    """No garbage is looked for, and later no more among what is there then: libraries, and no model yet."""
    if "torch" in sys.modules:  # tensors that are done with go before
        gc.collect()
    with _uncollected():
        yield
        gc.freeze()  # before the collector, once on again, goes through all of it


@contextmanager
def _compiled_later() -> Iterator[None]:
    """What torch.compile is asked for waits until it is called.

    bitsandbytes decorates four functions, none of which a GPU ever calls, and setting up loads torch's compiler: 3 of
    the 13 seconds of processor time that `import peft` takes.
    """
    import torch

    compile_now, torch.compile = torch.compile, _later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


def _later(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    @functools.cache
    def compiled() -> Callable[..., Any]:
        import torch

        return torch.compile(function, **settings)

    return lambda *args, **kwargs: compiled()(*args, **kwargs)


@contextmanager
def _without_advice() -> Iterator[None]:
    """No advice to install `kernels`."""
    import logging

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    yield


@contextmanager
def _without_scipy() -> Iterator[None]:
    """The losses of object detection do without scipy.optimize, by which they would match boxes.

    transformers imports the losses of all models before any model, which is 0.8 s of processor time.
    """
    from transformers import utils

    available, utils.is_scipy_available = utils.is_scipy_available, lambda: False
    try:
        yield
    finally:
        utils.is_scipy_available = available


@contextmanager
def _without_charset_normalizer() -> Iterator[None]:
    """numpy.f2py does without the package by which it would guess the encoding of Fortran sources.

    scipy asks numpy for all its names at its import, f2py among them, and the package takes 0.2 s of processor time.
    """
    if "charset_normalizer" in sys.modules:
        yield
        return
    sys.modules["charset_normalizer"] = None  # type: ignore[assignment]  # importing it fails
    try:
        yield
    finally:
        del sys.modules["charset_normalizer"]


_CONTEXTS: dict[str, Callable[[], Any]] = {
    "bitsandbytes.backends.cpu.ops": _without_advice,
    "bitsandbytes.backends.default.ops": _compiled_later,
    "numpy.f2py.crackfortran": _without_charset_normalizer,
    "transformers.loss.loss_utils": _without_scipy,
}
