"""The sections of a report on suggested ranks and on what training changed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from glmspectra.figures import delta as changes
from glmspectra.figures import depth, heatmaps, ranks, training
from glmspectra.figures.layers import Spectra
from glmspectra.figures.page import Album, Grid, Section, cell_text
from glmspectra.figures.readings import READINGS
from glmspectra.figures.sections import Progress, extremes, silent
from glmspectra.figures.tables import RunTables, has, pick, whole_matrices, with_series

RANK_MEASURES = (
    depth.Measure("stable_rank", "Stable rank of ΔW"),
    depth.Measure("effective_rank", "Effective rank of ΔW"),
)

CONTROLS = ("uniform", "random")  # stand beside the criteria and say nothing of the weights


def rank_sections(
    table: pd.DataFrame,
    album: Album,
    curve: pd.DataFrame | None = None,
    chosen: float | None = None,
    criterion: str | None = None,
    progress: Progress = silent,
    words: Sequence[str] = (),
) -> list[Section]:
    """Figures of suggested ranks, and a table of them.

    table: a row for each criterion and base weight (`figures.ranks` names the columns). curve: what each budget buys.
    chosen: the budget in trainable parameters. criterion: the one that is suggested. words: the summary of the
    suggestion, a paragraph each. Raises StoreError when a column is missing.
    """
    ranks.check_columns(table, ranks.RANK_TABLE, "ranks")
    section = Section("suggested-ranks", "Suggested ranks")
    progress("suggested ranks")
    criteria = ranks.criteria_of(table)
    if criterion:
        section.paragraphs.append(
            f"The suggestion is by {criterion}; the other criteria stand beside it at the same budget, and uniform "
            "ranks are the control."
        )
    section.paragraphs += words
    note = "" if words else _disagreement(table, criteria)
    if note:
        section.paragraphs.append(note)
    listed = ", ".join(criteria)
    album.add(section, "ranks_by_matrix", ranks.draw_rank_bars(table), f"Bars and lines of mean ranks for {listed}.")
    alt = f"Heat maps of ranks, layer by matrix, a panel each for {listed}."
    album.add(section, "ranks_heat", ranks.draw_rank_heatmaps(table), alt)
    if curve is not None and len(curve):
        figure = ranks.draw_budget_curve(curve, chosen)
        album.add(section, "budget_curve", figure, f"Budget curves for {', '.join(ranks.criteria_of(curve))}.")
    section.grid = _rank_grid(table, criteria)
    return [section]


def _rank_grid(table: pd.DataFrame, criteria: Sequence[str]) -> Grid:
    """A row for each weight, a column for each criterion."""
    wide = table.pivot_table(index="name", columns="criterion", values="rank", aggfunc="first", sort=False)
    places = table.drop_duplicates("name").set_index("name")
    heads = [("layer", ""), ("matrix", "")]
    heads += [(name, "Rank by this criterion.") for name in criteria]
    heads += [("weight", "Name in the checkpoint.")]
    rows = []
    for weight, values in wide.iterrows():
        layer, matrix = places.loc[weight, "layer"], places.loc[weight, "matrix"]
        given = [None if pd.isna(values.get(name)) else int(values[name]) for name in criteria]
        rows.append([None if pd.isna(layer) else int(layer), matrix, *given, weight])
    return Grid(f"{len(rows)} matrices, the rank that each criterion gives.", heads, rows, [0, 1], row_head=1)


def _disagreement(table: pd.DataFrame, criteria: Sequence[str]) -> str:
    """Where the criteria differ most: one sentence; empty when there is one criterion only."""
    others = [name for name in criteria if name not in CONTROLS and not name.startswith("type:")]
    if len(others) < 2:
        return ""
    chosen = table[table["criterion"].isin(others)]
    wide = chosen.pivot_table(index="name", columns="criterion", values="rank", aggfunc="first")
    spread = (wide.max(axis=1) - wide.min(axis=1)).astype(float)
    if not spread.max() > 0:
        return "All criteria give the same ranks."
    name = str(spread.idxmax())
    row = wide.loc[name].astype(float)
    return (
        f"The criteria differ most on {name}: {row.idxmax()} gives it rank {int(row.max())}, {row.idxmin()} gives it "
        f"{int(row.min())}; over all matrices the median difference is {cell_text(float(np.median(spread)))}."
    )


def delta_sections(
    run: RunTables,
    album: Album,
    delta: pd.DataFrame | None = None,
    similarity: pd.DataFrame | None = None,
    base: RunTables | None = None,
    progress: Progress = silent,
) -> list[Section]:
    """Figures of what training changed.

    run: tables with rows of quantity 'delta' (and 'merged'), of one or of several steps. delta, similarity: the further
    tables that `figures.delta` describes. base: tables of W itself, when they are in another run. Raises StoreError
    when a column is missing.
    """
    section = Section("delta", "What training changed")
    progress("spectra of delta-W")
    last = pick(run, "delta")
    matrices = last.matrices
    stepped = len(matrices) and "step" in matrices and matrices["step"].notna().any()
    step = int(matrices["step"].iloc[0]) if stepped else None
    delta = _own_columns(run) if delta is None else changes.with_places(delta)
    now = _of_step(delta, step)
    spectra = Spectra.of(last)
    if spectra.sigma:
        title = READINGS["delta_spectra"].title + (f", step {step}" if step is not None else "")
        alt = f"Spectra of the change of {len(spectra.layers)} layers; largest {extremes(matrices, 'spectral_norm')}."
        low = changes.low_floors(spectra, now)
        note = f"Rounding made at most {cell_text(low)} here, far below the frame." if low else ""
        album.add(section, "delta_spectra", changes.draw_delta_spectra(spectra, now), alt, title, note=note)
    if len(matrices):
        alt = f"Lines by layer; effective rank {extremes(matrices, 'effective_rank')}."
        album.add(section, "delta_ranks", depth.draw_by_depth(matrices, RANK_MEASURES), alt)
    if now is not None and len(now):
        _further(section, album, now)
    every = with_series(_rows_of(run, "delta"))
    grown = changes.draw_growth(every, delta) if len(every) and "step" in every else None
    if grown is not None:
        album.add(section, "delta_growth", grown, "Lines of the size and rank of the change against the step.")
    if similarity is not None and len(similarity):
        figure = changes.draw_similarity(changes.with_places(similarity))
        alt = "Heat maps of subspace similarity, a panel for each matrix type and side."
        album.add(section, "delta_similarity", figure, alt)
    _merged(section, album, run, base, step)
    return [section] if section.drawings or section.notes else []


def _rows_of(run: RunTables, quantity: str) -> pd.DataFrame:
    return run.matrices[run.matrices["quantity"] == quantity] if len(run.matrices) else run.matrices


def _own_columns(run: RunTables) -> pd.DataFrame | None:
    """The further table where the run's own table of matrices has its columns; None where it has none of them."""
    rows = _rows_of(run, "delta")
    if not any(has(rows, name) for name in changes.OPTIONAL_COLUMNS):
        return None
    return whole_matrices(rows)


def _of_step(delta: pd.DataFrame | None, step: int | None) -> pd.DataFrame | None:
    """The rows of the further table that belong to a step; all of them when it has no steps."""
    if delta is None or "step" not in delta or step is None or not delta["step"].notna().any():
        return delta
    return delta[delta["step"].eq(step).fillna(False).astype(bool)]


def _further(section: Section, album: Album, delta: pd.DataFrame) -> None:
    use = changes.draw_rank_use(delta)
    if use is not None:
        alt = "Bars by layer, a panel for each matrix type: the rank allotted, the directions for 99 % of the energy."
        album.add(section, "delta_rank_use", use, alt)
    described = with_series(delta.assign(part="whole"))
    for name in ("relative_frobenius", "intruders", "amplification", "overlap_left", "overlap_right"):
        if has(described, name):
            figure = heatmaps.draw_heatmap(described, name)
            title = READINGS[f"delta_{name}"].title
            album.add(section, f"delta_{name}", figure, f"Heat map of {title}: {extremes(described, name)}.")


def _merged(section: Section, album: Album, run: RunTables, base: RunTables | None, step: int | None) -> None:
    if not len(_rows_of(run, "merged")):
        return
    at_step = pick(run, "merged", step)
    merged = Spectra.of(at_step if len(at_step.matrices) else pick(run, "merged"))
    weight = Spectra.of(pick(base if base is not None else run, "weight"))
    if merged.sigma and weight.sigma:
        alt = "Lines of the relative change of the largest singular values, a panel for each matrix type."
        album.add(section, "delta_merged", changes.draw_merged(weight, merged), alt)


def comparison_section(runs: Sequence[training.TrainingRun]) -> Section:
    """Last and lowest losses of training runs as a table."""
    heads = [
        ("run", ""),
        ("last step", "Optimizer updates."),
        ("last training loss", "Mean of the last 5 logged values, nats per token."),
        ("lowest evaluation loss", "Nats per token."),
        ("at step", "Where the evaluation loss was lowest."),
        ("perplexity there", "exp of the loss."),
    ]
    rows: list[list[object]] = []
    for run in runs:
        losses = run.history["loss"].dropna()
        evaluated = run.history.dropna(subset=["eval_loss"])
        row: list[object] = [run.name, int(run.history["step"].max()) if len(run.history) else None]
        row.append(float(losses.tail(5).mean()) if len(losses) else None)
        if len(evaluated):
            best = evaluated.loc[evaluated["eval_loss"].idxmin()]
            row += [float(best["eval_loss"]), int(best["step"]), float(best["eval_perplexity"])]
        else:
            row += [None, None, None]
        rows.append(row)
    caption = f"{len(rows)} training run{'s' if len(rows) != 1 else ''}."
    return Section("runs", "Training runs", grid=Grid(caption, heads, rows))
