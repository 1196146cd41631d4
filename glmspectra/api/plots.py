"""Figures of a run for notebooks and papers, drawn by matplotlib: the same as the SVG files of `--svg`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from glmspectra.errors import RequestError
from glmspectra.figures.svg.depth import Measure, draw_by_depth
from glmspectra.figures.svg.heatmaps import draw_heatmap
from glmspectra.figures.svg.layers import Spectra
from glmspectra.figures.svg.one_layer import draw_layer
from glmspectra.figures.svg.style import styled
from glmspectra.figures.tables import Tables, pick

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
    with _notebook_style():
        return draw_heatmap(_tables(run, quantity, step).matrices, column)


def plot_depth(run: Run, column: str = "stable_rank", *, quantity: str = "weight", step: int | None = None) -> Figure:
    """One line a matrix type, the value of `column` by layer. Arguments and errors as of `plot_map`."""
    matrices = _tables(run, quantity, step).matrices
    with _notebook_style():
        figure = draw_by_depth(matrices, [Measure(column)])
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
    with _notebook_style():
        return draw_layer(spectra, layer)


@contextmanager
def _notebook_style() -> Iterator[None]:
    """The style of all figures; a notebook shows them, which IPython arranges only for figures made by pyplot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats
        from matplotlib.figure import Figure

        formatters = shell.display_formatter.formatters
        if not any(Figure in formatters[mime] for mime in ("image/png", "image/svg+xml", "image/jpeg")):
            select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]
    with styled():
        yield


def _tables(run: Run, quantity: str, step: int | None) -> Tables:
    return pick(run, quantity, step)
