"""Curves of training runs, from `trainer_state.json` of any year and `rank_history.jsonl`; several runs on one axis.

Only JSON is read. `training_args.bin` is a pickle and is never opened.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glmspectra.errors import RequestError, StoreError
from glmspectra.figures import style
from glmspectra.figures.heatmaps import heat, scale_for
from glmspectra.figures.layers import slug
from glmspectra.figures.tables import place, smooth
from glmspectra.store.columns import COLUMNS

# Names under which trainers log the speed, newest first; the first one present is drawn.
TOKEN_RATES = (
    "tokens_per_second",
    "tokens_per_sec",
    "train_tokens_per_second",
    "tokens_per_second_per_gpu",
    "real_tokens_per_second",
)
RANK_COLUMNS = 40


@dataclass(frozen=True)
class TrainingRun:
    """One run: its name, its log and, for AdaLoRA, its ranks.

    history: one row a log entry with columns step, epoch, loss, learning_rate, grad_norm, eval_loss, eval_perplexity,
        tokens_per_second, logged_perplexity; NaN where an entry does not hold one. Losses are natural-log, per token;
        eval_perplexity is exp(eval_loss), whatever the log says.
    ranks: columns step, module, layer, matrix, rank; empty but for AdaLoRA.
    """

    name: str
    folder: Path
    history: pd.DataFrame
    ranks: pd.DataFrame

    def has(self, column: str) -> bool:
        return bool(self.history[column].notna().any())

    @property
    def perplexity_disagrees(self) -> bool:
        """True when the log holds an eval_perplexity that is not exp(eval_loss): the original study wrote 2 ** loss."""
        both = self.history.dropna(subset=["eval_perplexity", "logged_perplexity"])
        return bool((np.abs(both["logged_perplexity"] / both["eval_perplexity"] - 1) > 0.01).any())


def find_state(folder: Path) -> Path:
    """The trainer_state.json of a run: the file itself, the folder's own, or that of its last checkpoint-N.

    Raises RequestError when there is none.
    """
    if folder.is_file():
        return folder
    candidates = [folder / "trainer_state.json"]
    checkpoints = []
    for path in folder.glob("*/trainer_state.json"):
        found = re.fullmatch(r"checkpoint-(\d+)", path.parent.name)
        if found:
            checkpoints.append((int(found[1]), path))
    candidates += [path for _, path in sorted(checkpoints, reverse=True)]
    for path in candidates:
        if path.is_file():
            return path
    raise RequestError(
        f"{folder} holds no trainer_state.json, nor does a checkpoint-N in it: name the folder of a training run."
    )


def read_training(folder: Path, name: str | None = None) -> TrainingRun:
    """Read one run. `name` is what its curves are called, by default the folder's name.

    Raises RequestError when there is no trainer_state.json, StoreError when a file cannot be read.
    """
    state_path = find_state(Path(folder))
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
        log = state["log_history"]
        entries = [_entry(record) for record in log if "step" in record]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{state_path} is not a trainer's state with a log_history ({type(error).__name__}: {error}): "
            "copy it again from the training folder."
        ) from error
    columns = [
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "eval_loss",
        "eval_perplexity",
        "tokens_per_second",
        "logged_perplexity",
    ]
    history = pd.DataFrame(entries, columns=columns).astype(float).sort_values("step", kind="stable", ignore_index=True)
    home = state_path.parent
    ranks = pd.DataFrame(columns=["step", "module", "layer", "matrix", "rank"])
    for path in (home / "rank_history.jsonl", home.parent / "rank_history.jsonl"):
        if path.is_file() and (path.parent == home or home.name.startswith("checkpoint-")):
            ranks = read_rank_history(path)
            break
    label = name or (home.parent.name if home.name.startswith("checkpoint-") else home.name)
    return TrainingRun(label, home, history, ranks)


def _entry(record: dict) -> dict[str, float]:
    def number(*names: str) -> float:
        for name in names:
            value = record.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return math.nan

    eval_loss = number("eval_loss")
    return {
        "step": float(record["step"]),
        "epoch": number("epoch"),
        "loss": number("loss"),
        "learning_rate": number("learning_rate"),
        "grad_norm": number("grad_norm"),
        "eval_loss": eval_loss,
        # A loss above 700 has no finite exp in float64; it is drawn as a gap, as NaN is.
        "eval_perplexity": math.exp(eval_loss) if eval_loss < 700 else math.nan,
        "logged_perplexity": number("eval_perplexity"),
        "tokens_per_second": number(*TOKEN_RATES),
    }


def read_rank_history(path: Path) -> pd.DataFrame:
    """Ranks over time: columns step, module, layer, matrix, rank. A last line cut off by a crash is left out.

    Lines are {"step": N, "ranks": {module: rank}}. Raises StoreError when another line is not of that form.
    """
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step, ranks = int(record["step"]), record["ranks"]
            rows += [(step, module, *place(module), int(rank)) for module, rank in ranks.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise StoreError(
                f"{path}, line {number}: not a line of step and ranks ({error}): remove it or train again."
            ) from error
    table = pd.DataFrame(rows, columns=["step", "module", "layer", "matrix", "rank"])
    # A resumed run writes some steps twice; the later line is what the final adapter saw.
    return table.drop_duplicates(["step", "module"], keep="last").sort_values("step", kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Curve:
    """One figure of a run's log: a column, words for its axis, and how it is drawn."""

    name: str
    column: str
    title: str
    axis: str
    smoothed: bool = False
    logarithmic: bool = False
    markers: bool = False


CURVES = (
    Curve("train_loss", "loss", "Training loss", "loss (nats per token)", smoothed=True),
    Curve("eval_loss", "eval_loss", "Evaluation loss", "loss (nats per token)", markers=True),
    Curve(
        "eval_perplexity", "eval_perplexity", "Evaluation perplexity", "perplexity (exp of loss, no unit)", markers=True
    ),
    Curve("learning_rate", "learning_rate", "Learning rate", "learning rate (no unit)"),
    Curve("grad_norm", "grad_norm", "Gradient norm", "gradient norm (no unit)", smoothed=True, logarithmic=True),
    Curve("tokens_per_second", "tokens_per_second", "Speed", "speed (tokens / s)", smoothed=True),
)


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
            ax.plot(x, y, color=look.colour, linewidth=0.7, alpha=0.35, gid=slug(f"{curve.name}-raw-{run.name}"))
            y = smooth(x, y, span)
        marks: dict[str, object] = {} if curve.markers or several else {"marker": ""}
        if several and not curve.markers:
            marks = {"markevery": 0.11}
        ax.plot(x, y, gid=slug(f"{curve.name}-{run.name}"), **look.line(**marks))
    _curve_axes(ax, np.concatenate(every), curve)
    if several:
        style.key(figure, [Line2D([], [], **looks[name].line()) for name in labels], labels, per_row=per_row)
    elif curve.smoothed:
        colour = looks[labels[0]].colour
        style.key(
            figure,
            [Line2D([], [], color=colour, linewidth=0.7, alpha=0.45), Line2D([], [], color=colour)],
            ["as logged", f"smoothed over {span} steps"],
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
    ax.set(xlabel="step (optimizer updates)", ylabel=curve.axis, title=curve.title)


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
        table.index = ["none" if layer < 0 else str(layer) for layer in table.index]
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
            bar_label="rank (directions)",
        )
        every = max(1, -(-table.shape[1] // max(3, int(wide / 0.55))))
        ax.set_xticks(np.arange(0, table.shape[1], every) + 0.5, [str(step) for step in table.columns[::every]])
        ax.set(title=matrix, xlabel="step (optimizer updates)")
        if column == 0:
            ax.set_ylabel("layer")
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
    ax.set(title="Sum over all matrices", xlabel="step (optimizer updates)", ylabel="rank (directions)")
    return figure


_RANK = replace(COLUMNS["rank"], label=("rank", "秩"))
