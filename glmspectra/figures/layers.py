"""Spectra: a figure for each layer, one sheet for all layers, and every layer of one matrix type on common axes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glmspectra.figures import style
from glmspectra.figures.tables import (
    Tables,
    in_layers,
    layers_of,
    marchenko_pastur_density,
    series_order,
    spectral_density,
    thin,
)

TOP = 20  # the original study drew this many
MOST_LINES = 14  # more lines on one pair of axes cannot be told apart

_NUMBER_LABEL = "singular value number (1 = largest)"
_SIGMA_LABEL = "singular value σ (units of the weight)"


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


def _drawable(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most MOST_LINES series: those with the largest first singular value, in their own order."""
    if len(series) <= MOST_LINES:
        return dict(series)
    strongest = set(sorted(series, key=lambda name: -series[name][0])[:MOST_LINES])
    return {name: values for name, values in series.items() if name in strongest}


def draw_layer(spectra: Spectra, layer: int) -> Figure:
    """One layer: its 20 largest singular values, its whole spectra on logarithmic axes, and spectral densities.

    Raises KeyError when the layer has no singular values.
    """
    every = spectra.of_layer(layer)
    if not every:
        raise KeyError(f"layer {layer} has no singular values")
    drawn = _drawable(every)
    looks = style.strokes(spectra.order)
    groups = _density_groups(drawn)
    width, left, gap = 10.4, 0.72, 0.78
    names = list(drawn)
    per_row = style.per_row_for(names, width)
    head = style.key_height(len(names), per_row) + 0.34
    upper, lower, between, foot = 2.5, 1.65, 1.06, 0.58
    density_rows = -(-len(groups) // 4)
    height = head + upper + density_rows * (lower + between) + foot
    figure = style.new_figure(width, height)

    def add(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    half = (width - left - gap - 0.2) / 2
    top, full = add(left, head, half, upper), add(left + half + gap, head, half, upper)
    for name, sigma in drawn.items():
        shown = sigma[:TOP]
        top.plot(np.arange(1, len(shown) + 1), shown, gid=slug(f"top-{name}"), **looks[name].line())
        at = thin(len(sigma))
        full.plot(at + 1, sigma[at], gid=slug(f"spectrum-{name}"), **looks[name].line(marker="", linewidth=1.4))
        mark = thin(len(sigma), 9)
        full.plot(mark + 1, sigma[mark], **looks[name].line(linestyle="none", markersize=4.2))
    top.set_ylim(0, None)
    top.set_xlim(0.4, TOP + 0.6)
    top.set_xticks([1, 5, 10, 15, 20])
    style.linear_axis(top, "y")
    top.set(title=f"Layer {layer}: the {TOP} largest", xlabel=_NUMBER_LABEL, ylabel=_SIGMA_LABEL)
    _spectrum_axes(full, list(drawn.values()))
    full.set(
        title=f"Layer {layer}: the whole spectrum"
        if _all_complete(spectra, layer, names)
        else f"Layer {layer}: the largest values (top-k run)",
        xlabel=_NUMBER_LABEL,
        ylabel=_SIGMA_LABEL,
    )
    style.key(figure, _handles(names, looks), names, per_row=per_row)

    panel = (width - left - 0.2 - 3 * 0.62) / 4
    for i, (matrix, members) in enumerate(groups.items()):
        row, column = divmod(i, 4)
        ax = add(left + column * (panel + 0.62), head + upper + between + row * (lower + between), panel, lower)
        draw_density(ax, spectra, layer, members, looks)
        ax.set_title(f"{matrix}: density", fontsize=8.5, pad=15)
        ax.set_xlabel("σ (units of the weight)")
        if column == 0:
            ax.set_ylabel("density (1 / unit)")
    return figure


def _all_complete(spectra: Spectra, layer: int, names: Sequence[str]) -> bool:
    return all(spectra.complete(layer, name) for name in names)


def _density_groups(series: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Matrix -> its series: the parts share the panel of their whole. At most eight panels."""
    groups: dict[str, list[str]] = {}
    for name in series:
        groups.setdefault(name.split(" ")[0], []).append(name)
    return dict(list(groups.items())[:8])


def draw_density(
    ax: Axes, spectra: Spectra, layer: int, members: Sequence[str], looks: Mapping[str, style.Stroke]
) -> None:
    """Density of the singular values of one matrix, with the Marchenko-Pastur density and edge of each part.

    A fused weight is shown as a pale area: parts of unequal scale make false spikes in the whole, so edges belong to
    the parts.
    """
    measured = [name for name in members if spectra.complete(layer, name)]
    if not measured:
        ax.text(
            0.5,
            0.5,
            "not all values measured\n(top-k run)",
            ha="center",
            va="center",
            transform=ax.transAxes,
            color=style.GREY,
            fontsize=8,
        )
        ax.set(xticks=[], yticks=[])
        return
    parts = [name for name in measured if " " in name]
    lowest, highest, start, reach = np.inf, 0.0, np.inf, 0.0
    notes = []
    for name in measured:
        sigma, row = spectra.sigma[layer, name], spectra.rows.get((layer, name))
        edges, density = spectral_density(sigma)
        floor = 0.5 * float(density[density > 0].min())
        lowest, highest = min(lowest, floor), max(highest, float(density.max()))
        start, reach = min(start, float(edges[1])), max(reach, float(edges[-1]))
        if parts and " " not in name:
            ax.stairs(density, edges, baseline=floor, fill=True, color=style.PALE, gid=slug(f"density-{name}"))
            continue
        look = looks[name]
        if parts:  # areas of several parts would hide one another
            middle = np.sqrt(np.maximum(edges[:-1], edges[1] * 0.5) * edges[1:])
            shown = np.where(density > 0, density, np.nan)
            dots = {"marker": ".", "markersize": 2.6, "linewidth": 1.0}
            ax.plot(middle, shown, gid=slug(f"density-{name}"), **look.line(**dots))
        else:
            ax.stairs(density, edges, baseline=floor, fill=True, color=look.colour, alpha=0.22)
            ax.stairs(density, edges, baseline=floor, color=look.colour, linewidth=1.1, gid=slug(f"density-{name}"))
        if row is None:
            continue
        edge, scale = _number(row, "mp_edge"), _number(row, "mp_sigma")
        if scale > 0:
            longer, shorter = sorted((float(row["rows"]), float(row["cols"])), reverse=True)
            upper, lower = (scale * (np.sqrt(longer) + sign * np.sqrt(shorter)) for sign in (1, -1))
            grid = np.geomspace(max(lower, 1e-3 * upper), upper, 160)
            bulk = marchenko_pastur_density(grid, int(longer), int(shorter), scale)
            shown = bulk > 0
            ax.plot(
                grid[shown],
                bulk[shown],
                color="#20242a",
                linewidth=0.9,
                linestyle=(0, (3, 1.2)),
                gid=slug(f"bulk-{name}"),
            )
        if edge > 0:
            ax.axvline(
                edge,
                color=look.colour if parts else "#20242a",
                linewidth=1.0,
                linestyle=look.dashes if parts else "-",
                gid=slug(f"edge-{name}"),
            )
        spikes = _number(row, "mp_spikes")
        if np.isfinite(spikes):
            notes.append((f"{name.split(' ')[-1]} " if parts else "") + f"{spikes:.0f}")
    ax.set_xlim(max(start / 1.3, reach * 1e-3), reach * 1.25)
    ax.set_ylim(lowest, highest * 4)
    style.log_axis(ax, "y", 4)
    style.log_axis(ax, "x", 3)
    if notes:
        ax.text(0, 1.03, f"beyond edge: {', '.join(notes)}", transform=ax.transAxes, fontsize=7.5, color=style.GREY)


def _number(row: pd.Series, name: str) -> float:
    value = row.get(name, np.nan)
    return float(value) if pd.notna(value) else float("nan")


def _spectrum_axes(ax: Axes, spectra: Sequence[np.ndarray]) -> None:
    """Limits of a log-log spectrum: all of it, but no more than six decades below the largest value."""
    largest = max(values[0] for values in spectra)
    smallest = min(values[values > 0][-1] for values in spectra)
    ax.set_xlim(0.9, 1.12 * max(len(values) for values in spectra))
    ax.set_ylim(max(smallest / 1.25, largest * 1e-6), largest * 1.35)
    style.log_axis(ax, "x")
    style.log_axis(ax, "y", 6)


def _handles(names: Sequence[str], looks: Mapping[str, style.Stroke]) -> list[Line2D]:
    return [Line2D([], [], **looks[name].line()) for name in names]


def draw_sheet(spectra: Spectra, what: str = "top") -> Figure:
    """All layers on one sheet, a panel a layer on common axes.

    `what='top'`: the 20 largest values; `what='spectrum'`: whole spectra on logarithmic axes.
    """
    layers = list(spectra.layers)
    drawn = {layer: _drawable(spectra.of_layer(layer)) for layer in layers}
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
            marker = {"markersize": 2.2, "linewidth": 0.9} if what == "top" else {"marker": "", "linewidth": 1.0}
            ax.plot(at + 1, sigma[at], gid=slug(f"layer-{layer}-{name}"), **looks[name].line(**marker))
        ax.text(
            0.96,
            0.94,
            f"layer {layer}",
            ha="right",
            va="top",
            transform=ax.transAxes,
            fontsize=8,
            weight="bold",
            color="#20242a",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.8},
        )
    first = axes[0]
    if what == "top":
        heads = [values[:TOP] for values in everything]
        first.set_xlim(0, TOP + 1)
        first.set_xticks([1, 10, 20])
        first.set_ylim(min(values[-1] for values in heads) / 1.15, max(values[0] for values in heads) * 1.5)
        style.log_axis(first, "y", 4)
    else:
        _spectrum_axes(first, everything)
        style.log_axis(first, "x", 3)
        style.log_axis(first, "y", 4)
    figure.supxlabel(_NUMBER_LABEL, fontsize=9, y=0.1 / figure.get_figheight(), va="bottom")
    figure.supylabel(_SIGMA_LABEL, fontsize=9, x=0.12 / figure.get_figwidth())
    style.key(figure, _handles(names, looks), names, per_row=per_row)
    return figure


def draw_spectra_by_matrix(spectra: Spectra) -> Figure:
    """A panel for each series, in it one line a layer, dark (near the input) to light."""
    names = list(spectra.order)[: 4 * MOST_LINES]
    columns = style.grid_columns(len(names))
    panel = (2.1, 2.0) if columns == 4 else (2.7, 2.2)
    figure, axes = style.panels(
        len(names),
        columns,
        panel,
        left=0.78,
        right=0.95,
        top=0.32,
        bottom=0.6,
        gap=(0.2, 0.42),
        sharex=True,
        sharey=True,
    )
    shade = Normalize(min(spectra.layers), max(max(spectra.layers), min(spectra.layers) + 1))
    colours = matplotlib.colormaps[style.DEPTH_MAP]
    for ax, name in zip(axes, names, strict=True):
        for layer in spectra.layers:
            if (layer, name) in spectra.sigma:
                sigma = spectra.sigma[layer, name]
                at = thin(len(sigma), 90)
                ax.plot(
                    at + 1, sigma[at], color=colours(shade(layer)), linewidth=0.9, gid=slug(f"{name}-layer-{layer}")
                )
        ax.set_title(name, fontsize=8.5)
    _spectrum_axes(axes[0], [values for (_, name), values in spectra.sigma.items() if name in names])
    style.log_axis(axes[0], "x", 4)
    figure.supxlabel(_NUMBER_LABEL, fontsize=9, y=0.1 / figure.get_figheight(), va="bottom")
    figure.supylabel(_SIGMA_LABEL, fontsize=9, x=0.12 / figure.get_figwidth())
    depth_bar(figure, shade)
    return figure


def depth_bar(figure: Figure, shade: Normalize) -> None:
    """The colour scale of layers, in the right margin (0.95 inch wide)."""
    width, height = figure.get_size_inches()
    bar_height = min(2.4, height - 1.2)
    ax = figure.add_axes((1 - 0.72 / width, 0.6 / height, 0.13 / width, bar_height / height))
    bar = figure.colorbar(ScalarMappable(shade, style.DEPTH_MAP), cax=ax, label="layer")
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
    sigma = _drawable(sigma)
    if not sigma:
        return None
    looks = style.strokes(list(sigma))
    names = list(sigma)
    per_row = style.per_row_for(names, 7.5)
    figure, (ax,) = style.panels(1, 1, (6.6, 2.8), top=style.key_height(len(names), per_row) + 0.2)
    for name, numbers in sigma.items():
        at = thin(len(numbers))
        ax.plot(at + 1, numbers[at], gid=slug(f"spectrum-{name}"), **looks[name].line(markevery=0.12))
    _spectrum_axes(ax, list(sigma.values()))
    ax.set(xlabel=_NUMBER_LABEL, ylabel=_SIGMA_LABEL)
    style.key(figure, _handles(names, looks), names, per_row=per_row)
    return figure


__all__ = [
    "Spectra",
    "depth_bar",
    "draw_density",
    "draw_layer",
    "draw_outside",
    "draw_sheet",
    "draw_spectra_by_matrix",
    "layers_of",
    "slug",
]
