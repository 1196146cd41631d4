"""Heat maps: layer by matrix for any column of the table, and attention heads by layer."""

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from glmspectra.errors import RequestError
from glmspectra.figures.svg import style
from glmspectra.figures.svg.words import axis, say
from glmspectra.figures.tables import has, in_layers, is_head, series_order, split_head
from glmspectra.store.columns import Column, column

DEFAULT_COLUMNS = (
    "stable_rank",
    "effective_rank",
    "energy_rank_90",
    "top12_share_of_singular_value_sum",
    "mp_spikes",
    "alpha",
    "spectral_norm",
    "std",
    "excess_kurtosis",
    "share_beyond_6_sigma",
)


def numeric_columns(matrices: pd.DataFrame) -> list[str]:
    """The columns a heat map can be drawn of: numbers that say something of the matrix, not of the run."""
    skipped = {"step", "layer", "seconds", "count"}
    return [
        name
        for name in matrices.columns
        if name not in skipped and pd.api.types.is_numeric_dtype(matrices[name]) and has(matrices, name)
    ]


def layer_by_matrix(matrices: pd.DataFrame, name: str) -> pd.DataFrame:
    """Series x layer table of one column, float64, NaN where nothing was measured; series in drawing order.

    Raises RequestError for a column that is not there or holds no numbers, listing what can be drawn.
    """
    rows = in_layers(matrices)
    if name not in rows or not pd.api.types.is_numeric_dtype(rows[name]) or not has(rows, name):
        raise RequestError(
            f"the column {name!r} has no numbers to draw in this run: choose from "
            f"{', '.join(numeric_columns(rows)) or 'none'}."
        )
    table = rows.drop_duplicates(["series", "layer"]).pivot(index="series", columns="layer", values=name)
    layers = range(int(table.columns.min()), int(table.columns.max()) + 1)
    order = [series for series in series_order(matrices) if series in table.index]
    return table.reindex(index=order, columns=layers).astype(float)


def scale_for(values: np.ndarray, described: Column) -> Normalize:
    """Color scale of a column: around zero where it is signed, logarithmic where it spans more than a factor of 20."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if described.signed and low < 0 < high:
        reach = max(-low, high)
        return TwoSlopeNorm(0.0, -reach, reach)
    if low > 0 and high > 20 * low:
        return LogNorm(low, high)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return Normalize(low, high)


def draw_heatmap(matrices: pd.DataFrame, name: str) -> Figure:
    """Layers across, matrices down, color the value of `name`; hatched where nothing was measured.

    `matrices` went through `tables.pick`. Raises RequestError as `layer_by_matrix` does.
    """
    table = layer_by_matrix(matrices, name)
    described = column(name)
    cell = min(0.34, max(0.12, 8.2 / table.shape[1]))
    width, height = max(3.0, cell * table.shape[1]), max(0.8, 0.3 * table.shape[0])
    left = 0.35 + 0.082 * max(len(series) for series in table.index)
    figure, (ax,) = style.panels(1, 1, (width, height), left=left, right=1.25, top=0.34, bottom=0.52)
    heat(ax, table, described)
    ax.set_xlabel(say("figure-layer-from-input"))
    ax.set_title(axis(name)[:1].upper() + axis(name)[1:])
    return figure


def heat(
    ax: Axes,
    table: pd.DataFrame,
    described: Column,
    *,
    scale: Normalize | None = None,
    bar: bool = True,
    bar_label: str = "",
    annotate: bool = False,
    colors: str | None = None,
) -> None:
    """Draw a matrix of numbers into `ax` with seaborn, the color bar beside it in the right margin."""
    values = table.to_numpy(float)
    scale = scale or scale_for(values, described)
    figure = style.figure_of(ax)
    ax.set_facecolor("#f1f2f4")
    ax.patch.set(hatch="////", edgecolor="#b9bfc7", linewidth=0)
    bar_axes = None
    if bar:
        box = ax.get_position()
        width = figure.get_size_inches()[0]
        bar_axes = figure.add_axes((box.x1 + 0.14 / width, box.y0, 0.13 / width, box.height))
    colors = colors or (style.SIGNED_MAP if isinstance(scale, TwoSlopeNorm) else style.HEAT_MAP)
    figure.set_visible(False)  # seaborn draws the whole of it here, to see whether labels overlap; there are none
    seaborn.heatmap(
        table,
        ax=ax,
        norm=scale,
        cmap=colors,
        cbar=bar,
        cbar_ax=bar_axes,
        linewidths=0.6,
        linecolor="white",
        xticklabels=False,
        yticklabels=False,
        mask=table.isna(),
        annot=annotate,
        fmt=".0f",
        annot_kws={"fontsize": 6.5},
    )
    figure.set_visible(True)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    every = max(1, -(-table.shape[1] // max(1, int(style.inches(ax)[0] / 0.3))))
    ax.set_xticks(np.arange(0, table.shape[1], every) + 0.5, [str(c) for c in table.columns[::every]], rotation=0)
    down = max(1, -(-table.shape[0] // max(1, int(style.inches(ax)[1] / 0.13))))
    ax.set_yticks(np.arange(0, table.shape[0], down) + 0.5, [str(name) for name in table.index[::down]], rotation=0)
    ax.tick_params(length=0)
    ax.set(xlabel="", ylabel="")
    if bar_axes is not None:
        bar_axes.grid(False)
        style.linear_axis(bar_axes, "y", 4) if not isinstance(scale, LogNorm) else _log_bar(bar_axes, scale)
        if described.share:
            bar_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        bar_axes.tick_params(labelsize=7.5, length=2)
        bar_axes.set_ylabel(bar_label, fontsize=8)


def _log_bar(ax: Axes, scale: LogNorm) -> None:
    ax.set_ylim(scale.vmin, scale.vmax)
    style.log_axis(ax, "y", 4)


def draw_heads(matrices: pd.DataFrame, name: str = "stable_rank") -> Figure | None:
    """One column for every attention head: a panel for q, k and v, heads across, layers down; None without heads."""
    rows = in_layers(matrices, heads=True)
    rows = rows[is_head(rows["part"])] if len(rows) else rows
    if not len(rows) or not has(rows, name):
        return None
    heads = [split_head(part) for part in rows["part"]]
    rows = rows.assign(group=[group for group, _ in heads], head=[head for _, head in heads])
    tables = {
        group: part.drop_duplicates(["layer", "head"]).pivot(index="layer", columns="head", values=name).astype(float)
        for group, part in rows.groupby("group", sort=False)
    }
    described = column(name)
    scale = scale_for(np.concatenate([table.to_numpy().ravel() for table in tables.values()]), described)
    widths = [max(0.55, min(5.4, 0.17 * table.shape[1])) for table in tables.values()]
    tall = max(1.0, 0.17 * max(table.shape[0] for table in tables.values()))
    left, gap, top, bottom = 0.6, 0.5, 0.34, 0.52
    width, height = left + sum(widths) + gap * (len(widths) - 1) + 1.25, top + tall + bottom
    figure = style.new_figure(width, height)
    x = left
    for i, ((group, table), w) in enumerate(zip(tables.items(), widths, strict=True)):
        ax = figure.add_axes((x / width, bottom / height, w / width, tall / height))
        heat(ax, table, described, scale=scale, bar=i == len(tables) - 1)
        ax.set_title(group)
        ax.set_xlabel(say("figure-head"))
        if i == 0:
            ax.set_ylabel(say("figure-layer"))
        x += w + gap
    return figure
