"""What rules look at: tables, ranks, training runs, scores; and which cells of a measure stand out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from glmspectra.figures.tables import Tables, floats, in_layers, matrices_alone
from glmspectra.figures.training_log import TrainingRun
from glmspectra.figures.words import measured
from glmspectra.language import Words, both
from glmspectra.store.columns import column

LEAST_LAYERS = 6  # fewer have no spread to compare with
LEAST_RATIO = 1.5  # from its matrix type's median, however small the spread
# A ratio that is a finding at half the deviation: ordinary layers of one matrix type do not differ so much.
FAR_RATIO = 4.0


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        losses: name ('base', 'tuned', 'suggested', 'uniform') -> figures of that model: loss, perplexity, ...
        differences: pairs of names 'a-b' -> mean, low, high and rows of the loss of a row with a minus with b.
        samples: name -> answer, with 'context' and 'reference'.
        rows: How many rows the losses are of; 0: not known.
    """

    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: Sequence[dict[str, str]] = ()
    rows: int = 0


@dataclass(frozen=True)
class Evidence:
    """Everything a page is drawn from; what it does not have stays empty.

    Attributes:
        sets: quantity -> its tables at the last step, through `tables.pick`.
        steps: Rows of quantity 'delta' of all steps.
        ranks: Suggested ranks (`figures.rank_tables`), the chosen criterion first.
        training: Runs on the same axes.
        scores: Of an evaluation or a loop.
        compared: Name -> tables of the runs that a page compares.
    """

    sets: dict[str, Tables] = field(default_factory=dict)
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)
    ranks: pd.DataFrame = field(default_factory=pd.DataFrame)
    training: Sequence[TrainingRun] = ()
    scores: Scores = field(default_factory=Scores)
    compared: dict[str, Tables] = field(default_factory=dict)
    _rows: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, quantity: str) -> pd.DataFrame:
        """Matrices of one quantity that lie in a layer, of a stack of experts each; empty where there are none."""
        if quantity not in self._rows:  # most rules ask for them
            tables = self.sets.get(quantity)
            self._rows[quantity] = pd.DataFrame() if tables is None else in_layers(matrices_alone(tables.matrices))
        return self._rows[quantity]

    def usual_rows(self, *quantities: str) -> tuple[str, pd.DataFrame]:
        """The first of these quantities that was measured, and its matrices: those in a layer, or all if none is."""
        for quantity in quantities:
            tables = self.sets.get(quantity)
            if tables is not None:
                rows = self.rows(quantity)
                return quantity, rows if len(rows) else matrices_alone(tables.matrices)
        return "", pd.DataFrame()


def link_to(row: pd.Series, measure: str = "") -> str:
    """The address of a matrix's own panel."""
    part = f".{row['part']}" if row.get("part", "whole") != "whole" else ""
    return f"#L{int(row['layer'])}/{row['matrix']}{part}" + (f"?map={measure}" if measure else "")


def place_of(row: pd.Series) -> Words:
    """'layer 3 dense', or the bare name of a matrix in no layer."""
    if pd.isna(row["layer"]):
        return Words.same(str(row["series"]))
    return both("finding-place", layer=str(int(row["layer"])), matrix=str(row["series"]))


def numbers_of(rows: pd.DataFrame, name: str) -> pd.Series:
    """The finite values of a column, float64, by position in the table."""
    if name not in rows:
        return pd.Series(dtype=float)
    values = pd.to_numeric(rows[name], errors="coerce").astype(float).reset_index(drop=True)
    return values[np.isfinite(values)]


def spread_of(rows: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """Lowest, median and highest value of a measure and where they are, as words; None of fewer than two values."""
    values = numbers_of(rows, name)
    if len(values) < 2:
        return None
    low, median, high = (
        measured(float(value), column(name)) for value in (values.min(), values.median(), values.max())
    )
    least, most = (place_of(rows.iloc[int(index)]) for index in (values.idxmin(), values.idxmax()))
    return {"low": low, "median": median, "high": high, "least": least, "most": most, "all": str(len(values))}


def by_type(rows: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Median by matrix type of values by position in the table, the largest first; empty of a single type."""
    medians = values.groupby(rows["series"].reset_index(drop=True)).median().sort_values(ascending=False, kind="stable")
    return medians if len(medians) > 1 else medians.iloc[:0]


def enough(layers: int) -> float:
    """Robust standard deviations beyond which a cell stands out among so many layers.

    A median and MAD of few values are uncertain. With this threshold one row of normal noise in a thousand to ten
    thousand has a cell beyond it, for 6 to 80 layers (20,000 rows of each length were drawn).
    """
    return 5 + 90 / layers


def deviations(
    series: np.ndarray, values: np.ndarray, log: bool, least_layers: int = LEAST_LAYERS
) -> tuple[np.ndarray, np.ndarray]:
    """How far each value stands out from the others of its series.

    Args:
        series: [n] names of the series.
        values: [n] float64, NaN for what is not known.
        log: Compare ratios.
        least_layers: A series of fewer known values has no spread to compare with.

    Returns:
        size: [n] float64, the deviation over the threshold of `enough`, 0 where a value does not stand out.
        middle: [n] float64, the median of the value's series. Deviations are robust ones: from the median, over 1.4826
        times the median absolute deviation. A value that stands out is also LEAST_RATIO away from the median; one that
        is FAR_RATIO away needs half the deviation.
    """
    size, middle = np.zeros(len(values)), np.full(len(values), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = (
            np.log10(np.where(values > 0, values, np.nan)) if log else np.where(np.isfinite(values), values, np.nan)
        )
    for name in dict.fromkeys(series):
        own = np.flatnonzero((series == name) & np.isfinite(numbers))
        if len(own) < least_layers:
            continue
        center = float(np.median(numbers[own]))
        away = np.abs(numbers[own] - center)
        spread = 1.4826 * float(np.median(away))
        least = np.log10(LEAST_RATIO) if log else (LEAST_RATIO - 1) * abs(center)
        sizes = np.minimum(away / max(spread, 1e-12) / enough(len(own)), 1e3)
        if log:
            sizes = np.where(away >= np.log10(FAR_RATIO), 2 * sizes, sizes)
        sizes[(sizes < 1) | (away < max(least, 1e-9))] = 0
        middle[own] = np.median(values[own])  # as the panel has it: of an even number the mean of the middle two
        if np.count_nonzero(sizes) <= len(own) // 4:  # a quarter of the layers is a pattern, no outlier
            size[own] = sizes
    return size, middle


def outlying(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Cells of a measure that stand out from the other layers of the same matrix and part (`deviations`).

    Args:
        rows: Rows in layers, with `series`.
        name: The measure.

    Returns:
        Their layer, matrix, part, series and value, with `size` and `middle`, the largest first; the index is that of
        `rows`. A table without rows and columns where none does.
    """
    values = floats(rows[name])
    size, middle = deviations(rows["series"].to_numpy(object), values, column(name).log)
    out = np.flatnonzero(size)
    if not len(out):
        return pd.DataFrame()
    found = rows.iloc[out][list(dict.fromkeys(["layer", "matrix", "part", "series", name]))]
    found = found.assign(size=size[out], middle=middle[out])
    return found.sort_values("size", ascending=False, kind="stable")
