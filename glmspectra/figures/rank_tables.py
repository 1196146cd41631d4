"""Suggested ranks and what budgets buy, as `suggest-rank` leaves them beside a run's tables.

The table of ranks has one row for each criterion and base weight: criterion, name, layer, matrix, rank (0 is allowed);
further columns are ignored. The table of budget curves has one row for each criterion and budget: criterion, parameters
(trainable), value, metric ('loss' or 'energy'), where an interval is known low and high, and for an energy its quantity
('delta' or 'weight': of what).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from glmspectra.errors import StoreError

RANK_TABLE = ("criterion", "name", "layer", "matrix", "rank")
CURVE_TABLE = ("criterion", "parameters", "value", "metric")


def check_columns(table: pd.DataFrame, needed: Sequence[str], what: str) -> None:
    """Raise StoreError when a table lacks a column that is drawn, naming it."""
    missing = [name for name in needed if name not in table]
    if missing:
        raise StoreError(f"the table of {what} has no column {', '.join(missing)}: it needs {', '.join(needed)}.")


def criteria_of(ranks: pd.DataFrame) -> list[str]:
    """Criteria in the order of the table, 'uniform' first wherever it stands."""
    return sorted(dict.fromkeys(ranks["criterion"].astype(str)), key=lambda name: name != "uniform")


def budget_of(ranks: pd.DataFrame, matrices: pd.DataFrame, criterion: str) -> float | None:
    """Trainable parameters of a criterion's ranks, sum of rank x (rows + cols), with the shapes from `matrices`.

    None when a weight's shape is not there.
    """
    given = ranks[ranks["criterion"] == criterion].drop_duplicates("name").set_index("name")["rank"].astype(float)
    shapes = matrices.drop_duplicates("name").set_index("name") if len(matrices) else matrices
    if not len(given) or not set(given.index) <= set(shapes.index):
        return None
    cost = shapes["rows"].astype(float) + shapes["cols"].astype(float)
    return float((given * cost.loc[given.index]).sum())


CONTROLS = ("uniform", "random")


def is_control(criterion: str) -> bool:
    """True for criteria that say nothing of the weights and stand beside the others to compare with."""
    return criterion in CONTROLS or criterion.startswith("type:")


def ranks_by_weight(ranks: pd.DataFrame) -> pd.DataFrame:
    """One row a weight (index `name`, in the order of the table): layer, matrix, and a column for each criterion.

    Raises:
        StoreError: A column is missing.
    """
    check_columns(ranks, RANK_TABLE, "ranks")
    wide = ranks.pivot_table(index="name", columns="criterion", values="rank", aggfunc="first", sort=False)
    matrices = ranks.drop_duplicates("name").set_index("name")[["layer", "matrix"]]
    criteria = list(dict.fromkeys(ranks["criterion"].astype(str)))
    return matrices.join(wide[criteria].astype(float))


def costs_of(weights: pd.Index, costs: pd.Series | None) -> np.ndarray | None:
    """Parameters of one direction of each weight, shape (weights,): 1 without costs, None where one is not known."""
    if costs is None:
        return np.ones(len(weights))
    return costs.loc[weights].to_numpy(float) if set(weights) <= set(costs.index) else None


def moved_share(ranks: ArrayLike, others: ArrayLike, cost: np.ndarray) -> float:
    """Share of the parameters that stand elsewhere than under the other ranks, 0 to 1.

    Args:
        ranks: Of each weight, shape (weights,); NaN where there is none, which counts for nothing.
        others: The same weights under another criterion.
        cost: Parameters of one direction of each weight.

    Returns:
        Half the sum of |difference| x cost over the larger of the two totals.
    """
    ranks, others = np.asarray(ranks, float), np.asarray(others, float)
    total = max(float(np.nansum(ranks * cost)), float(np.nansum(others * cost)))
    return 0.5 * float(np.nansum(np.abs(ranks - others) * cost)) / total if total else 0.0
