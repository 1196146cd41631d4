"""All figures of a run as SVG files in one folder: which there are, and how each is titled and described."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from glmspectra.errors import RequestError
from glmspectra.figures.rank_tables import criteria_of
from glmspectra.figures.svg import delta as changes
from glmspectra.figures.svg import depth, heatmaps, layers, ranks, training, values
from glmspectra.figures.svg.one_layer import draw_layer
from glmspectra.figures.svg.style import save_svg, styled
from glmspectra.figures.svg.words import extremes, figure_language, say
from glmspectra.figures.tables import Tables, has, in_layers, similarity_table, whole_matrices, with_outlier_ratios
from glmspectra.figures.training_log import TrainingRun
from glmspectra.store.columns import column

_CHANGE_RANKS = (
    depth.Measure("stable_rank", "figure-stable-rank-change"),
    depth.Measure("effective_rank", "figure-effective-rank-change"),
)
_CHANGE_MAPS = ("relative_frobenius", "intruders", "amplification", "overlap_left", "overlap_right")
_HEAD_MAPS = ("stable_rank", "effective_rank", "spectral_norm")


@dataclass(frozen=True)
class Drawn:
    """One figure: its file without the ending, its title, what someone who does not see it is told, and the drawing."""

    name: str
    title: str
    described: str
    figure: Figure | None


def save_all(figures: Iterator[Drawn], folder: Path) -> list[Path]:
    """Write each figure that there is into `folder`; the paths. Raises StoreError when one cannot be written."""
    with styled():
        return [
            save_svg(drawn.figure, folder / f"{drawn.name}.svg", drawn.title, drawn.described)
            for drawn in figures
            if drawn.figure is not None
        ]


def _drawn(name: str, figure: Figure | None, described: str = "") -> Drawn:
    title = say(f"svg-{name.replace('_', '-')}")
    return Drawn(name, title, f"{title}. {described}".strip(), figure)


def left_out(drawn: int, there: int, which: str) -> str:
    """What a figure's description says that shows only `drawn` of `there` lines or panels; nothing where it shows all.

    which: those that are shown, in words.
    """
    return say("figure-only-some", all=there, drawn=drawn, which=which) if there > drawn else ""


def weight_figures(run: Tables, columns: Sequence[str] = (), per_layer: bool = True) -> Iterator[Drawn]:
    """Figures of one quantity's tables, which went through `tables.pick`.

    Args:
        run: The tables.
        columns: Further columns to draw heat maps of.
        per_layer: A figure for each layer too.

    Raises:
        RequestError: The run has no such column.
    """
    matrices = with_outlier_ratios(run.matrices)
    spectra = layers.Spectra.of(run)
    if has(matrices, "spectral_norm") or spectra.sigma:
        for name, measures in (
            ("top12", depth.TOP12),
            ("ranks", depth.RANKS),
            ("edges", depth.EDGES),
            ("tails", depth.TAILS),
            ("norms", depth.NORMS),
        ):
            yield _by_depth(name, matrices, measures)
        yield _drawn("energy_ranks", depth.draw_energy_ranks(matrices), extremes(matrices, "energy_rank_90"))
    if spectra.sigma:
        note = left_out(layers.MOST_PANELS, len(spectra.order), say("figure-first-layers"))
        yield _drawn("spectra_by_matrix", layers.draw_spectra_by_matrix(spectra), note)
        note = _lines_left_out(max(len(spectra.of_layer(layer)) for layer in spectra.layers))
        yield _drawn("sheet_top20", layers.draw_sheet(spectra, "top"), note)
        yield _drawn("sheet_spectra", layers.draw_sheet(spectra, "spectrum"), note)
    if len(run.singular_values):
        yield _drawn("outside_layers", layers.draw_outside(run))
    if len(run.histograms) or has(matrices, "std"):
        yield _drawn("histograms", values.draw_value_ridges(run))
        yield _by_depth("spread", matrices, depth.SPREAD)
        yield _by_depth("outliers", matrices, depth.OUTLIERS)
    yield from _heat_maps(matrices, columns)
    for layer in spectra.layers if per_layer else ():
        title = say("svg-layer", layer=layer)
        note = _lines_left_out(len(spectra.of_layer(layer)))
        yield Drawn(f"layer_{layer:02d}", title, f"{title}. {note}".strip(), draw_layer(spectra, layer))


def _by_depth(name: str, matrices: pd.DataFrame, measures: Sequence[depth.Measure]) -> Drawn:
    """Measures by depth, without those of one value only; what is told of it is of the first that is drawn."""
    telling = [measure for measure in measures if not depth.is_constant(matrices, measure.column)]
    return _drawn(
        name,
        depth.draw_by_depth(matrices, telling),
        extremes(matrices, telling[0].column) if telling else "",
    )


def _lines_left_out(there: int) -> str:
    return left_out(layers.MOST_LINES, there, say("figure-largest-first"))


def _heat_maps(matrices: pd.DataFrame, columns: Sequence[str]) -> Iterator[Drawn]:
    rows = in_layers(matrices)
    drawable = heatmaps.numeric_columns(rows)
    for name in columns:
        if name not in drawable:
            raise RequestError(
                f"the column {name!r} has no numbers to draw in this run: choose from {', '.join(drawable)}."
            )
    for name in dict.fromkeys([*heatmaps.DEFAULT_COLUMNS, *columns]):
        if has(rows, name) and (name in columns or not depth.is_constant(rows, name)):
            title = column(name).label[figure_language() == "zh"].capitalize()
            yield Drawn(
                f"heat_{name}", title, f"{title}: {extremes(matrices, name)}.", heatmaps.draw_heatmap(matrices, name)
            )
    for name in _HEAD_MAPS:
        title = say("svg-heads", measure=column(name).label[figure_language() == "zh"])
        yield Drawn(f"heads_{name}", title, title, heatmaps.draw_heads(matrices, name))


def change_figures(last: Tables, every: pd.DataFrame, weight: Tables, merged: Tables) -> Iterator[Drawn]:
    """Figures of what training changed.

    Args:
        last: Tables of quantity 'delta' at the last step, through `tables.pick`.
        every: Rows of quantity 'delta' of all steps.
        weight: Tables of the base, empty where they are not known.
        merged: Tables of base plus change at the last step, empty where they are not known.
    """
    matrices, spectra = last.matrices, layers.Spectra.of(last)
    wholes = whole_matrices(matrices)
    if spectra.sigma:
        yield _drawn("delta_spectra", changes.draw_delta_spectra(spectra, wholes), extremes(matrices, "spectral_norm"))
    yield _drawn("delta_ranks", depth.draw_by_depth(matrices, _CHANGE_RANKS), extremes(matrices, "effective_rank"))
    yield _drawn("delta_rank_use", changes.draw_rank_use(wholes))
    for name in _CHANGE_MAPS:
        if has(wholes, name) and not depth.is_constant(wholes, name):
            yield _drawn(f"delta_{name}", heatmaps.draw_heatmap(wholes, name), extremes(wholes, name))
    if "step" in every:
        yield _drawn("delta_growth", changes.draw_growth(every))
    similarity = similarity_table(matrices)
    if len(similarity):
        yield _drawn("delta_similarity", changes.draw_similarity(similarity))
    before, after = layers.Spectra.of(weight), layers.Spectra.of(merged)
    if before.sigma and after.sigma:
        yield _drawn("delta_merged", changes.draw_merged(before, after))


def rank_figures(
    table: pd.DataFrame, curve: pd.DataFrame | None = None, chosen: float | None = None
) -> Iterator[Drawn]:
    """Figures of suggested ranks; chosen: the budget in parameters. Raises StoreError for a missing column."""
    listed = ", ".join(criteria_of(table))
    yield _drawn("ranks_by_matrix", ranks.draw_rank_bars(table), listed)
    yield _drawn("ranks_heat", ranks.draw_rank_heatmaps(table), listed)
    if curve is not None and len(curve):
        yield _drawn("budget_curve", ranks.draw_budget_curve(curve, chosen), listed)


def training_figures(runs: Sequence[TrainingRun]) -> Iterator[Drawn]:
    """Curves of training runs on the same axes, and the ranks of AdaLoRA runs over time."""
    for curve in training.CURVES:
        drawn = _drawn(curve.name, training.draw_curve(runs, curve), ", ".join(run.name for run in runs))
        yield Drawn(f"curve_{curve.name}", drawn.title, drawn.described, drawn.figure)
    adaptive = [run for run in runs if len(run.ranks)]
    for run in adaptive:
        drawn = _drawn("rank_history", training.draw_rank_history(run), run.name)
        name = "rank_history" if len(adaptive) == 1 else f"rank_history_{layers.slug(run.name)}"
        yield Drawn(name, f"{drawn.title}: {run.name}", drawn.described, drawn.figure)
