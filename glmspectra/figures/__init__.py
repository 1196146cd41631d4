"""Pages and figures from stored tables and training logs.

Nothing here measures a matrix or opens a checkpoint: every page is made from the tables of `store` and from the
`trainer_state.json` of training folders, so all of it can be made again when the weights are gone. Pages are drawn in
the browser (`page/`); SVG files for papers are drawn by matplotlib when they are asked for (`svg/`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmspectra.figures.evaluated import Outcome as Outcome
    from glmspectra.figures.evaluated import write_evaluation as write_evaluation
    from glmspectra.figures.evaluated import write_loop as write_loop
    from glmspectra.figures.overview import write_overview as write_overview
    from glmspectra.figures.overview import write_overview_beside as write_overview_beside
    from glmspectra.figures.report import write_comparison as write_comparison
    from glmspectra.figures.report import write_report as write_report
    from glmspectra.figures.report import write_tables_report as write_tables_report
    from glmspectra.figures.tables import Tables as Tables
    from glmspectra.figures.training_log import TrainingRun as TrainingRun
    from glmspectra.figures.training_log import read_training as read_training
    from glmspectra.figures.training_report import write_training_curves as write_training_curves
    from glmspectra.figures.training_report import write_training_report as write_training_report

# Name -> its module, imported when the name is taken (PEP 562): that a page stands is seen without what draws it.
_OFFERED = {
    **dict.fromkeys(("Outcome", "write_evaluation", "write_loop"), "evaluated"),
    "write_overview": "overview",
    "write_overview_beside": "overview",
    **dict.fromkeys(("write_comparison", "write_report", "write_tables_report"), "report"),
    **dict.fromkeys(("write_training_curves", "write_training_report"), "training_report"),
    "Tables": "tables",
    **dict.fromkeys(("TrainingRun", "read_training"), "training_log"),
}
__all__ = [*_OFFERED]


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_OFFERED[name]}"), name)
    return value
