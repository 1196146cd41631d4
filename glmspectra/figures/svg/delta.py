"""What training changed: spectra of delta-W by depth, their growth over checkpoints, ranks in use, subspaces.

The spectra are rows of quantity 'delta' in the run's tables. What else is known of them comes in a table of its own, a
row for each base weight and step: name, layer, matrix, step, and any of allotted_rank, rank (directions above the
floor), relative_frobenius (||delta-W|| / ||W||), noise_floor (a singular value), intruders, amplification, overlap_left
and overlap_right (phi of the leading directions of delta-W and W). Subspace similarity is a long table: name, layer,
matrix, side ('left' or 'right'), i and j (from 1), similarity.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from glmspectra.figures.rank_tables import check_columns
from glmspectra.figures.svg import style
from glmspectra.figures.svg.heatmaps import heat
from glmspectra.figures.svg.layers import Spectra, depth_panels, slug
from glmspectra.figures.svg.words import say
from glmspectra.figures.tables import has, layers_of, thin, whole_matrices
from glmspectra.store.columns import column

DELTA_KEY = ("name", "layer", "matrix")
OPTIONAL_COLUMNS = (
    "allotted_rank",
    "rank",
    "relative_frobenius",
    "noise_floor",
    "intruders",
    "amplification",
    "overlap_left",
    "overlap_right",
)
SIMILARITY_TABLE = ("name", "layer", "matrix", "side", "i", "j", "similarity")
MOST_PANELS = 12
FLOOR_REACH = 300.0  # how far below the smallest value a rounding floor may lie and still be drawn


def draw_delta_spectra(spectra: Spectra, delta: pd.DataFrame | None = None) -> Figure:
    """A panel for each matrix type, one line a layer; a hatched band where rounding alone could have made the values.

    `spectra` of one step of quantity 'delta'; `delta` the further table of the same step (its noise_floor is drawn,
    unless it is so far down that the lines would be pressed together: `low_floors` names it then).
    """
    names = list(spectra.order)[:MOST_PANELS]
    figure, axes, color = depth_panels(names, spectra.layers, say("figure-number"), say("figure-sigma-change"))
    longest, largest, smallest = 1, 0.0, _smallest(spectra)
    for ax, name in zip(axes, names, strict=True):
        for layer in spectra.layers:
            sigma = spectra.sigma.get((layer, name))
            if sigma is None:
                continue
            at = thin(len(sigma), 90)
            ax.plot(
                at + 1,
                np.where(sigma[at] > 0, sigma[at], np.nan),
                color=color(layer),
                linewidth=0.9,
                marker="." if len(sigma) <= 64 else "",
                markersize=2.5,
                gid=slug(f"delta-{name}-layer-{layer}"),
            )
            longest, largest = max(longest, len(sigma)), max(largest, sigma[0])
        floor = _floor(delta, name)
        if floor > smallest / FLOOR_REACH:
            ax.axhspan(
                floor * 1e-12, floor, facecolor="#eceef1", edgecolor="#b9bfc7", hatch="////", linewidth=0, zorder=0
            )
            ax.axhline(floor, color="#20242a", linewidth=1.0, linestyle=(0, (3, 1.5)), gid=slug(f"floor-{name}"))
            ax.annotate(
                "rounding",
                (0, floor),
                xycoords=("axes fraction", "data"),
                xytext=(4, -4),
                textcoords="offset points",
                ha="left",
                va="top",
                fontsize=7,
                color="#20242a",
                bbox=style.HALO,
            )
    first = axes[0]
    floors = [value for value in (_floor(delta, name) for name in names) if value > smallest / FLOOR_REACH]
    low = max(min([smallest, *floors]) / 2, largest * 1e-9)
    first.set_ylim(low, largest * 1.6)
    if longest > 64:
        first.set_xlim(0.9, longest * 1.12)
        style.log_axis(first, "x", 4)
    else:
        first.set_xlim(0.3, longest + 0.7)
        style.linear_axis(first, "x", 4, whole=True)
    style.log_axis(first, "y", 5)
    return figure


def _smallest(spectra: Spectra) -> float:
    return min((float(sigma[sigma > 0][-1]) for sigma in spectra.sigma.values() if (sigma > 0).any()), default=np.inf)


def low_floors(spectra: Spectra, delta: pd.DataFrame | None) -> float:
    """The highest rounding floor that `draw_delta_spectra` leaves below its frame; 0 where it leaves none."""
    smallest = _smallest(spectra)
    floors = [_floor(delta, name) for name in list(spectra.order)[:MOST_PANELS]]
    return max((floor for floor in floors if 0 < floor <= smallest / FLOOR_REACH), default=0.0)


def _floor(delta: pd.DataFrame | None, series: str) -> float:
    """The highest noise floor of a matrix type's layers; 0 when none is known."""
    if delta is None or not len(delta) or not has(delta, "noise_floor"):
        return 0.0
    rows = delta[delta["matrix"] == series]
    return float(rows["noise_floor"].max()) if len(rows) and rows["noise_floor"].notna().any() else 0.0


GROWTH = (
    ("spectral_norm", "figure-largest-direction", "figure-spectral-norm-change"),
    ("frobenius_norm", "figure-size", "figure-frobenius-norm-change"),
    ("relative_frobenius", "figure-size-relative", "figure-relative"),
    ("effective_rank", "figure-effective-rank", "figure-effective-rank-axis"),
)


def draw_growth(matrices: pd.DataFrame, delta: pd.DataFrame | None = None) -> Figure | None:
    """How delta-W grows over the checkpoints of a run; None when there is only one step.

    By step, the median over layers of each matrix type, with a band from the lowest to the highest layer.

    Args:
        matrices: rows of quantity 'delta' of all steps, whole matrices.
        delta: the further table (relative_frobenius).
    """
    rows = matrices[matrices["step"].notna()] if "step" in matrices else matrices.iloc[:0]
    rows = whole_matrices(rows)
    if rows["step"].nunique() < 2:
        return None
    if delta is not None and has(delta, "relative_frobenius") and "step" in delta:
        rows = rows.drop(columns="relative_frobenius", errors="ignore").merge(
            delta[["name", "step", "relative_frobenius"]].drop_duplicates(["name", "step"]),
            on=["name", "step"],
            how="left",
        )
    shown = [entry for entry in GROWTH if has(rows, entry[0])]
    order = list(dict.fromkeys(rows["matrix"]))[:14]
    looks = style.strokes(order)
    per_row = style.per_row_for(order, 10.2)
    columns = 2 if len(shown) in (2, 4) else min(3, len(shown))
    panel = (4.25, 2.2) if columns == 2 else (2.62, 2.05)
    figure, axes = style.panels(
        len(shown),
        columns,
        panel,
        left=0.85,
        top=style.key_height(len(order), per_row) + 0.36,
        bottom=0.55,
        gap=(0.85, 0.9),
    )
    for ax, (name, title, label) in zip(axes, shown, strict=True):
        factor = 100.0 if name == "relative_frobenius" else 1.0
        for matrix in order:
            steps = rows[rows["matrix"] == matrix].groupby("step")[name]
            middle = factor * steps.median().astype(float)
            x = middle.index.to_numpy(float)
            ax.fill_between(
                x,
                factor * steps.min().astype(float),
                factor * steps.max().astype(float),
                color=looks[matrix].color,
                alpha=0.12,
                linewidth=0,
            )
            ax.plot(x, middle.to_numpy(), gid=slug(f"growth-{name}-{matrix}"), **looks[matrix].line())
        ax.set_ylim(bottom=0)
        style.linear_axis(ax, "x", 6, whole=True)
        style.linear_axis(ax, "y")
        ax.set(title=say(title), xlabel=say("figure-step"), ylabel=say(label))
    style.key(figure, [Line2D([], [], **looks[name].line()) for name in order], order, per_row=per_row)
    return figure


def draw_rank_use(delta: pd.DataFrame) -> Figure | None:
    """Rank in use (dark bar) against the rank allotted (pale bar), by depth, a panel for each matrix type.

    In use are the directions that hold 99 % of the energy of delta-W: nearly all of a trained adapter's are above the
    rounding floor, which would tell nothing. None when the table has no ranks. Raises StoreError when a key column is
    missing.
    """
    check_columns(delta, DELTA_KEY, "delta-W")
    if not has(delta, "allotted_rank") or not has(delta, "share_of_rank_in_use"):
        return None
    rows = delta[delta["layer"].notna()].assign(
        layer=lambda table: table["layer"].astype(int),
        used=lambda table: (table["share_of_rank_in_use"] * table["allotted_rank"]).astype(float).round(),
    )
    order = list(dict.fromkeys(rows["matrix"]))[:MOST_PANELS]
    columns = min(2, len(order))
    figure, axes = style.panels(
        len(order),
        columns,
        (4.5, 1.5),
        left=0.66,
        top=style.key_height(1) + 0.36,
        bottom=0.55,
        gap=(0.4, 0.72),
        sharey=True,
    )
    layers = layers_of(rows)
    for i, (ax, matrix) in enumerate(zip(axes, order, strict=True)):
        group = rows[rows["matrix"] == matrix].groupby("layer")[["allotted_rank", "used"]].sum().astype(float)
        ax.bar(group.index, group["allotted_rank"], 0.82, color=style.PALE, gid=slug(f"allotted-{matrix}"))
        ax.bar(group.index, group["used"], 0.5, color=style.COLORS[0], gid=slug(f"used-{matrix}"))
        ax.grid(False, axis="x")
        style.layer_axis(ax, layers, label=i >= len(order) - columns)
        share = group["used"].sum() / max(group["allotted_rank"].sum(), 1)
        ax.set_title(say("figure-in-use", matrix=matrix, share=f"{100 * share:.0f}"))
        if i % columns == 0:
            ax.set_ylabel(say("figure-rank"))
    style.linear_axis(axes[0], "y", 4, whole=True)
    style.key(
        figure,
        [Patch(color=style.PALE), Patch(color=style.COLORS[0])],
        [say("figure-allotted"), say("figure-used")],
    )
    return figure


def draw_similarity(similarity: pd.DataFrame, name: str | None = None) -> Figure:
    """Subspace similarity phi(i, j) between the top i directions of one matrix and the top j of the other.

    Hu et al. 2021, section 7. A panel for each matrix type and side; the median over layers, or one weight if `name` is
    given.

    Raises StoreError when a column is missing.
    """
    check_columns(similarity, SIMILARITY_TABLE, "subspace similarity")
    rows = similarity if name is None else similarity[similarity["name"] == name]
    order = list(dict.fromkeys(rows["matrix"]))[: MOST_PANELS // 2]
    sides = list(dict.fromkeys(rows["side"].astype(str)))
    cells = [(side, matrix) for side in sides for matrix in order]
    columns = min(4, len(order))
    figure, axes = style.panels(
        len(cells), columns, (1.95, 1.75), left=0.66, right=1.1, top=0.34, bottom=0.55, gap=(0.4, 0.8)
    )
    described = column("similarity")
    for i, (ax, (side, matrix)) in enumerate(zip(axes, cells, strict=True)):
        group = rows[(rows["side"] == side) & (rows["matrix"] == matrix)]
        table = group.pivot_table(index="i", columns="j", values="similarity", aggfunc="median").astype(float)
        heat(
            ax,
            table,
            described,
            scale=Normalize(0, 1),
            bar=i % columns == columns - 1 or i == len(cells) - 1,
            bar_label=say("figure-phi"),
        )
        _few_ticks(ax, table)
        ax.set_title(say(f"figure-side-{side}", matrix=matrix), fontsize=8.5)
        ax.set_xlabel(say("figure-top-of-weight"), fontsize=8)
        if i % columns == 0:
            ax.set_ylabel(say("figure-top-of-change"), fontsize=8)
    return figure


def _few_ticks(ax: Axes, table: pd.DataFrame) -> None:
    across, down = max(1, -(-table.shape[1] // 8)), max(1, -(-table.shape[0] // 8))
    ax.set_xticks(np.arange(0, table.shape[1], across) + 0.5, [str(j) for j in table.columns[::across]])
    ax.set_yticks(np.arange(0, table.shape[0], down) + 0.5, [str(i) for i in table.index[::down]])


def draw_merged(weight: Spectra, merged: Spectra, top: int = 20) -> Figure | None:
    """How the largest singular values of W moved: sigma(W + delta-W) / sigma(W) - 1, a panel for each matrix type.

    One line a layer. None when the two have no matrix in common.
    """
    names = [name for name in weight.order if any((layer, name) in merged.sigma for layer in weight.layers)][
        :MOST_PANELS
    ]
    if not names:
        return None
    figure, axes, color = depth_panels(names, weight.layers, say("figure-number"), say("figure-moved"))
    for ax, name in zip(axes, names, strict=True):
        for layer in weight.layers:
            before, after = weight.sigma.get((layer, name)), merged.sigma.get((layer, name))
            if before is None or after is None:
                continue
            count = min(top, len(before), len(after))
            ax.plot(
                np.arange(1, count + 1),
                100 * (after[:count] / before[:count] - 1),
                color=color(layer),
                linewidth=0.9,
                gid=slug(f"moved-{name}-layer-{layer}"),
            )
        ax.axhline(0, color=style.GREY, linewidth=0.8)
    style.linear_axis(axes[0], "y")
    style.linear_axis(axes[0], "x", 4, whole=True)
    return figure
