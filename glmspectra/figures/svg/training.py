"""Curves of training runs, several on one axis, and AdaLoRA's ranks over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glmspectra.figures.svg import style
from glmspectra.figures.svg.heatmaps import heat, scale_for
from glmspectra.figures.svg.layers import slug
from glmspectra.figures.svg.words import say
from glmspectra.figures.tables import smooth
from glmspectra.figures.training_log import TrainingRun
from glmspectra.store.columns import COLUMNS

RANK_COLUMNS = 40


@dataclass(frozen=True)
class Curve:
    """One figure of a run's log: a column, words for its axis by their name in the catalogue, and how it is drawn."""

    name: str
    column: str
    axis: str
    smoothed: bool = False
    logarithmic: bool = False
    markers: bool = False


CURVES = (
    Curve("train_loss", "loss", "figure-axis-loss", smoothed=True),
    Curve("eval_loss", "eval_loss", "figure-axis-loss", markers=True),
    Curve("eval_perplexity", "eval_perplexity", "figure-axis-perplexity", markers=True),
    Curve("learning_rate", "learning_rate", "figure-axis-learning-rate"),
    Curve("grad_norm", "grad_norm", "figure-axis-grad-norm", smoothed=True, logarithmic=True),
    Curve("tokens_per_second", "tokens_per_second", "figure-axis-speed", smoothed=True),
)


def curve_title(curve: Curve) -> str:
    """The name of its title in the catalogue."""
    return f"svg-{curve.name.replace('_', '-')}"


def smoothing_span(runs: Sequence[TrainingRun]) -> int:
    """Steps over which raw curves are averaged: a twentieth of the longest run, at least one."""
    longest = max(
        (float(run.history["step"].max() - run.history["step"].min()) for run in runs if len(run.history)), default=1.0
    )
    return max(1, round(longest / 20)) if math.isfinite(longest) else 1


def draw_curve(runs: Sequence[TrainingRun], curve: Curve) -> Figure | None:
    """One column of the log against the step, every run on the same axes; None when no run logged it.

    Raw values are pale when the smoothed ones lie over them.
    """
    shown = [run for run in runs if run.has(curve.column)]
    if not shown:
        return None
    looks = style.strokes([run.name for run in runs])
    labels = [run.name for run in shown]
    per_row = style.per_row_for(labels, 5.2)
    several = len(runs) > 1
    head = 0.34 + (style.key_height(len(labels), per_row) if several else 0.0)
    if curve.smoothed and not several:
        head += style.key_height(1)
    figure, (ax,) = style.panels(1, 1, (4.35, 2.5), left=0.85, right=0.2, top=head, bottom=0.55)
    span = smoothing_span(shown)
    every = []
    for run in shown:
        rows = run.history.dropna(subset=[curve.column])
        x, y = rows["step"].to_numpy(), rows[curve.column].to_numpy()
        every.append(y[np.isfinite(y)])
        look = looks[run.name]
        if curve.smoothed:
            ax.plot(x, y, color=look.color, linewidth=0.7, alpha=0.35, gid=slug(f"{curve.name}-raw-{run.name}"))
            y = smooth(x, y, span)
        marks: dict[str, object] = {} if curve.markers or several else {"marker": ""}
        if several and not curve.markers:
            marks = {"markevery": 0.11}
        ax.plot(x, y, gid=slug(f"{curve.name}-{run.name}"), **look.line(**marks))
    _curve_axes(ax, np.concatenate(every), curve)
    if several:
        style.key(figure, [Line2D([], [], **looks[name].line()) for name in labels], labels, per_row=per_row)
    elif curve.smoothed:
        color = looks[labels[0]].color
        style.key(
            figure,
            [Line2D([], [], color=color, linewidth=0.7, alpha=0.45), Line2D([], [], color=color)],
            [say("figure-logged"), say("figure-smoothed", span=span)],
        )
    return figure


def _curve_axes(ax: Axes, values: np.ndarray, curve: Curve) -> None:
    style.linear_axis(ax, "x", 6, whole=True)
    if len(values) and curve.logarithmic and values.min() > 0 and values.max() > 8 * values.min():
        ax.set_ylim(values.min() / 1.2, values.max() * 1.25)
        style.log_axis(ax, "y", 5)
    else:
        # One wild value at the start must not flatten the rest: the axis ends a little above the 99th percentile there.
        if len(values) > 50 and values.max() > 4 * np.percentile(values, 99):
            ax.set_ylim(top=float(np.percentile(values, 99) * 1.5))
        style.linear_axis(ax, "y", 6)
    if curve.column in ("learning_rate", "tokens_per_second"):
        ax.set_ylim(bottom=0)
    ax.set(xlabel=say("figure-step"), ylabel=say(curve.axis), title=say(curve_title(curve)))


def draw_rank_history(run: TrainingRun) -> Figure | None:
    """AdaLoRA: the rank of each matrix over time, a heat map layer by step for each matrix type, and their sum.

    None when the run has no rank history.
    """
    if not len(run.ranks):
        return None
    ranks = run.ranks.assign(layer=run.ranks["layer"].astype(float).fillna(-1).astype(int))
    steps = np.array(sorted(set(ranks["step"])))
    keep = steps[np.unique(np.linspace(0, len(steps) - 1, min(RANK_COLUMNS, len(steps))).round().astype(int))]
    tables = {}
    for matrix, group in ranks[ranks["step"].isin(keep)].groupby("matrix", sort=False):
        table = group.pivot_table(index="layer", columns="step", values="rank", aggfunc="sum").astype(float)
        table = table.reindex(columns=keep)
        table.index = [say("figure-none") if layer < 0 else str(layer) for layer in table.index]
        tables[str(matrix)] = table
    scale = scale_for(np.concatenate([[0.0], *(table.to_numpy().ravel() for table in tables.values())]), _RANK)
    columns = min(2, len(tables))
    tall = max(0.9, min(3.2, 0.11 * max(len(table) for table in tables.values()) + 0.2))
    rows = -(-len(tables) // columns)
    left, right, gap, wide, top, between, foot = 0.62, 1.0, 0.62, 4.2 if columns == 2 else 7.0, 0.34, 0.82, 0.55
    sum_height = 1.5
    width = left + columns * wide + (columns - 1) * gap + right
    height = top + rows * tall + rows * between + sum_height + foot
    figure = style.new_figure(width, height)

    def add(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    for i, (matrix, table) in enumerate(tables.items()):
        row, column = divmod(i, columns)
        ax = add(left + column * (wide + gap), top + row * (tall + between), wide, tall)
        heat(
            ax,
            table,
            _RANK,
            scale=scale,
            bar=column == columns - 1 or i == len(tables) - 1,
            bar_label=say("figure-rank"),
        )
        every = max(1, -(-table.shape[1] // max(3, int(wide / 0.55))))
        ax.set_xticks(np.arange(0, table.shape[1], every) + 0.5, [str(step) for step in table.columns[::every]])
        ax.set(title=matrix, xlabel=say("figure-step"))
        if column == 0:
            ax.set_ylabel(say("figure-layer"))
    total = ranks.groupby("step")["rank"].sum()
    ax = add(left, top + rows * (tall + between), width - left - right, sum_height)
    ax.plot(
        total.index,
        total.to_numpy(),
        gid="rank-total",
        **style.strokes(["total"])["total"].line(marker="", drawstyle="steps-post"),
    )
    ax.set_ylim(0, float(total.max()) * 1.1 or 1)
    style.linear_axis(ax, "x", 8, whole=True)
    style.linear_axis(ax, "y", 4, whole=True)
    ax.set(title=say("figure-rank-sum"), xlabel=say("figure-step"), ylabel=say("figure-rank"))
    return figure


_RANK = replace(COLUMNS["rank"], label=("rank", "秩"))
