"""A table in, an SVG out; then `index.html` that binds them.

Nothing here measures a matrix or opens a checkpoint: every figure is drawn from the tables of `store` and from the
`trainer_state.json` of training folders, so all of it can be drawn again when the weights are gone.
"""

from glmspectra.figures.overview import write_overview
from glmspectra.figures.page import Album, Drawing, Grid, Section, figures_of, write_page
from glmspectra.figures.report import (
    write_delta_report,
    write_ranks_report,
    write_report,
    write_tables_report,
    write_training_curves,
    write_training_report,
)
from glmspectra.figures.sections import analysis_sections, training_sections
from glmspectra.figures.style import styled
from glmspectra.figures.tables import Tables
from glmspectra.figures.training import TrainingRun, read_training
from glmspectra.figures.tuned_sections import delta_sections, rank_sections

__all__ = [
    "Album",
    "Drawing",
    "Grid",
    "Section",
    "Tables",
    "TrainingRun",
    "analysis_sections",
    "delta_sections",
    "figures_of",
    "rank_sections",
    "read_training",
    "styled",
    "training_sections",
    "write_delta_report",
    "write_overview",
    "write_page",
    "write_ranks_report",
    "write_report",
    "write_tables_report",
    "write_training_curves",
    "write_training_report",
]
