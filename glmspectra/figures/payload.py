"""The data of a page as compact JSON: what its script draws from.

A set is the rows of one quantity: for each row its numbers (five significant digits), its spectrum thinned to about
seventy measured values, counts of its singular values and of its weights in bins, and the cells that stand out.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from glmspectra.figures.findings.evidence import deviations
from glmspectra.figures.rank_tables import costs_of, is_control, moved_share, ranks_by_weight
from glmspectra.figures.tables import Tables, floats, has, in_layers, similarity_table, with_outlier_ratios
from glmspectra.figures.training_log import TrainingRun
from glmspectra.language import Words, both, known
from glmspectra.store.columns import COLUMNS, DERIVED, REAL, UNITS, WHOLE, Column

Json = dict[str, Any]

DIGITS = 5
LOG_POINTS, EVEN_POINTS = 48, 24
SIGMA_BINS, VALUE_BINS = 32, 60
_NAMES = ("name", "matrix", "part", "dtype", "method", "status")
_SKIPPED = {"step", "layer", "seconds", "count"}


def as_json(payload: Json) -> str:
    """One line of JSON that may stand inside a <script> element."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def rounded(value: Any) -> float | int | None:
    """A number with DIGITS significant digits; None for what JSON or the table does not have."""
    if value is None or value is pd.NA:
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    short = float(f"{number:.{DIGITS}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def numbers(values: Iterable[Any]) -> list[float | int | None]:
    """A list of `rounded` numbers."""
    return [rounded(value) for value in values]


def describe(column: Column) -> Json:
    """What the page has to know of a column, in both languages."""
    described: Json = {"label": column.label, "head": (column.head("en"), column.head("zh")), "meaning": column.meaning}
    described["unit"] = UNITS["%" if column.share else column.unit]
    return described | {flag: 1 for flag in ("share", "signed", "log") if getattr(column, flag)}


def set_of(name: str, label: Words, tables: Tables) -> Json:
    """The set of one quantity, from tables that went through `tables.pick`."""
    matrices = with_outlier_ratios(tables.matrices).reset_index(drop=True)
    measures = [
        column.name
        for column in (*COLUMNS.values(), *DERIVED)
        if column.type in (REAL, WHOLE) and column.name not in _SKIPPED and has(matrices, column.name)
    ]
    measures = list(dict.fromkeys(measures))
    rows: Json = {column: [str(value) for value in matrices[column]] for column in _NAMES if column in matrices}
    rows["layer"] = [None if pd.isna(layer) else int(layer) for layer in matrices["layer"]]
    values = {measure: numbers(matrices[measure]) for measure in measures}
    return {
        "id": name,
        "label": (label.en, label.zh),
        "rows": rows,
        "values": values,
        "columns": {measure: describe(COLUMNS[measure]) for measure in measures},
        "out": _standing_out(matrices, measures),
        **_spectra(matrices, tables.singular_values),
        "histograms": _histograms(matrices, tables.histograms),
    }


def _standing_out(matrices: pd.DataFrame, measures: Sequence[str]) -> dict[str, list[int]]:
    found = {}
    rows = in_layers(matrices)
    series = rows["series"].to_numpy(object)
    for measure in measures:
        out = rows.index[np.flatnonzero(deviations(series, floats(rows[measure]), COLUMNS[measure].log)[0])]
        if len(out):
            found[measure] = [int(index) for index in out]
    return found


def sampled(count: int) -> np.ndarray:
    """Positions to draw of `count` descending values: ascending int64, first and last included.

    LOG_POINTS evenly in the logarithm of the position, for logarithmic axes, and EVEN_POINTS evenly in it; every drawn
    point is a measured one.
    """
    if count <= LOG_POINTS + EVEN_POINTS:
        return np.arange(count)
    log = np.round(np.geomspace(1, count, LOG_POINTS)).astype(int) - 1
    return np.unique(np.concatenate([log, np.round(np.linspace(0, count - 1, EVEN_POINTS)).astype(int)]))


def _by_row(table: pd.DataFrame, matrices: pd.DataFrame, order: str) -> dict[int, pd.DataFrame]:
    """Row number in `matrices` -> its rows in another table, sorted by `order`."""
    if not len(table) or not len(matrices):
        return {}
    indices = {key: i for i, key in enumerate(zip(matrices["name"], matrices["part"], strict=True))}
    found = {}
    for key, group in table.sort_values(order, kind="stable").groupby(["name", "part"], sort=False, observed=True):
        if key in indices:
            found[indices[key]] = group
    return found


def _spectra(matrices: pd.DataFrame, values: pd.DataFrame) -> Json:
    """Thinned spectra, the bins of all values, and error bounds, a list entry for each row (None where unknown)."""
    grids: dict[int, list[int]] = {}
    count = len(matrices)
    sigma: list[Any] = [None] * count
    bins: list[Any] = [None] * count
    bounds: list[Any] = [None] * count
    noise = floats(matrices["mp_edge"]) if "mp_edge" in matrices else np.full(count, np.nan)
    for i, group in _by_row(values, matrices, "index").items():
        all_values = group["sigma"].to_numpy(float)
        all_values = all_values[np.isfinite(all_values)]
        if not len(all_values):
            continue
        at = sampled(len(all_values))
        grids[len(all_values)] = [int(index) + 1 for index in at]
        sigma[i] = numbers(all_values[at])
        sigma[i].append(len(all_values))  # the last entry names the grid
        errors = group["error_bound"].to_numpy(float)
        bounds[i] = numbers((errors[0], np.nanmax(errors)))
        if len(all_values) >= SIGMA_BINS:
            top = _bulk_end(noise[i], all_values)
            edges = np.linspace(0.0, top, SIGMA_BINS + 1)
            bins[i] = [rounded(top), *(int(n) for n in np.histogram(all_values, edges)[0])]
    return {"grids": {str(n): grid for n, grid in grids.items()}, "sigma": sigma, "bins": bins, "bounds": bounds}


def _bulk_end(edge: float, values: np.ndarray) -> float:
    """Where the density of singular values is cut: a little beyond the bulk's edge, so that spikes do not squash it."""
    return min(1.3 * edge, float(values[0])) if edge > values[-1] else float(values[0])


def _histograms(matrices: pd.DataFrame, table: pd.DataFrame) -> list[Any]:
    """[edges, counts] of the weights of each row; None where unknown.

    Bins are whole stored ones, as many together as a VALUE_BINS-th of the range holds: in a bin far narrower than the
    others a few equal weights would look like a peak.
    """
    found: list[Any] = [None] * len(matrices)
    for i, group in _by_row(table, matrices, "bin_left").items():
        left, right, counts = (group[name].to_numpy() for name in ("bin_left", "bin_right", "count"))
        finite = np.isfinite(left) & np.isfinite(right)
        left, right, counts = left[finite], right[finite], counts[finite]
        held = np.flatnonzero(counts)
        if not len(held):
            continue
        left, right, counts = (values[held[0] : held[-1] + 1] for values in (left, right, counts))
        place = (left - left[0]) * (VALUE_BINS / (right[-1] - left[0]))
        starts = np.unique(np.floor(place + 1e-9), return_index=True)[1]
        found[i] = [numbers([*left[starts], right[-1]]), [int(n) for n in np.add.reduceat(counts, starts)]]
    return found


def growth_of(rows: pd.DataFrame) -> Json | None:
    """Measures of the change of each matrix at every step; None where there is only one."""
    rows = rows[rows["step"].notna() & rows["part"].eq("whole")] if "step" in rows else rows.iloc[:0]
    steps = sorted({int(step) for step in rows["step"]}) if len(rows) else []
    if len(steps) < 2:
        return None
    measures = [m for m in ("frobenius_norm", "spectral_norm", "relative_frobenius", "effective_rank") if has(rows, m)]
    weights = rows.drop_duplicates("name")
    series = {}
    for measure in measures:
        wide = rows.pivot_table(index="name", columns="step", values=measure, aggfunc="first", sort=False)
        wide = wide.reindex(index=weights["name"], columns=steps)
        series[measure] = [numbers(line) for line in wide.to_numpy(float, na_value=np.nan)]
    return {
        "steps": steps,
        "layer": [None if pd.isna(layer) else int(layer) for layer in weights["layer"]],
        "matrix": [str(matrix) for matrix in weights["matrix"]],
        "values": series,
        "columns": {measure: describe(COLUMNS[measure]) for measure in measures},
    }


def similarity_of(matrices: pd.DataFrame) -> Json | None:
    """phi(i, j) between a change and its weight, the median over the layers of each matrix and side; None without."""
    table = similarity_table(matrices)
    if not len(table):
        return None
    panels = []
    for (matrix, side), group in table.groupby(["matrix", "side"], sort=False):
        grid = group.pivot_table(index="i", columns="j", values="similarity", aggfunc="median")
        panels.append({"matrix": str(matrix), "side": str(side), "phi": [numbers(row) for row in grid.to_numpy(float)]})
    return {"panels": panels}


def ranks_set(ranks: pd.DataFrame, used: pd.DataFrame | None = None) -> Json:
    """Suggested ranks as a set: the chosen ones, their difference from uniform, every criterion, and ranks in use.

    Args:
        ranks: As `figures.rank_tables` describes, the chosen criterion first.
        used: Rows of quantity 'delta' with share_of_rank_in_use and allotted_rank, where a training was measured.
    """
    wide, chosen = ranks_by_weight(ranks), str(ranks["criterion"].iloc[0])
    criteria = [name for name in wide.columns if name not in ("layer", "matrix")]
    columns: dict[str, Column] = {}
    values: Json = {}

    def add(name: str, words: Words, meaning: Words, numbers_: Iterable[Any], signed: bool = False) -> None:
        columns[name] = Column(name, WHOLE, "directions", (words.en, words.zh), (meaning.en, meaning.zh), signed=signed)
        values[name] = numbers(numbers_)

    if "uniform" in criteria and chosen != "uniform":
        add(
            "difference",
            both("page-rank-difference", criterion=chosen),
            both("page-rank-difference-meaning"),
            wide[chosen] - wide["uniform"],
            signed=True,
        )
    add("chosen", both("page-rank-chosen", criterion=chosen), both("page-rank-meaning"), wide[chosen])
    if used is not None and has(used, "share_of_rank_in_use") and has(used, "allotted_rank"):
        rows = used.drop_duplicates("name").set_index("name").reindex(wide.index)
        allotted = rows["allotted_rank"].astype(float)
        add("allotted", both("page-rank-allotted"), both("page-rank-allotted-meaning"), allotted)
        add(
            "used",
            both("page-rank-used"),
            both("page-rank-used-meaning"),
            (rows["share_of_rank_in_use"].astype(float) * allotted).round(),
        )
    for name in criteria:
        if name == chosen:
            continue  # it stands as `chosen`
        meaning = both(f"criterion-{name}") if known(f"criterion-{name}") else both("page-rank-meaning")
        add(f"by {name}", both("page-rank-by", criterion=name), meaning, wide[name])
    label = both("page-set-ranks")
    rows_: Json = {"name": [str(name) for name in wide.index], "matrix": [str(m) for m in wide["matrix"]]}
    rows_["part"] = ["whole"] * len(wide)
    rows_["layer"] = [None if pd.isna(layer) else int(layer) for layer in wide["layer"]]
    described = {name: describe(column) for name, column in columns.items()}
    return {
        "id": "ranks",
        "criterion": chosen,
        "label": (label.en, label.zh),
        "rows": rows_,
        "values": values,
        "columns": described,
        "out": {},
    }


def curve_of(curve: pd.DataFrame, chosen: float | None) -> Json:
    """What each budget buys: a line for each criterion; controls are marked."""
    lines = []
    for criterion, group in curve.groupby("criterion", sort=False):
        ordered = group.sort_values("parameters")
        line = {"name": str(criterion), "x": numbers(ordered["parameters"]), "y": numbers(ordered["value"])}
        lines.append(line | ({"control": 1} if is_control(str(criterion)) else {}))
    quantity = str(curve["quantity"].iloc[0]) if "quantity" in curve else ""
    return {"metric": str(curve["metric"].iloc[0]), "of": quantity, "chosen": rounded(chosen), "lines": lines}


def criteria_of(ranks: pd.DataFrame, costs: Mapping[str, float] | None) -> Json:
    """Share of the parameters in which each two criteria differ."""
    wide = ranks_by_weight(ranks)
    names = [name for name in wide.columns if name not in ("layer", "matrix")]
    cost = costs_of(wide.index, pd.Series(costs, dtype=float) if costs is not None else None)
    by_criterion = wide[names].to_numpy(float).T
    table = [[None if cost is None else rounded(moved_share(a, b, cost)) for b in by_criterion] for a in by_criterion]
    return {
        "names": names,
        "chosen": names[0],
        "controls": [name for name in names if is_control(name)],
        "moved": table,
    }


def training_of(run: TrainingRun) -> Json:
    """The log of one run: for each curve its steps and values; and AdaLoRA's ranks over time."""
    curves = {}
    for name in ("loss", "eval_loss", "eval_perplexity", "learning_rate", "grad_norm", "tokens_per_second"):
        rows = run.history.dropna(subset=[name])
        if len(rows):
            keep = np.unique(np.round(np.linspace(0, len(rows) - 1, min(len(rows), 600))).astype(int))
            curves[name] = {"x": numbers(rows["step"].iloc[keep]), "y": numbers(rows[name].iloc[keep])}
    training: Json = {"name": run.name, "label": (run.title.en, run.title.zh), "curves": curves}
    if len(run.ranks):
        steps = np.array(sorted(set(run.ranks["step"])))
        keep = steps[np.unique(np.linspace(0, len(steps) - 1, min(40, len(steps))).round().astype(int))]
        wide = run.ranks.pivot_table(index="module", columns="step", values="rank", aggfunc="first", sort=False)
        modules = run.ranks.drop_duplicates("module").set_index("module").loc[wide.index]
        training["ranks"] = {
            "steps": [int(step) for step in keep],
            "layer": [None if pd.isna(layer) else int(layer) for layer in modules["layer"]],
            "matrix": [str(matrix) for matrix in modules["matrix"]],
            "values": [numbers(line) for line in wide[keep].to_numpy(float)],
        }
    return training
