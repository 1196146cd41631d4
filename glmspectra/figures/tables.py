"""From the stored tables to the tables that are drawn: a DataFrame in, a DataFrame or array out, no state."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

OUTSIDE = -1  # the layer number that stands for "in no layer" while a table is being sorted

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|blk)\.([0-9]{1,6})(?:\.|$)")
_ALONE = re.compile(r"whole|expert_[0-9]{1,6}")
_HEAD = re.compile(r"^(.*)\.head_([0-9]{1,6})$")


class RunTables(Protocol):
    """What a stored run offers: its manifest and its three tables (see `glmspectra.store.read_run`)."""

    @property
    def manifest(self) -> Any: ...
    @property
    def matrices(self) -> pd.DataFrame: ...
    @property
    def singular_values(self) -> pd.DataFrame: ...
    @property
    def histograms(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Tables:
    """The tables of a run as plain values, for who has DataFrames and no folder."""

    matrices: pd.DataFrame
    singular_values: pd.DataFrame = field(default_factory=pd.DataFrame)
    histograms: pd.DataFrame = field(default_factory=pd.DataFrame)
    manifest: dict[str, Any] = field(default_factory=dict)


def pick(run: RunTables, quantity: str = "weight", step: int | None = None) -> Tables:
    """The rows of one quantity and step, each table with a column `series` ('query_key_value', 'query_key_value q').

    `step=None` takes the rows that have no step, else the last step there is.
    """
    matrices = _of(run.matrices, quantity)
    if "step" in matrices and len(matrices):
        steps = matrices["step"]
        if step is None and not steps.isna().any():
            step = int(steps.max())
        wanted = steps.isna() if step is None else steps.eq(step).fillna(False)
        matrices = matrices[wanted.astype(bool)]
    further: list[pd.DataFrame] = []
    for table in (run.singular_values, run.histograms):
        rows = _of(table, quantity)
        if "step" in rows and len(rows):
            rows = rows[(rows["step"].isna() if step is None else rows["step"].eq(step).fillna(False)).astype(bool)]
        further.append(with_series(rows))
    return Tables(with_series(matrices), further[0], further[1], _manifest(run))


def _manifest(run: RunTables) -> dict[str, Any]:
    manifest = run.manifest
    if hasattr(manifest, "model_dump"):
        return dict(manifest.model_dump())
    return dict(manifest or {})


def _of(table: pd.DataFrame | None, quantity: str) -> pd.DataFrame:
    if table is None or not len(table):
        return pd.DataFrame()
    return table[table["quantity"] == quantity] if "quantity" in table else table


def with_series(table: pd.DataFrame) -> pd.DataFrame:
    """Add `series`: the matrix, and after it the part where the row is of a part."""
    if not len(table):
        return table
    part = table["part"].fillna("whole") if "part" in table else pd.Series("whole", index=table.index)
    matrix = table["matrix"].astype(str)
    return table.assign(part=part, series=np.where(part == "whole", matrix, matrix + " " + part.astype(str)))


def whole_matrices(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of whole weights, without those of their parts."""
    return table[table["part"].fillna("whole") == "whole"] if "part" in table else table


def matrices_alone(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of matrices by themselves: whole weights, and of a stack of experts, which has no whole, each expert."""
    return table[table["part"].fillna("whole").astype(str).str.fullmatch(_ALONE)] if "part" in table else table


def is_head(parts: pd.Series) -> pd.Series:
    """True where a part is one attention head ('q.head_0')."""
    return parts.astype(str).str.contains(r"\.head_\d+$", regex=True)


def split_head(part: str) -> tuple[str, int]:
    """'q.head_3' -> ('q', 3). Raises ValueError for another part."""
    found = _HEAD.match(part)
    if not found:
        raise ValueError(f"{part!r} is not an attention head.")
    return found[1], int(found[2])


def in_layers(table: pd.DataFrame, heads: bool = False) -> pd.DataFrame:
    """Rows that lie in a layer, layer as int, in depth order; attention heads only when asked for."""
    if not len(table):
        return table
    rows = table[table["layer"].notna()]
    if not heads:
        rows = rows[~is_head(rows["part"])]
    return rows.assign(layer=rows["layer"].astype(int)).sort_values("layer", kind="stable")


def series_order(table: pd.DataFrame) -> list[str]:
    """The series in the order in which the table first names them, parts after their whole."""
    rows = in_layers(table)
    if not len(rows):
        return []
    matrices = list(dict.fromkeys(rows["matrix"]))
    first = {matrix: i for i, matrix in enumerate(matrices)}
    seen = rows.drop_duplicates("series")
    keyed = sorted(
        (first[matrix], part != "whole", i, series)
        for i, (matrix, part, series) in enumerate(zip(seen["matrix"], seen["part"], seen["series"], strict=True))
    )
    return [entry[-1] for entry in keyed]


def layers_of(table: pd.DataFrame) -> list[int]:
    """The layers that have rows, ascending."""
    return sorted({int(layer) for layer in table["layer"].dropna()}) if len(table) else []


def layer_and_matrix(name: str) -> tuple[int | None, str]:
    """Layer and matrix of a module or weight name: '…layers.3.self_attention.dense' -> (3, 'dense')."""
    bare = name.removesuffix(".weight")
    found = _LAYER.search(bare)
    return (int(found[1]) if found else None), bare.rsplit(".", 1)[-1]


def thin(count: int, keep: int = 160) -> np.ndarray:
    """Positions to draw of a descending spectrum on logarithmic axes: int64, at most `keep`, first and last included.

    Spaced evenly in the logarithm of the index; every drawn point is a measured one, nothing is interpolated.
    """
    if count <= keep:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, keep)).astype(int)) - 1


def spectral_density(sigma: np.ndarray, bins: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Histogram of singular values as a density: edges (bins + 1,) and density (bins,) of integral 1.

    Bins are spaced evenly in the logarithm over four decades at most; the first reaches down to the smallest value.
    Their number grows with the cube root of the number of values, 64 for 4096, unless it is given.
    """
    bins = bins or int(np.clip(round(4 * len(sigma) ** (1 / 3)), 8, 64))
    top = float(np.max(sigma)) or 1.0
    low = max(float(np.min(sigma)), 1e-4 * top)
    edges = np.geomspace(low, top * (1 + 1e-9), bins + 1) if low < top else np.linspace(0.5 * top, 1.5 * top, bins + 1)
    edges[0] = min(edges[0], float(np.min(sigma)))
    counts, _ = np.histogram(sigma, bins=edges)
    return edges, counts / (counts.sum() * np.diff(edges))


def marchenko_pastur_density(sigma: np.ndarray, rows: int, cols: int, scale: float) -> np.ndarray:
    """Density of the singular values of a rows x cols matrix of independent entries of standard deviation `scale`.

    With n = min(rows, cols), m = max and edges scale (sqrt m -+ sqrt n), on the bulk:
    sqrt((edge_+^2 - s^2) (s^2 - edge_-^2)) / (pi scale^2 n s), zero outside. From Marchenko and Pastur (1967) for the
    eigenvalues of W W^T, by s = sqrt(eigenvalue). Its integral is 1.
    """
    n, m = min(rows, cols), max(rows, cols)
    upper, lower = scale * (np.sqrt(m) + np.sqrt(n)), scale * (np.sqrt(m) - np.sqrt(n))
    inside = np.clip((upper**2 - sigma**2) * (sigma**2 - lower**2), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.sqrt(inside) / (np.pi * scale**2 * n * sigma)
    return np.where((sigma >= lower) & (sigma <= upper) & (sigma > 0), density, 0.0)


def value_density(histogram: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite bins of one value histogram: edges (n + 1,), density (n,) whose integral is 1, counts (n,).

    The outermost bins may reach to infinity; those have no width, are left out of the drawing and count as outliers.
    """
    rows = histogram.sort_values("bin_left")
    left, right = rows["bin_left"].to_numpy(float), rows["bin_right"].to_numpy(float)
    counts = rows["count"].to_numpy(float)
    finite = np.isfinite(left) & np.isfinite(right) & (right > left)
    left, right, counts = left[finite], right[finite], counts[finite]
    if not len(left) or counts.sum() == 0:
        return np.array([0.0, 1.0]), np.zeros(1), np.zeros(1)
    edges = np.append(left, right[-1])
    return edges, counts / (counts.sum() * np.diff(edges)), counts


def central_range(histograms: Iterable[tuple[np.ndarray, np.ndarray]], share: float = 0.998) -> tuple[float, float]:
    """The narrowest symmetric range that holds `share` of each of the histograms given as (edges, counts)."""
    reach = 0.0
    for edges, counts in histograms:
        if counts.sum() == 0:
            continue
        outer = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
        order = np.argsort(outer)
        held = np.cumsum(counts[order]) / counts.sum()
        reach = max(reach, float(outer[order][min(int(np.searchsorted(held, share)), len(order) - 1)]))
    return -reach, reach


def smooth(steps: Sequence[float], values: Sequence[float], span: float) -> np.ndarray:
    """Exponential moving average, without bias at the start, over points that need not be evenly spaced.

    `span` is in steps: what is `span` steps back weighs exp(-2) of what is here. Values (n,) float64.
    """
    result, total, weight, last = [], 0.0, 0.0, None
    for step, value in zip(steps, values, strict=True):
        decay = 0.0 if last is None else float(np.exp(-2.0 * (step - last) / span))
        if np.isfinite(value):
            total, weight = total * decay + value, weight * decay + 1.0
            last = step
        result.append(total / weight if weight else np.nan)
    return np.array(result)


def floats(values: pd.Series) -> np.ndarray:
    """A column as float64; NaN where it holds no number."""
    found: np.ndarray = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
    return found


def has(table: pd.DataFrame, column: str) -> bool:
    """True when the column is there and holds at least one finite number."""
    return column in table and bool(np.isfinite(pd.to_numeric(table[column], errors="coerce")).any())


def first_of_list(values: pd.Series) -> pd.Series:
    """The first entry of each list ('largest_row_norms'), NaN for an empty or missing one."""
    return values.map(
        lambda entry: float(entry[0]) if isinstance(entry, list | tuple | np.ndarray) and len(entry) else np.nan
    )


def with_outlier_ratios(matrices: pd.DataFrame) -> pd.DataFrame:
    """Add abs_max_in_std, row_peak and column_peak, each a ratio without unit, where their columns are there."""
    added = {}
    if has(matrices, "abs_max") and has(matrices, "std"):
        added["abs_max_in_std"] = matrices["abs_max"] / matrices["std"].where(matrices["std"] > 0)
    for name, norms, median in (
        ("row_peak", "largest_row_norms", "row_norm_median"),
        ("column_peak", "largest_col_norms", "col_norm_median"),
    ):
        if norms in matrices and has(matrices, median):
            added[name] = first_of_list(matrices[norms]) / matrices[median].where(matrices[median] > 0)
    return matrices.assign(**added)


def with_layer_and_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Fill in layer and matrix from the weight's name where the table does not have them."""
    if {"layer", "matrix"} <= set(table.columns):
        return table
    found = [layer_and_matrix(str(name)) for name in table["name"]]
    return table.assign(
        layer=pd.array([layer for layer, _ in found], dtype="Int64"), matrix=[matrix for _, matrix in found]
    )


def similarity_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Long table of the columns similarity_left and similarity_right, phi(i, j) of Hu et al. 2021, eq. 4.

    Columns name, layer, matrix, side ('left', 'right'), i and j (from 1), similarity. Empty where nothing was compared
    with the base.
    """
    pieces = []
    for side in ("left", "right"):
        for row in rows[rows[f"similarity_{side}"].notna()].itertuples() if f"similarity_{side}" in rows else ():
            values = np.asarray(getattr(row, f"similarity_{side}"), dtype=float)
            i, j = np.divmod(np.arange(len(values)), round(len(values) ** 0.5))
            piece = {"name": row.name, "layer": row.layer, "matrix": row.matrix, "side": side}
            pieces.append(pd.DataFrame({**piece, "i": i + 1, "j": j + 1, "similarity": values}))
    columns = ["name", "layer", "matrix", "side", "i", "j", "similarity"]
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=columns)
