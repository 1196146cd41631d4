"""Numbers of each matrix by depth: shares, ranks, energy ranks, edges, norms and outliers, a line a matrix type."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glmspectra.figures.svg import style
from glmspectra.figures.svg.layers import slug
from glmspectra.figures.svg.words import axis, say
from glmspectra.figures.tables import has, in_layers, layers_of, series_order
from glmspectra.store.columns import column

LINES = 7  # on one pair of axes; more series go to further rows of panels
MOST_SERIES = 42


@dataclass(frozen=True)
class Measure:
    """One panel of a figure by depth: a column, its title, and a value to compare with where there is one.

    Title and label of the value are names of the catalogue; without a title the column's own words stand there.
    """

    column: str
    title: str = ""
    reference: float | None = None
    reference_label: str = ""

    def words(self) -> str:
        """The title in the language of figures."""
        return say(self.title) if self.title else axis(self.column)


def _beyond(k: int) -> float:
    """Share of a normal distribution beyond k standard deviations, both sides."""
    return math.erfc(k / math.sqrt(2))


TOP12 = (
    Measure("top12_share_of_singular_value_sum", "figure-top12-sum"),
    Measure("top12_energy_share", "figure-top12-energy"),
)
RANKS = (
    Measure("stable_rank", "figure-stable-rank"),
    Measure("effective_rank", "figure-effective-rank"),
    Measure("participation_ratio", "figure-participation-ratio"),
)
EDGES = (
    Measure("mp_spikes", "figure-mp-spikes"),
    Measure("gavish_donoho_rank", "figure-gavish-donoho"),
)
TAILS = (
    Measure("alpha", "figure-alpha", 6.0, "figure-alpha-above"),
    Measure("alpha_ks", "figure-alpha-ks", 0.1, "figure-alpha-ks-above"),
)
NORMS = (
    Measure("spectral_norm", "figure-spectral-norm"),
    Measure("frobenius_norm", "figure-frobenius-norm"),
    Measure("condition_number", "figure-condition-number"),
)
SPREAD = (
    Measure("std", "figure-std"),
    Measure("mean", "figure-mean", 0.0),
    Measure("normal_ks", "figure-normal-ks"),
)
OUTLIERS = (
    Measure("share_beyond_4_sigma", "figure-beyond-four", _beyond(4), "figure-normal"),
    Measure("share_beyond_6_sigma", "figure-beyond-six"),
    Measure("excess_kurtosis", "figure-kurtosis", 0.0, "figure-normal"),
    Measure("abs_max_in_std", "figure-largest-entry"),
    Measure("row_peak", "figure-row-peak"),
    Measure("column_peak", "figure-column-peak"),
)

# Columns that are computed here and have no entry of their own, and the axis of each.
OWN_AXES = {"abs_max_in_std": "figure-weight-in-std", "row_peak": "figure-ratio", "column_peak": "figure-ratio"}


def is_constant(matrices: pd.DataFrame, name: str) -> bool:
    """True for a column of one value only, such as the top 12 of an adapter of rank 12: a figure would tell nothing."""
    return has(matrices, name) and pd.to_numeric(matrices[name], errors="coerce").astype(float).round(12).nunique() == 1


def draw_by_depth(matrices: pd.DataFrame, measures: Sequence[Measure]) -> Figure | None:
    """One panel for each measure that has numbers, a line for each series; None when nothing was measured.

    `matrices` went through `tables.pick`. Whole matrices and parts have rows of panels of their own, and of more
    than seven series there are several rows.
    """
    rows = in_layers(matrices)
    wanted = [measure for measure in measures if has(rows, measure.column)]
    if not wanted:
        return None
    order = [name for name in series_order(matrices) if len(rows[rows["series"] == name])][:MOST_SERIES]
    looks = style.strokes(order)
    wholes, parts = [name for name in order if " " not in name], [name for name in order if " " in name]
    chunks = [chunk for group in (wholes, parts) for chunk in _even_chunks(group)]
    columns = min(3, len(wanted))
    panel = {1: (6.4, 2.6), 2: (4.25, 2.35), 3: (2.62, 2.05)}[columns]
    cells = [(measure, chunk) for chunk in chunks for measure in wanted]
    if len(wanted) % columns:  # keep each chunk on rows of its own
        columns = len(wanted) if len(wanted) <= 3 else 2 if len(wanted) % 2 == 0 else 3
        panel = {1: (6.4, 2.6), 2: (4.25, 2.35), 3: (2.62, 2.05)}[columns]
    per_row = style.per_row_for(order, columns * (panel[0] + 0.8))
    head = style.key_height(len(order), per_row) + 0.36
    figure, axes = style.panels(len(cells), columns, panel, left=0.82, top=head, bottom=0.55, gap=(0.8, 0.88))
    layers = layers_of(rows)
    for ax, (measure, chunk) in zip(axes, cells, strict=True):
        _lines(ax, rows, measure, chunk, looks, layers)
        if chunk[0] in parts:
            ax.set_title(say("figure-parts", title=measure.words()), fontsize=8.5)
    style.key(figure, [Line2D([], [], **looks[name].line()) for name in order], order, per_row=per_row)
    return figure


def _even_chunks(names: list[str]) -> list[list[str]]:
    """As few chunks of at most LINES names as will do, of nearly equal size."""
    count = -(-len(names) // LINES)
    size = -(-len(names) // count) if count else 0
    return [names[i * size : (i + 1) * size] for i in range(count)]


def _lines(
    ax: Axes,
    rows: pd.DataFrame,
    measure: Measure,
    names: Sequence[str],
    looks: Mapping[str, style.Stroke],
    layers: Sequence[int],
) -> None:
    described = column(measure.column)
    every: list[float] = []
    size = 3.6 if len(layers) <= 40 else 2.2
    for name in names:
        line = rows[rows["series"] == name].drop_duplicates("layer").set_index("layer")[measure.column]
        line = line.reindex(range(layers[0], layers[-1] + 1))  # a gap where a layer was left out, not a line over it
        values = pd.to_numeric(line, errors="coerce").to_numpy(float)
        values = np.where(np.isfinite(values), values, np.nan)
        every.extend(values[np.isfinite(values)])
        ax.plot(
            line.index,
            values,
            gid=slug(f"{measure.column}-{name}"),
            **looks[name].line(markersize=size, linewidth=1.3),
        )
    layered = np.array(every)
    if len(layered) and layered.min() > 0 and layered.max() > 12 * layered.min():
        ax.set_ylim(layered.min() / 1.3, layered.max() * 1.45)
        style.log_axis(ax, "y", 5)
    else:
        if len(layered) and layered.min() >= 0 and layered.min() < 0.5 * layered.max():
            ax.set_ylim(bottom=0)
        style.linear_axis(ax, "y")
    low, high = ax.get_ylim()
    if measure.reference is not None and low <= measure.reference <= high:
        ax.axhline(measure.reference, color=style.GREY, linewidth=0.9, linestyle=(0, (2, 1.5)), zorder=1)
        if measure.reference_label:
            ax.annotate(
                say(measure.reference_label),
                (1, measure.reference),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2.5),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=7.5,
                color=style.GREY,
                bbox=style.HALO,
            )
    if described.share:
        style.percent_axis(ax)
    style.layer_axis(ax, layers)
    ax.set_title(measure.words(), fontsize=8.5)
    special = OWN_AXES.get(measure.column)
    ax.set_ylabel(say(special) if special else axis(measure.column))


ENERGIES = (50, 80, 90, 95, 99)


def draw_energy_ranks(matrices: pd.DataFrame) -> Figure | None:
    """A panel for each series: the directions that hold 50, 80, 90, 95 and 99 % of its energy, by depth.

    None when no energy rank was measured.
    """
    rows = in_layers(matrices)
    levels = [level for level in ENERGIES if has(rows, f"energy_rank_{level}")]
    if not levels:
        return None
    order = [name for name in series_order(matrices) if has(rows[rows["series"] == name], f"energy_rank_{levels[0]}")][
        :MOST_SERIES
    ]
    looks = style.strokes([str(level) for level in ENERGIES])
    columns = style.grid_columns(len(order))
    panel = (2.05, 2.0) if columns == 4 else (2.75, 2.1)
    labels = [say("figure-energy", level=level) for level in levels]
    figure, axes = style.panels(
        len(order), columns, panel, left=0.82, top=style.key_height(1) + 0.36, bottom=0.55, gap=(0.62, 0.88)
    )
    layers = layers_of(rows)
    for i, (ax, name) in enumerate(zip(axes, order, strict=True)):
        line = rows[rows["series"] == name].drop_duplicates("layer")
        for level in levels:
            ax.plot(
                line["layer"],
                pd.to_numeric(line[f"energy_rank_{level}"], errors="coerce").astype(float),
                gid=slug(f"energy-{level}-{name}"),
                **looks[str(level)].line(markersize=2.8, linewidth=1.2),
            )
        ceiling = float(np.nanmax(np.minimum(line["rows"].astype(float), line["cols"].astype(float))))
        ax.axhline(ceiling, color=style.GREY, linewidth=0.9, linestyle=(0, (2, 1.5)))
        ax.annotate(
            say("figure-all-directions"),
            (1, ceiling),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=style.GREY,
            bbox=style.HALO,
        )
        ax.set_ylim(0, ceiling * 1.06)
        style.linear_axis(ax, "y", 5, whole=True)
        style.layer_axis(ax, layers)
        ax.set_xlabel(say("figure-layer"))
        ax.set_title(name, fontsize=8.5)
        if i % columns == 0:
            ax.set_ylabel(say("figure-energy-rank"))
    style.key(figure, [Line2D([], [], **looks[str(level)].line()) for level in levels], labels)
    return figure
