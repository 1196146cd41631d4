"""Pages and figures from stored tables and training logs.

Nothing here measures a matrix or opens a checkpoint: every page is made from the tables of `store` and from the
`trainer_state.json` of training folders, so all of it can be made again when the weights are gone. Pages are drawn in
the browser (`page/`); SVG files for papers are drawn by matplotlib when they are asked for (`svg/`).
"""

from glmspectra.figures.evaluated import Outcome, write_evaluation, write_loop
from glmspectra.figures.overview import write_overview
from glmspectra.figures.report import (
    write_comparison,
    write_report,
    write_tables_report,
    write_training_curves,
    write_training_report,
)
from glmspectra.figures.tables import Tables
from glmspectra.figures.training_log import TrainingRun, read_training

__all__ = [
    "Outcome",
    "Tables",
    "TrainingRun",
    "read_training",
    "write_comparison",
    "write_evaluation",
    "write_loop",
    "write_overview",
    "write_report",
    "write_tables_report",
    "write_training_curves",
    "write_training_report",
]
