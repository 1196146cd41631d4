"""The figures of `docs/ranks.md`, drawn from the committed lines: gain by budget, parameters for equal loss, the
controls, and gain by steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from rank_study import control_table, rivals, table

NAMES = {
    ("smollm2", "medical"): "SmolLM2 135M, medical answers",
    ("chatglm2", "medical"): "ChatGLM2 shape 19M, medical answers",
    ("neox", "medical"): "GPT-NeoX 114M, medical answers",
    ("smollm2", "python"): "SmolLM2 135M, Python bodies",
}
ARMS = {
    "delta-threshold": ("plain delta-W", "#1f77b4"),
    "delta-preconditioned": ("delta-W in AdamW's metric", "#d62728"),
    "type-alone": ("type of matrix alone", "#2ca02c"),
    "effective-rank": ("effective rank of the base", "#9467bd"),
    "random": ("random", "#7f7f7f"),
}
CONTROLS = {
    "delta-threshold": "ranks of plain delta-W, steps with them",
    "delta-sqrt-alpha": "  its ranks, alpha as sqrt(rank)",
    "delta-constant-alpha": "  its ranks, one alpha for all",
    "uniform-at-delta-steps": "  uniform ranks, its step sizes",
    "uniform-on-delta-modules": "  uniform ranks, its modules",
    "delta-preconditioned": "ranks in AdamW's metric, steps with them",
    "preconditioned-sqrt-alpha": "  its ranks, alpha as sqrt(rank)",
    "preconditioned-constant-alpha": "  its ranks, one alpha for all",
    "uniform-at-preconditioned-steps": "  uniform ranks, its step sizes",
    "uniform-on-preconditioned-modules": "  uniform ranks, its modules",
    "cut-16-continued": "rank 16, cut, 60 steps more",
}
# Label, color, and (steps of the pilots and of the training, arm) along a line.
BY_STEPS = (
    ("uniform ranks", "#7f7f7f", ((240, "uniform"), (260, "uniform-short-pilot-longer"),
     (320, "uniform-one-pilot-longer"), (480, "uniform-longer"), (560, "uniform-longer-and-one-pilot"))),
    ("plain delta-W, 240 steps", "#1f77b4", ((260, "delta-threshold-short-pilot"), (320, "delta-threshold-one-pilot"),
     (480, "delta-threshold"))),
    ("plain delta-W, 480 steps", "#17becf", ((560, "delta-threshold-one-pilot-longer"),
     (720, "delta-threshold-longer"))),
    ("AdamW's metric, 240 steps", "#d62728", ((260, "delta-preconditioned-short-pilot"),
     (320, "delta-preconditioned-one-pilot"), (480, "delta-preconditioned"))),
    ("AdamW's metric, 480 steps", "#ff7f0e", ((560, "delta-preconditioned-one-pilot-longer"),
     (720, "delta-preconditioned-longer"))),
)  # fmt: skip


def draw(lines: Sequence[dict], control_lines: Sequence[dict], rival_lines: Sequence[dict], folder: Path) -> list[Path]:
    """Write gain.svg, equal_loss.svg, controls.svg and steps.svg into the folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    style = {"svg.hashsalt": "ranks", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        found = [
            _gain(table.rows(lines), control_table.rows(control_lines), folder / "gain.svg"),
            _equal_loss(table.rows(lines), folder / "equal_loss.svg"),
            _controls(control_table.rows(control_lines), folder / "controls.svg"),
            _steps(control_table.rows([*rivals.tuned_before(control_lines), *rival_lines]), folder / "steps.svg"),
        ]
    plt.close("all")
    return found


def _save(path: Path) -> Path:
    plt.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    return path


def _gain(rows: Sequence[dict], third: Sequence[control_table.Row], path: Path) -> Path:
    """Loss less uniform's over the budget, one panel a setting, with 95 % intervals."""
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2))
    for axis, (setting, name) in zip(axes, NAMES.items(), strict=True):
        for shift, (arm, (label, color)) in enumerate(ARMS.items()):
            points = [(row["budget"], row["paired"]) for row in rows if (row["base"], row["task"]) == setting
                      and row["arm"] == arm]  # fmt: skip
            points += [(row.budget, row.gap) for row in third if (row.base, row.task) == setting == ("neox", "medical")
                       and row.arm == arm]  # fmt: skip
            if points:
                x = [np.log2(budget) + 0.04 * (shift - 2) for budget, _ in points]
                y = [gap.mean for _, gap in points]
                spread = [[gap.mean - gap.low for _, gap in points], [gap.high - gap.mean for _, gap in points]]
                axis.errorbar(x, y, spread, fmt="o-", ms=4, lw=1, capsize=2, color=color, label=label)
        _zero(axis, vertical=False)
        axis.set(title=name, xlabel="budget, as uniform rank", xticks=[1, 2, 3], xticklabels=["2", "4", "8"])
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("loss - uniform's, nats a token")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return _save(path)


def _equal_loss(rows: Sequence[dict], path: Path) -> Path:
    """Parameters against the uniform ranks of equal loss, one group of bars a setting and budget."""
    chosen = [row for row in rows if row["arm"] in ("delta-threshold", "delta-preconditioned") and "worth" in row]
    places = list(dict.fromkeys((row["base"], row["task"], row["budget"]) for row in chosen))
    figure, axis = plt.subplots(figsize=(9, 3.2))
    for row in chosen:
        label, color = ARMS[row["arm"]]
        x = places.index((row["base"], row["task"], row["budget"])) + (0.2 if row["arm"] != "delta-threshold" else -0.2)
        saved = 100 * (1 - row["budget"] / row["worth"].rank)
        axis.bar(x, saved, 0.38, color=color, hatch="//" if row["worth"].at_end else None, edgecolor="white",
                 label=label if places.index((row["base"], row["task"], row["budget"])) == 0 else None)  # fmt: skip
    axis.set_xticks(range(len(places)), [f"{base}\n{task}\nr {budget}" for base, task, budget in places])
    axis.set_ylabel("fewer parameters, %")
    axis.set_title("Parameters against the uniform rank of equal loss (hatched: at least, uniform's curve ends there)")
    axis.title.set_fontsize(9)
    axis.legend(frameon=False)
    figure.tight_layout()
    return _save(path)


def _controls(rows: Sequence[control_table.Row], path: Path) -> Path:
    """Each control's loss less uniform's with its 95 % interval, at r 4."""
    settings = [("smollm2", "medical"), ("chatglm2", "medical")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    labels = list(CONTROLS)
    for axis, setting in zip(axes, settings, strict=True):
        for row in rows:
            if (row.base, row.task) == setting and row.budget == 4 and row.arm in CONTROLS:
                color = "#d62728" if "preconditioned" in row.arm else "#1f77b4"
                color = "#555555" if row.arm.startswith("cut") else color
                spread = [[row.gap.mean - row.gap.low], [row.gap.high - row.gap.mean]]
                axis.errorbar(row.gap.mean, labels.index(row.arm), xerr=spread, fmt="o", ms=5, capsize=2, color=color)
        _zero(axis, vertical=True)
        axis.set(title=f"{NAMES[setting]}, r 4", xlabel="loss - uniform's, nats a token")
        axis.title.set_fontsize(9)
    axes[0].set_yticks(range(len(labels)), list(CONTROLS.values()), ha="left")
    axes[0].tick_params(axis="y", pad=210, length=0)
    axes[0].invert_yaxis()
    figure.tight_layout()
    return _save(path)


def _steps(rows: Sequence[control_table.Row], path: Path) -> Path:
    """Loss less that of uniform after 240 steps, over all steps that were taken, the pilots' too, at r 4."""
    gaps = {(row.base, row.arm): row.gap for row in rows if row.task == "medical" and row.budget == 4}
    settings = [setting for setting in NAMES if setting[1] == "medical" and (setting[0], "uniform-longer") in gaps]
    figure, axes = plt.subplots(1, max(1, len(settings)), figsize=(12, 3.4), squeeze=False)
    for axis, (base, task) in zip(axes[0], settings, strict=False):
        for label, color, places in BY_STEPS:
            found = [(steps, gaps[base, arm]) for steps, arm in places if (base, arm) in gaps]
            x, y = [steps for steps, _ in found], [gap.mean for _, gap in found]
            spread = [[gap.mean - gap.low for _, gap in found], [gap.high - gap.mean for _, gap in found]]
            if label == "uniform ranks":
                x, y, spread = [240, *x], [0.0, *y], [[0.0, *side] for side in spread]
            axis.errorbar(x, y, spread, fmt="o-", ms=4, lw=1, capsize=2, color=color, label=label)
        axis.set(title=f"{NAMES[base, task]}, r 4", xlabel="steps, the pilots' too")
        axis.title.set_fontsize(9)
    axes[0, 0].set_ylabel("loss - uniform's at 240, nats a token")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return _save(path)


def _zero(axis: Axes, vertical: bool) -> None:
    (axis.axvline if vertical else axis.axhline)(0, color="black", lw=0.8, ls=":")
