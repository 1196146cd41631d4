"""One layer: its 20 largest singular values, its whole spectra, and the density of each matrix with its bulk edge."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glmspectra.figures.svg import style
from glmspectra.figures.svg.layers import (
    TOP,
    Spectra,
    drawable,
    line_keys,
    slug,
    spectrum_axes,
)
from glmspectra.figures.svg.words import say
from glmspectra.figures.tables import marchenko_pastur_density, spectral_density, thin

MOST_DENSITIES = 8
_INK = "#20242a"

Looks = Mapping[str, style.Stroke]


def draw_layer(spectra: Spectra, layer: int) -> Figure:
    """The figure of one layer. Raises KeyError when the layer has no singular values."""
    every = spectra.of_layer(layer)
    if not every:
        raise KeyError(f"layer {layer} has no singular values")
    drawn = drawable(every)
    names, looks, groups = list(drawn), style.strokes(spectra.order), _density_groups(drawn)
    # All in inches: two panels above, densities below, four in a row.
    width, left, gap, narrow_gap, right = 10.4, 0.72, 0.78, 0.62, 0.2
    upper, lower, between, foot = 2.5, 1.65, 1.06, 0.58
    per_row = style.per_row_for(names, width)
    head = style.key_height(len(names), per_row) + 0.34
    height = head + upper + -(-len(groups) // 4) * (lower + between) + foot
    half, quarter = (width - left - gap - right) / 2, (width - left - right - 3 * narrow_gap) / 4
    figure = style.new_figure(width, height)

    def add(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    draw_largest(add(left, head, half, upper), layer, drawn, looks)
    whole = all(spectra.complete(layer, name) for name in names)
    draw_spectra(add(left + half + gap, head, half, upper), layer, drawn, looks, whole)
    for i, (matrix, members) in enumerate(groups.items()):
        row, column = divmod(i, 4)
        y = head + upper + between + row * (lower + between)
        ax = add(left + column * (quarter + narrow_gap), y, quarter, lower)
        draw_density(ax, spectra, layer, members, looks)
        ax.set_title(say("figure-density", matrix=matrix), fontsize=8.5, pad=15)
        ax.set_xlabel(say("figure-sigma-short"))
        if column == 0:
            ax.set_ylabel(say("figure-density-axis"))
    style.key(figure, line_keys(names, looks), names, per_row=per_row)
    return figure


def draw_largest(ax: Axes, layer: int, drawn: Mapping[str, np.ndarray], looks: Looks) -> None:
    """The 20 largest singular values of each series, on linear axes from zero."""
    for name, sigma in drawn.items():
        shown = sigma[:TOP]
        ax.plot(np.arange(1, len(shown) + 1), shown, gid=slug(f"top-{name}"), **looks[name].line())
    ax.set_ylim(0, None)
    ax.set_xlim(0.4, TOP + 0.6)
    ax.set_xticks([1, 5, 10, 15, 20])
    style.linear_axis(ax, "y")
    ax.set(
        title=say("figure-layer-largest", layer=str(layer), count=TOP),
        xlabel=say("figure-number"),
        ylabel=say("figure-sigma"),
    )


def draw_spectra(ax: Axes, layer: int, drawn: Mapping[str, np.ndarray], looks: Looks, whole: bool) -> None:
    """All singular values of each series on logarithmic axes, with a marker here and there to tell the lines by."""
    for name, sigma in drawn.items():
        at, mark = thin(len(sigma)), thin(len(sigma), 9)
        ax.plot(at + 1, sigma[at], gid=slug(f"spectrum-{name}"), **looks[name].line(marker="", linewidth=1.4))
        ax.plot(mark + 1, sigma[mark], **looks[name].line(linestyle="none"))
    spectrum_axes(ax, list(drawn.values()))
    title = say("figure-layer-whole" if whole else "figure-layer-top", layer=str(layer))
    ax.set(title=title, xlabel=say("figure-number"), ylabel=say("figure-sigma"))


def _density_groups(series: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Matrix -> its series: the parts share the panel of their whole."""
    groups: dict[str, list[str]] = {}
    for name in series:
        groups.setdefault(name.split(" ")[0], []).append(name)
    return dict(list(groups.items())[:MOST_DENSITIES])


def draw_density(ax: Axes, spectra: Spectra, layer: int, members: Sequence[str], looks: Looks) -> None:
    """Density of the singular values of one matrix, with the Marchenko-Pastur density and edge of each part.

    A fused weight is shown as a pale area: parts of unequal scale make false spikes in the whole, so edges belong to
    the parts.
    """
    measured = [name for name in members if spectra.complete(layer, name)]
    if not measured:
        words = f"{say('figure-not-all')}\n{say('figure-top-k')}"
        ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color=style.GREY, fontsize=8)
        ax.set(xticks=[], yticks=[])
        return
    parts = any(" " in name for name in measured)
    lowest, highest, start, reach = np.inf, 0.0, np.inf, 0.0
    notes = []
    for name in measured:
        edges, density = spectral_density(spectra.sigma[layer, name])
        floor = 0.5 * float(density[density > 0].min())
        lowest, highest = min(lowest, floor), max(highest, float(density.max()))
        start, reach = min(start, float(edges[1])), max(reach, float(edges[-1]))
        if parts and " " not in name:
            ax.stairs(density, edges, baseline=floor, fill=True, color=style.PALE, gid=slug(f"density-{name}"))
            continue
        _draw_series(ax, name, edges, density, floor, looks[name], parts)
        row = spectra.rows.get((layer, name))
        if row is not None:
            _draw_bulk(ax, name, row, looks[name], parts)
            if np.isfinite(spikes := _number(row, "mp_spikes")):
                notes.append((f"{name.split(' ')[-1]} " if parts else "") + f"{spikes:.0f}")
    ax.set_xlim(max(start / 1.3, reach * 1e-3), reach * 1.25)
    ax.set_ylim(lowest, highest * 4)
    style.log_axis(ax, "y", 4)
    style.log_axis(ax, "x", 3)
    if notes:
        beyond = say("figure-beyond-edge", counts=", ".join(notes))
        ax.text(0, 1.03, beyond, transform=ax.transAxes, fontsize=7.5, color=style.GREY)


def _draw_series(
    ax: Axes, name: str, edges: np.ndarray, density: np.ndarray, floor: float, look: style.Stroke, parts: bool
) -> None:
    """One density: an area, or a line where there are several parts, whose areas would hide one another."""
    if parts:
        middle = np.sqrt(np.maximum(edges[:-1], edges[1] * 0.5) * edges[1:])
        shown = np.where(density > 0, density, np.nan)
        ax.plot(middle, shown, gid=slug(f"density-{name}"), **look.line(marker=".", markersize=2.6, linewidth=1.0))
        return
    ax.stairs(density, edges, baseline=floor, fill=True, color=look.color, alpha=0.22)
    ax.stairs(density, edges, baseline=floor, color=look.color, linewidth=1.1, gid=slug(f"density-{name}"))


def _draw_bulk(ax: Axes, name: str, row: pd.Series, look: style.Stroke, parts: bool) -> None:
    """The density of noise of the fitted level, dashed, and the edge of its bulk."""
    edge, scale = _number(row, "mp_edge"), _number(row, "mp_sigma")
    if scale > 0:
        longer, shorter = sorted((float(row["rows"]), float(row["cols"])), reverse=True)
        upper, lower = (scale * (np.sqrt(longer) + sign * np.sqrt(shorter)) for sign in (1, -1))
        grid = np.geomspace(max(lower, 1e-3 * upper), upper, 160)
        bulk = marchenko_pastur_density(grid, int(longer), int(shorter), scale)
        inside = bulk > 0
        dashed = (0, (3, 1.2))
        ink = style.GREY if parts else _INK  # a part may itself be black and dashed
        ax.plot(grid[inside], bulk[inside], color=ink, linewidth=0.9, linestyle=dashed, gid=slug(f"bulk-{name}"))
    if edge > 0:
        line: dict[str, Any] = {"color": _INK, "linestyle": "-"}
        if parts:
            line = {"color": look.color, "linestyle": look.dashes}
        ax.axvline(edge, linewidth=1.0, gid=slug(f"edge-{name}"), **line)


def _number(row: pd.Series, name: str) -> float:
    value = row.get(name, np.nan)
    return float(value) if pd.notna(value) else float("nan")
