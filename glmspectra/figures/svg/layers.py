"""Spectra of a run, one sheet for all layers, every layer of one matrix type on common axes, and what lies outside."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glmspectra.figures.svg import style
from glmspectra.figures.svg.words import say
from glmspectra.figures.tables import (
    Tables,
    in_layers,
    series_order,
    thin,
)

TOP = 20  # the original study drew this many
MOST_LINES = 14  # more lines on one pair of axes cannot be distinguished
MOST_PANELS = 4 * MOST_LINES


@dataclass(frozen=True)
class Spectra:
    """Singular values of a run by (layer, series), each float64 and descending, with the rows that describe them."""

    sigma: Mapping[tuple[int, str], np.ndarray]
    rows: Mapping[tuple[int, str], pd.Series]
    layers: Sequence[int]
    order: Sequence[str]

    @classmethod
    def of(cls, run: Tables) -> "Spectra":
        """From tables that went through `pick`; attention heads and what lies outside layers are left out."""
        described = in_layers(run.matrices)
        values = in_layers(run.singular_values)
        sigma: dict[tuple[int, str], np.ndarray] = {}
        if len(values):
            values = values.sort_values(["layer", "series", "index"], kind="stable")
            for (layer, series), group in values.groupby(["layer", "series"], sort=False, observed=True):
                numbers = group["sigma"].to_numpy(float)
                numbers = numbers[np.isfinite(numbers)]
                if len(numbers) and numbers[0] > 0:
                    sigma[int(layer), str(series)] = numbers
        rows = {(int(row["layer"]), str(row["series"])): row for _, row in described.iterrows()}
        measured = [series for series in series_order(run.matrices) if any(key[1] == series for key in sigma)]
        return cls(sigma, rows, sorted({key[0] for key in sigma}), measured)

    def of_layer(self, layer: int) -> dict[str, np.ndarray]:
        """Series -> singular values of one layer, in drawing order."""
        return {name: self.sigma[layer, name] for name in self.order if (layer, name) in self.sigma}

    def complete(self, layer: int, series: str) -> bool:
        """False for a top-k run, which holds only the largest values."""
        row = self.rows.get((layer, series))
        count = len(self.sigma[layer, series])
        return row is None or count >= min(int(row["rows"]), int(row["cols"]))


def slug(text: str) -> str:
    """A name that serves as an SVG id and in a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def drawable(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most MOST_LINES series: those with the largest first singular value, in their own order."""
    if len(series) <= MOST_LINES:
        return dict(series)
    strongest = set(sorted(series, key=lambda name: -series[name][0])[:MOST_LINES])
    return {name: values for name, values in series.items() if name in strongest}


def spectrum_axes(ax: Axes, spectra: Sequence[np.ndarray]) -> None:
    """Limits of a log-log spectrum: all of it, but no more than six decades below the largest value."""
    largest = max(values[0] for values in spectra)
    smallest = min(values[values > 0][-1] for values in spectra)
    ax.set_xlim(0.9, 1.12 * max(len(values) for values in spectra))
    ax.set_ylim(max(smallest / 1.25, largest * 1e-6), largest * 1.35)
    style.log_axis(ax, "x")
    style.log_axis(ax, "y", 6)


def line_keys(names: Sequence[str], looks: Mapping[str, style.Stroke]) -> list[Line2D]:
    """Legend entries of series."""
    return [Line2D([], [], **looks[name].line()) for name in names]


def draw_sheet(spectra: Spectra, what: str = "top") -> Figure:
    """All layers on one sheet, a panel a layer on common axes.

    `what='top'`: the 20 largest values; `what='spectrum'`: whole spectra on logarithmic axes.
    """
    layers = list(spectra.layers)
    drawn = {layer: drawable(spectra.of_layer(layer)) for layer in layers}
    names = [name for name in spectra.order if any(name in series for series in drawn.values())]
    looks = style.strokes(spectra.order)
    columns = min(len(layers), max(4, min(7, -(-len(layers) // 4))))
    panel = (1.38, 1.12) if columns >= 5 else (2.2, 1.6)
    inner = columns * (panel[0] + 0.14)
    per_row = style.per_row_for(names, inner + 0.6)
    figure, axes = style.panels(
        len(layers),
        columns,
        panel,
        left=0.78,
        right=0.15,
        bottom=0.62,
        gap=(0.14, 0.16),
        top=style.key_height(len(names), per_row) + 0.14,
        sharex=True,
        sharey=True,
    )
    everything = [values for series in drawn.values() for values in series.values()]
    for ax, layer in zip(axes, layers, strict=True):
        for name, sigma in drawn[layer].items():
            at = np.arange(min(TOP, len(sigma))) if what == "top" else thin(len(sigma), 60)
            marker: dict[str, float | str] = {"markersize": 2.2, "linewidth": 0.9}
            if what != "top" and len(at) > 1:  # of one value only the marker can be seen
                marker = {"marker": "", "linewidth": 1.0}
            ax.plot(at + 1, sigma[at], gid=slug(f"layer-{layer}-{name}"), **looks[name].line(**marker))
        ax.text(
            0.96,
            0.94,
            say("figure-layer-number", layer=str(layer)),
            ha="right",
            va="top",
            transform=ax.transAxes,
            fontsize=8,
            weight="bold",
            color="#20242a",
            bbox=style.HALO,
        )
    first = axes[0]
    if what == "top":
        heads = [values[:TOP] for values in everything]
        first.set_xlim(0, TOP + 1)
        first.set_xticks([1, 10, 20])
        first.set_ylim(min(values[-1] for values in heads) / 1.15, max(values[0] for values in heads) * 1.5)
        style.log_axis(first, "y", 4)
    else:
        spectrum_axes(first, everything)
        style.log_axis(first, "x", 3)
        style.log_axis(first, "y", 4)
    figure.supxlabel(say("figure-number"), fontsize=9, y=0.1 / figure.get_figheight(), va="bottom")
    figure.supylabel(say("figure-sigma"), fontsize=9, x=0.12 / figure.get_figwidth())
    style.key(figure, line_keys(names, looks), names, per_row=per_row)
    return figure


def draw_spectra_by_matrix(spectra: Spectra) -> Figure:
    """A panel for each series, in it one line a layer, dark (near the input) to light."""
    names = list(spectra.order)[:MOST_PANELS]
    figure, axes, color = depth_panels(names, spectra.layers, say("figure-number"), say("figure-sigma"))
    for ax, name in zip(axes, names, strict=True):
        for layer in spectra.layers:
            if (layer, name) in spectra.sigma:
                sigma = spectra.sigma[layer, name]
                at = thin(len(sigma), 90)
                ax.plot(at + 1, sigma[at], color=color(layer), linewidth=0.9, gid=slug(f"{name}-layer-{layer}"))
    spectrum_axes(axes[0], [values for (_, name), values in spectra.sigma.items() if name in names])
    style.log_axis(axes[0], "x", 4)
    return figure


def depth_panels(
    names: Sequence[str], layers: Sequence[int], xlabel: str, ylabel: str
) -> tuple[Figure, list[Axes], Callable[[int], tuple[float, float, float, float]]]:
    """A titled panel for each name, with shared axes, for one line a layer; and the color of a layer, RGBA.

    The color scale stands in the right margin.
    """
    columns = style.grid_columns(len(names))
    panel = (2.05, 2.05) if columns == 4 else (2.7, 2.2)
    figure, axes = style.panels(
        len(names),
        columns,
        panel,
        left=0.82,
        right=0.95,
        top=0.34,
        bottom=0.62,
        gap=(0.2, 0.42),
        sharex=True,
        sharey=True,
    )
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(name, fontsize=8.5)
    width, height = figure.get_size_inches()
    figure.supxlabel(xlabel, fontsize=9, y=0.1 / height, va="bottom")
    figure.supylabel(ylabel, fontsize=9, x=0.12 / width)
    shade = Normalize(min(layers), max(max(layers), min(layers) + 1))
    depth_bar(figure, shade)
    colors = matplotlib.colormaps[style.DEPTH_MAP]
    return figure, axes, lambda layer: colors(shade(layer))


def depth_bar(figure: Figure, shade: Normalize) -> None:
    """The color scale of layers, in the right margin (0.95 inch wide)."""
    width, height = figure.get_size_inches()
    bar_height = min(2.4, height - 1.2)
    ax = figure.add_axes((1 - 0.72 / width, 0.6 / height, 0.13 / width, bar_height / height))
    bar = figure.colorbar(ScalarMappable(shade, style.DEPTH_MAP), cax=ax, label=say("figure-layer"))
    bar.outline.set_visible(False)
    style.linear_axis(ax, "y", 6, whole=True)


def draw_outside(run: Tables) -> Figure | None:
    """Spectra of what lies in no layer (embeddings, output); None when nothing of it was measured."""
    values = run.singular_values
    values = values[values["layer"].isna()] if len(values) else values
    if not len(values):
        return None
    sigma = {}
    for name, group in values.sort_values(["name", "index"]).groupby("name", sort=False):
        whole = group[group["part"] == "whole"]["sigma"].to_numpy(float)
        if len(whole) and whole[0] > 0:
            sigma[str(name)] = whole
    sigma = drawable(sigma)
    if not sigma:
        return None
    looks = style.strokes(list(sigma))
    names = list(sigma)
    per_row = style.per_row_for(names, 7.5)
    figure, (ax,) = style.panels(1, 1, (6.6, 2.8), top=style.key_height(len(names), per_row) + 0.2)
    for name, numbers in sigma.items():
        at = thin(len(numbers))
        ax.plot(at + 1, numbers[at], gid=slug(f"spectrum-{name}"), **looks[name].line(markevery=0.12))
    spectrum_axes(ax, list(sigma.values()))
    ax.set(xlabel=say("figure-number"), ylabel=say("figure-sigma"))
    style.key(figure, line_keys(names, looks), names, per_row=per_row)
    return figure
