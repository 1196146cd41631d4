"""The sections of a report on weights and on training: which figures, and in which order."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from glmspectra.errors import RequestError
from glmspectra.figures import depth, heatmaps, layers, training, values
from glmspectra.figures.one_layer import MOST_DENSITIES, draw_layer
from glmspectra.figures.page import Album, Grid, Section, cell_text
from glmspectra.figures.readings import PARAGRAPHS, READINGS
from glmspectra.figures.tables import Tables, has, in_layers, series_order
from glmspectra.store.columns import COLUMNS, column

# Column of matrices.parquet -> its head in the summary, where the words for an axis are too long.
SUMMARY_HEADS = {
    "rank": "rank above rounding",
    "allotted_rank": "rank allotted",
    "share_of_rank_in_use": "in use, %",
    "relative_frobenius": "of ||W||, %",
    "spectral_norm": "spectral norm",
    "frobenius_norm": "Frobenius norm",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "energy_rank_90": "90 % energy rank",
    "top12_share_of_singular_value_sum": "top 12 of Σσ, %",
    "mp_spikes": "spikes",
    "gavish_donoho_rank": "Gavish-Donoho",
    "alpha": "α",
    "condition_number": "condition number",
    "std": "std",
    "excess_kurtosis": "excess kurtosis",
    "abs_max": "largest |w|",
    "share_beyond_6_sigma": "beyond 6 std, %",
}

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that goes nowhere."""


def extremes(rows: pd.DataFrame, name: str) -> str:
    """One clause for an alternative text: where a column is largest and smallest."""
    table = in_layers(rows)
    if not has(table, name):
        return "no values"
    numbers = pd.to_numeric(table[name], errors="coerce").astype(float).reset_index(drop=True)
    numbers = numbers[np.isfinite(numbers)]
    high, low = table.iloc[int(numbers.idxmax())], table.iloc[int(numbers.idxmin())]
    factor, unit = (100, " %") if column(name).share else (1, "")

    def at(row: pd.Series) -> str:
        return f"{cell_text(float(row[name]) * factor)}{unit} ({row['series']}, layer {int(row['layer'])})"

    return f"highest {at(high)}, lowest {at(low)}"


def left_out(drawn: int, there: int, which: str) -> str:
    """What a figure says that shows only `drawn` of `there` lines or panels; nothing where it shows all.

    which: those that are shown, in words.
    """
    if there <= drawn:
        return ""
    return f"Of {there} only {drawn} are drawn here, {which}; the table holds all."


def summary_section(run: Tables) -> Section:
    """The table of a run: a row for each matrix and part, with the columns that were measured."""
    matrices = run.matrices
    shown = [name for name in SUMMARY_HEADS if has(matrices, name)]
    parts = bool((matrices["part"] != "whole").any())
    nonfinite = "status" in matrices and bool((matrices["status"] != "ok").any())
    heads = [("layer", "Counted from 0, nearest the input."), ("matrix", "The weight's own name.")]
    heads += [("part", "Of a fused weight.")] if parts else []
    heads += [("shape", "Rows by columns."), ("type", "As stored.")]
    heads += [(SUMMARY_HEADS[name], COLUMNS[name].meaning[0]) for name in shown]
    heads += [("status", "ok, or nonfinite when the weight holds NaN or infinity.")] if nonfinite else []
    heads += [("weight", "Name in the checkpoint.")]
    rows = []
    for record in matrices.to_dict("records"):
        row = [None if pd.isna(record["layer"]) else int(record["layer"]), record["matrix"]]
        row += [record["part"]] if parts else []
        row += [f"{int(record['rows'])} × {int(record['cols'])}", record["dtype"]]
        for name in shown:
            value = None if pd.isna(record[name]) else float(record[name])
            row.append(value * 100 if value is not None and COLUMNS[name].share else value)
        row += [record["status"]] if nonfinite else []
        rows.append([*row, record["name"]])
    caption = f"{len(rows)} rows; a head sorts its column, and the fields above narrow the rows."
    facets = [0, 1, 2] if parts else [0, 1]
    grid = Grid(caption, heads, rows, facets, row_head=1)
    return Section("summary", "Table of all matrices", [PARAGRAPHS["summary"]], grid=grid)


def analysis_sections(
    run: Tables,
    album: Album,
    columns: Sequence[str] = (),
    per_layer: bool = True,
    progress: Progress = silent,
) -> list[Section]:
    """All figures of one quantity's tables (through `tables.pick`), saved into the album's folder.

    columns: further columns to draw heat maps of. per_layer: a figure for each layer too. Raises RequestError for a
    column that the run does not have.
    """
    matrices = depth.with_outlier_ratios(run.matrices)
    spectra = layers.Spectra.of(run)
    sections = [summary_section(run)]
    if has(matrices, "spectral_norm") or spectra.sigma:
        sections.append(_by_depth(matrices, album, progress))
    if spectra.sigma or len(run.singular_values):
        sections.append(_sheets(run, spectra, album, progress))
    if len(run.histograms) or has(matrices, "std"):
        sections.append(_values(run, matrices, album, progress))
    sections.append(_heatmaps(matrices, album, columns, progress))
    if spectra.sigma and per_layer:
        sections.append(_layers(spectra, album, progress))
    return sections


def _by_depth(matrices: pd.DataFrame, album: Album, progress: Progress) -> Section:
    section = Section("depth", "Spectra by depth")
    progress("figures by depth")
    note = _depth_note(matrices)
    for name, measures in (("top12", depth.TOP12), ("ranks", depth.RANKS)):
        alt = _depth_alt(matrices, measures[0].column)
        album.add(section, name, depth.draw_by_depth(matrices, measures), alt, note=note)
    figure = depth.draw_energy_ranks(matrices)
    album.add(section, "energy_ranks", figure, _depth_alt(matrices, "energy_rank_90"), note=note)
    for name, measures in (("edges", depth.EDGES), ("tails", depth.TAILS), ("norms", depth.NORMS)):
        alt = _depth_alt(matrices, measures[0].column)
        album.add(section, name, depth.draw_by_depth(matrices, measures), alt, note=note)
    return section


def _depth_alt(matrices: pd.DataFrame, name: str) -> str:
    return f"Lines by layer, one for each matrix type; {column(name).label[0]}: {extremes(matrices, name)}."


def _depth_note(matrices: pd.DataFrame) -> str:
    return left_out(depth.MOST_SERIES, len(series_order(in_layers(matrices))), "the first in the order of the layers")


def _sheets(run: Tables, spectra: layers.Spectra, album: Album, progress: Progress) -> Section:
    section = Section("sheets", "All layers on one sheet")
    progress("sheets of all layers")
    if spectra.sigma:
        count, names = len(spectra.layers), ", ".join(list(spectra.order)[:8])
        figure = layers.draw_spectra_by_matrix(spectra)
        note = left_out(layers.MOST_PANELS, len(spectra.order), "the first in the order of the layers")
        alt = f"Log-log spectra of {count} layers, a panel each for {names}."
        album.add(section, "spectra_by_matrix", figure, alt, note=note)
        fullest = max(len(spectra.of_layer(layer)) for layer in spectra.layers)
        note = left_out(layers.MOST_LINES, fullest, "those of the largest first singular value in each layer")
        alt = f"{count} panels with the 20 largest singular values of {names}."
        album.add(section, "sheet_top20", layers.draw_sheet(spectra, "top"), alt, note=note)
        alt = f"{count} panels with the whole spectra of {names}."
        album.add(section, "sheet_spectra", layers.draw_sheet(spectra, "spectrum"), alt, note=note)
    outside = layers.draw_outside(run)
    if outside is not None:
        alone = run.singular_values[run.singular_values["layer"].isna()]["name"].nunique()
        note = left_out(layers.MOST_LINES, alone, "those of the largest first singular value")
        alt = "Log-log spectra of the matrices that lie in no layer."
        album.add(section, "outside_layers", outside, alt, note=note)
    return section


def _values(run: Tables, matrices: pd.DataFrame, album: Album, progress: Progress) -> Section:
    section = Section("values", "Values of the weights")
    progress("distributions of values")
    alt = "Ridges of weight histograms, a panel for each matrix type, a ridge for each layer."
    panels = len(series_order(run.histograms)) if len(run.histograms) else 0
    note = left_out(values.MOST_PANELS, panels, "the first in the order of the layers")
    album.add(section, "histograms", values.draw_value_ridges(run), alt, note=note)
    figure, note = depth.draw_by_depth(matrices, depth.SPREAD), _depth_note(matrices)
    album.add(section, "spread", figure, _depth_alt(matrices, "std"), note=note)
    figure = depth.draw_by_depth(matrices, depth.OUTLIERS)
    album.add(section, "outliers", figure, _depth_alt(matrices, "excess_kurtosis"), note=note)
    return section


def _heatmaps(matrices: pd.DataFrame, album: Album, columns: Sequence[str], progress: Progress) -> Section:
    section = Section("heatmaps", "Heat maps, layer by matrix")
    progress("heat maps")
    rows = in_layers(matrices)
    drawable = heatmaps.numeric_columns(rows)
    for name in columns:
        if name not in drawable:
            raise RequestError(
                f"the column {name!r} has no numbers to draw in this run: choose from {', '.join(drawable)}."
            )
    for name in dict.fromkeys([*heatmaps.DEFAULT_COLUMNS, *columns]):
        if has(rows, name):
            described = column(name)
            title = described.label[0][:1].upper() + described.label[0][1:]
            ends = extremes(matrices, name)
            alt = f"Heat map of {described.label[0]}: {ends}."
            reading = f"{described.meaning[0]} {ends[:1].upper()}{ends[1:]}."
            album.add(section, f"heat_{name}", heatmaps.draw_heatmap(matrices, name), alt, title, reading)
    for name in ("stable_rank", "effective_rank", "spectral_norm"):
        figure = heatmaps.draw_heads(matrices, name)
        if figure is not None:
            label = column(name).label[0]
            reading = f"{column(name).meaning[0]} {PARAGRAPHS['heads']}"
            alt = f"Heat maps of the {label} of each attention head, heads across and layers down."
            album.add(section, f"heads_{name}", figure, alt, f"Attention heads: {label}", reading)
    if section.drawings:
        section.paragraphs.append(PARAGRAPHS["heatmaps"])
    else:
        section.notes.append("Heat maps: not drawn, no matrix of this run lies in a layer.")
    return section


def _layers(spectra: layers.Spectra, album: Album, progress: Progress) -> Section:
    section = Section("layers", "Layer by layer", [PARAGRAPHS["layers"]], jump=True)
    for layer in spectra.layers:
        progress(f"layer {layer}")
        series = spectra.of_layer(layer)
        largest = max(series, key=lambda name: series[name][0])
        reading = f"The largest singular value is {cell_text(float(series[largest][0]))}, of {largest}."
        spikes = []
        for name in series:
            row = spectra.rows.get((layer, name))
            if row is not None and pd.notna(row.get("mp_spikes")):
                spikes.append(f"{name} {int(row['mp_spikes'])}")
        if spikes:
            reading += f" Directions beyond the bulk edge: {', '.join(spikes)}."
        firsts = "; ".join(f"{name} {cell_text(float(sigma[0]))}" for name, sigma in list(series.items())[:8])
        alt = f"Spectra of layer {layer}. First singular values: {firsts}."
        note = left_out(layers.MOST_LINES, len(series), "those of the largest first singular value")
        densities = len({name.split(" ")[0] for name in layers.drawable(series)})
        if densities > MOST_DENSITIES:
            note += f" Densities are drawn of the first {MOST_DENSITIES} of {densities} matrices."
        figure = draw_layer(spectra, layer)
        album.add(section, f"layer_{layer:02d}", figure, alt, f"Layer {layer}", reading, str(layer), note)
    return section


def training_sections(runs: Sequence[training.TrainingRun], album: Album, progress: Progress = silent) -> list[Section]:
    """Curves of training runs, all runs on the same axes, and the ranks of AdaLoRA runs over time."""
    section = Section("training", "Training")
    progress("training curves")
    for curve in training.CURVES:
        title, reading, _ = READINGS[curve.name]
        figure = training.draw_curve(runs, curve)
        if figure is None:
            section.notes.append(f"{title}: not drawn, no run logged it.")
            continue
        if curve.smoothed:
            reading += f" Smoothed over {training.smoothing_span(runs)} steps."
        wrong = [run.name for run in runs if run.perplexity_disagrees]
        if curve.name == "eval_perplexity" and wrong:
            reading += f" The log of {', '.join(wrong)} holds another eval_perplexity, which is not exp of its loss: "
            reading += "it is not drawn."
        album.add(section, f"curve_{curve.name}", figure, _curve_alt(runs, curve), title, reading)
    adaptive = [run for run in runs if len(run.ranks)]
    if not adaptive:
        return [section]
    ranks = Section("rank-history", "Ranks over time")
    for run in adaptive:
        title, reading, _ = READINGS["rank_history"]
        total = run.ranks.groupby("step")["rank"].sum()
        alt = f"Heat maps of AdaLoRA ranks; their sum goes from {int(total.iloc[0])} to {int(total.iloc[-1])}."
        name = "rank_history" if len(adaptive) == 1 else f"rank_history_{layers.slug(run.name)}"
        album.add(ranks, name, training.draw_rank_history(run), alt, f"{title}: {run.name}", reading, run.name)
    return [section, ranks]


def _curve_alt(runs: Sequence[training.TrainingRun], curve: training.Curve) -> str:
    parts = []
    for run in runs:
        rows = run.history.dropna(subset=[curve.column])
        if len(rows):
            (first, before), (last, after) = rows[["step", curve.column]].iloc[[0, -1]].to_numpy()
            parts.append(
                f"{run.name} from {cell_text(before)} at step {first:.0f} to {cell_text(after)} at step {last:.0f}"
            )
    return f"{curve.title} against the step: {'; '.join(parts)}."
