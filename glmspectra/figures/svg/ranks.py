"""Suggested ranks: every criterion side by side by layer and matrix, and what a budget buys (`figures.rank_tables`)."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from glmspectra.figures.rank_tables import CURVE_TABLE, RANK_TABLE, check_columns, criteria_of
from glmspectra.figures.svg import style
from glmspectra.figures.svg.heatmaps import heat, scale_for
from glmspectra.figures.svg.layers import slug
from glmspectra.figures.svg.words import say
from glmspectra.store.columns import COLUMNS

# Metric of a budget curve -> title and axis.
METRICS = {
    "loss": ("figure-budget-loss", "figure-expected-loss"),
    "energy": ("figure-budget-energy", "figure-energy-held"),
}
_ENERGY_OF = {"delta": "figure-energy-held-delta", "weight": "figure-energy-held-weight"}
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo", "--")
_RANK = replace(COLUMNS["rank"], label=("rank", "秩"))


def _matrix_by_layer(ranks: pd.DataFrame) -> pd.DataFrame:
    """Matrix x layer, float64; several weights of one layer and matrix (experts) are averaged."""
    inside = ranks[ranks["layer"].notna()]
    order = list(dict.fromkeys(inside["matrix"]))
    layers = inside["layer"].astype(int)
    table = inside.assign(layer=layers).pivot_table(index="matrix", columns="layer", values="rank", aggfunc="mean")
    return table.reindex(index=order, columns=range(layers.min(), layers.max() + 1)).astype(float)


def draw_rank_heatmaps(ranks: pd.DataFrame) -> Figure:
    """A panel for each criterion on one color scale: layers across, matrices down, the rank written in each cell.

    Raises StoreError when a column is missing.
    """
    check_columns(ranks, RANK_TABLE, "ranks")
    criteria = criteria_of(ranks)
    tables = {name: _matrix_by_layer(ranks[ranks["criterion"] == name]) for name in criteria}
    widest = max(table.shape[1] for table in tables.values())
    matrices = list(dict.fromkeys(matrix for table in tables.values() for matrix in table.index))
    columns = 1 if widest > 30 else min(2, len(criteria))
    wide = min(9.0 if columns == 1 else 4.5, max(2.2, 0.3 * widest))
    tall = max(0.8, 0.24 * len(matrices))
    left = 0.35 + 0.078 * max(len(name) for name in matrices)
    figure, axes = style.panels(
        len(criteria), columns, (wide, tall), left=left, right=1.1, top=0.34, bottom=0.52, gap=(0.3, 0.62)
    )
    scale = scale_for(np.concatenate([[0.0], *(table.to_numpy().ravel() for table in tables.values())]), _RANK)
    for i, (ax, name) in enumerate(zip(axes, criteria, strict=True)):
        table = tables[name].reindex(index=matrices)
        bar = i % columns == columns - 1 or i == len(criteria) - 1
        fits = wide / table.shape[1] > 0.145
        heat(ax, table, _RANK, scale=scale, bar=bar and i < columns, bar_label=say("figure-rank"), annotate=fits)
        ax.set_title(name)
        ax.tick_params(labelleft=i % columns == 0)
        if i >= len(criteria) - columns:
            ax.set_xlabel(say("figure-layer-from-input"))
    return figure


def draw_rank_bars(ranks: pd.DataFrame) -> Figure:
    """Mean rank by matrix type as grouped bars, and by layer as lines, every criterion in both.

    Raises StoreError when a column is missing.
    """
    check_columns(ranks, RANK_TABLE, "ranks")
    criteria = criteria_of(ranks)
    looks = style.strokes(criteria)
    matrices = list(dict.fromkeys(ranks["matrix"]))
    per_row = style.per_row_for(criteria, 10.3)
    head = style.key_height(len(criteria), per_row) + 0.36
    figure, (bars, lines) = style.panels(2, 2, (4.35, 2.5), left=0.66, top=head, bottom=0.58, gap=(0.72, 0.7))
    means = ranks.assign(rank=ranks["rank"].astype(float)).groupby(["criterion", "matrix"], sort=False)["rank"].mean()
    width = 0.82 / len(criteria)
    for i, name in enumerate(criteria):
        heights = [float(means.get((name, matrix), 0.0)) for matrix in matrices]
        at = np.arange(len(matrices)) - 0.41 + width * (i + 0.5)
        drawn = bars.bar(
            at,
            heights,
            width * 0.92,
            color=looks[name].color,
            hatch=_HATCHES[i % len(_HATCHES)],
            edgecolor="white",
            linewidth=0.4,
        )
        for matrix, patch in zip(matrices, drawn, strict=True):
            patch.set_gid(slug(f"bar-{name}-{matrix}"))
        inside = ranks[(ranks["criterion"] == name) & ranks["layer"].notna()]
        by_layer = (
            inside.assign(layer=inside["layer"].astype(int), rank=inside["rank"].astype(float))
            .groupby("layer")["rank"]
            .mean()
        )
        lines.plot(
            by_layer.index, by_layer.to_numpy(), gid=slug(f"by-layer-{name}"), **looks[name].line(markersize=3.4)
        )
    bars.set_xticks(
        range(len(matrices)),
        matrices,
        rotation=0 if len(matrices) <= 4 else 30,
        ha="center" if len(matrices) <= 4 else "right",
    )
    bars.grid(False, axis="x")
    style.linear_axis(bars, "y")
    bars.set(title=say("figure-mean-rank-by-matrix"), ylabel=say("figure-rank"))
    style.layer_axis(lines, sorted(ranks["layer"].dropna().astype(int).unique()))
    lines.set_ylim(bottom=0)
    style.linear_axis(lines, "y")
    lines.set(title=say("figure-mean-rank-by-layer"), ylabel=say("figure-rank"))
    handles = [
        (
            Patch(facecolor=looks[name].color, hatch=_HATCHES[i % len(_HATCHES)], edgecolor="white"),
            Line2D([], [], **looks[name].line()),
        )
        for i, name in enumerate(criteria)
    ]
    style.key(figure, handles, criteria, per_row=per_row)
    return figure


def draw_budget_curve(curve: pd.DataFrame, chosen: float | None = None) -> Figure:
    """What a total budget buys: loss or energy against trainable parameters, a line for each criterion.

    `chosen` (parameters) is marked where given. Raises StoreError when a column is missing.
    """
    check_columns(curve, CURVE_TABLE, "budget curves")
    criteria = criteria_of(curve)
    looks = style.strokes(criteria)
    metrics = list(dict.fromkeys(curve["metric"].astype(str)))
    per_row = style.per_row_for(criteria, 5.6 * len(metrics))
    head = style.key_height(len(criteria), per_row) + 0.36
    figure, axes = style.panels(
        len(metrics), 2, (5.0 if len(metrics) == 1 else 4.35, 2.6), left=0.82, top=head, bottom=0.58, gap=(0.85, 0.9)
    )
    for ax, metric in zip(axes, metrics, strict=True):
        rows = curve[curve["metric"] == metric]
        factor = 100.0 if metric == "energy" else 1.0
        for name in criteria:
            line = rows[rows["criterion"] == name].sort_values("parameters")
            x, y = line["parameters"].astype(float), factor * line["value"].astype(float)
            ax.plot(x, y, gid=slug(f"budget-{metric}-{name}"), **looks[name].line())
            if {"low", "high"} <= set(line.columns) and line["low"].notna().any():
                ax.fill_between(
                    x,
                    factor * line["low"].astype(float),
                    factor * line["high"].astype(float),
                    color=looks[name].color,
                    alpha=0.15,
                    linewidth=0,
                )
        low, high = float(rows["parameters"].min()), float(rows["parameters"].max())
        if low > 0 and high > 3 * low:
            ax.set_xlim(low / 1.15, high * 1.15)
            style.log_axis(ax, "x", 5)
        else:
            style.linear_axis(ax, "x")
        style.linear_axis(ax, "y")
        if chosen:
            ax.axvline(chosen, color="#20242a", linewidth=0.9, linestyle=(0, (2, 1.5)))
            ax.annotate(
                say("figure-this-budget"),
                (chosen, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
            )
        title, label = METRICS[metric]
        if metric == "energy" and "quantity" in rows and rows["quantity"].nunique() == 1:
            label = _ENERGY_OF.get(str(rows["quantity"].iloc[0]), label)
        ax.set(title=say(title), xlabel=say("figure-parameters"), ylabel=say(label))
    style.key(figure, [Line2D([], [], **looks[name].line()) for name in criteria], criteria, per_row=per_row)
    return figure
