"""Figures of a run for notebooks and papers, drawn by matplotlib: the same as the SVG files of `--svg`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from glmspectra.errors import RequestError
from glmspectra.figures.svg.depth import Measure, draw_by_depth
from glmspectra.figures.svg.heatmaps import draw_heatmap
from glmspectra.figures.svg.layers import Spectra
from glmspectra.figures.svg.one_layer import draw_layer
from glmspectra.figures.svg.style import styled
from glmspectra.figures.tables import Tables, pick
from glmspectra.store.columns import column as described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from glmspectra.store import Run

__all__ = ["plot_depth", "plot_map", "plot_spectrum"]


def plot_map(run: Run, column: str = "stable_rank", *, quantity: str = "weight", step: int | None = None) -> Figure:
    """Layers across, matrices down, the color the value of `column`.

    Args:
        run: From `svd`, `values`, `delta` or `read_run`.
        column: A numeric column of `run.matrices`.
        quantity: "weight", "delta", "merged" ...
        step: Of a training's checkpoints; None: the last.

    Raises:
        RequestError: The run has no such column, or nothing of it in layers.
    """
    with styled():
        return draw_heatmap(_tables(run, quantity, step).matrices, column)


def plot_depth(run: Run, column: str = "stable_rank", *, quantity: str = "weight", step: int | None = None) -> Figure:
    """One line a matrix type, the value of `column` by layer. Arguments and errors as of `plot_map`."""
    matrices = _tables(run, quantity, step).matrices
    with styled():
        figure = draw_by_depth(matrices, [Measure(column, described(column).axis())])
    if figure is None:
        raise RequestError(f"{run.name} has no column {column} with values in layers.")
    return figure


def plot_spectrum(
    run: Run, layer: int, matrix: str | None = None, *, quantity: str = "weight", step: int | None = None
) -> Figure:
    """The spectra of one layer: the largest singular values, all of them, and their density with the bulk edge.

    Args:
        run: As of `plot_map`.
        layer: From 0.
        matrix: Short name of one matrix; None: all of the layer.
        quantity: As of `plot_map`.
        step: As of `plot_map`.

    Raises:
        RequestError: The run has no singular values of that layer or matrix.
    """
    tables = _tables(run, quantity, step)
    if matrix is not None:
        tables = replace(
            tables,
            matrices=tables.matrices[tables.matrices["matrix"] == matrix],
            singular_values=tables.singular_values[tables.singular_values["matrix"] == matrix],
        )
    spectra = Spectra.of(tables)
    if not spectra.of_layer(layer):
        raise RequestError(f"{run.name} has no singular values of layer {layer}{f' {matrix}' if matrix else ''}.")
    with styled():
        return draw_layer(spectra, layer)


def _tables(run: Run, quantity: str, step: int | None) -> Tables:
    return pick(run, quantity, step)
