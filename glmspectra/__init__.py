"""Measures the weights of ChatGLM2-6B and trains it by what it measured.

`import glmspectra as gs` offers what the commands do. It is light: each function imports what it needs when it is first
taken (PEP 562), so neither `glmspectra --help` nor a notebook's first cell waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from glmspectra.api.measure import compare as compare
    from glmspectra.api.measure import delta as delta
    from glmspectra.api.measure import read_run as read_run
    from glmspectra.api.measure import spectrum as spectrum
    from glmspectra.api.measure import svd as svd
    from glmspectra.api.measure import values as values
    from glmspectra.api.plots import plot_depth as plot_depth
    from glmspectra.api.plots import plot_map as plot_map
    from glmspectra.api.plots import plot_spectrum as plot_spectrum
    from glmspectra.api.ranks import suggest_ranks as suggest_ranks
    from glmspectra.api.training import load_model as load_model
    from glmspectra.api.training import merge as merge
    from glmspectra.api.training import train as train

# Name -> the module that holds it.
_OFFERED = {
    **dict.fromkeys(("spectrum", "svd", "values", "delta", "read_run", "compare"), "glmspectra.api.measure"),
    **dict.fromkeys(("suggest_ranks",), "glmspectra.api.ranks"),
    **dict.fromkeys(("train", "merge", "load_model"), "glmspectra.api.training"),
    **dict.fromkeys(("plot_map", "plot_depth", "plot_spectrum"), "glmspectra.api.plots"),
}
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module 'glmspectra' has no attribute {name!r}; it offers {', '.join(_OFFERED)}")
    value = globals()[name] = getattr(import_module(_OFFERED[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
