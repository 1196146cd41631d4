"""Rules on what training changed."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from glmspectra.figures.findings.evidence import Evidence, by_type, link_to, numbers_of, spread_of
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.figures.findings.weights import outlying_cells
from glmspectra.figures.tables import has, whole_matrices
from glmspectra.figures.words import percent


def _worst(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows.loc[rows[name].astype(float).idxmax()]


def larger_than_weight(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Changes larger than the weights that they change."""
    rows = evidence.rows("delta")
    if not has(rows, "relative_frobenius"):
        return
    large = rows[rows["relative_frobenius"] >= rule.threshold]
    if len(large):
        worst = _worst(large, "relative_frobenius")
        most = float(worst["relative_frobenius"])
        values: dict[str, Any] = {"count": len(large), "all": str(len(rows)), "most": percent(most)}
        values |= {"layer": str(worst["layer"]), "matrix": worst["series"]}
        size = max(most / rule.threshold, 1.0) * (1 + len(large) / len(rows))
        yield rule.says(f"{len(large)} / {len(rows)}", size, link_to(worst, "relative_frobenius"), **values)


def outlying_changes(evidence: Evidence, rule: Rule) -> list[Finding]:
    """Changes that stand out from the same matrix in other layers."""
    tables = evidence.sets.get("delta")
    return outlying_cells(tables.matrices, rule) if tables is not None else []


def unchanged(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices that training left as they were although it could have changed them."""
    rows = evidence.rows("delta")
    if not has(rows, "spectral_norm"):
        return
    still = rows[rows["spectral_norm"].eq(0).fillna(False).astype(bool)]
    if len(still) >= rule.threshold:
        first = still.iloc[0]
        values: dict[str, Any] = {
            "count": len(still),
            "all": str(len(rows)),
            "layer": str(first["layer"]),
            "matrix": first["series"],
        }
        yield rule.says(
            f"{len(still)} / {len(rows)}", 1 + 4 * len(still) / len(rows), link_to(first, "spectral_norm"), **values
        )


def _adapted(evidence: Evidence) -> pd.DataFrame:
    """Rows whose adapter has more than one direction; of one direction the use is 100 % by definition."""
    rows = evidence.rows("delta")
    if not has(rows, "share_of_rank_in_use") or not has(rows, "allotted_rank"):
        return pd.DataFrame({"share_of_rank_in_use": []})
    return rows[(rows["allotted_rank"] > 1) & rows["share_of_rank_in_use"].notna()]


def _in_use(rows: pd.DataFrame) -> tuple[int, int]:
    """Directions in use of all adapters together, and directions allotted."""
    used = (rows["share_of_rank_in_use"] * rows["allotted_rank"]).astype(float).round().sum()
    return int(used), int(rows["allotted_rank"].sum())


def short_of_rank(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Adapters that use every direction they were given."""
    rows = _adapted(evidence)
    full = rows[rows["share_of_rank_in_use"] >= 0.999]
    if len(full) and len(full) / len(rows) >= rule.threshold:
        share = len(full) / len(rows)
        yield rule.says(
            percent(share, 2),
            share / rule.threshold,
            "#map?map=share_of_rank_in_use",
            count=len(full),
            all=str(len(rows)),
        )


def idle_rank(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Adapters that leave much of their rank unused."""
    rows = _adapted(evidence)
    if not len(rows):
        return
    used, allotted = _in_use(rows)
    idle = 1 - used / allotted
    if idle >= rule.threshold:
        yield rule.says(
            percent(idle, 2), idle / rule.threshold, "#map?map=share_of_rank_in_use", share=percent(idle, 2)
        )


def intruders(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices with leading directions that the base did not have."""
    rows = evidence.rows("delta")
    if not has(rows, "intruders"):
        return
    measured = rows[rows["intruders"].notna()]
    with_some = measured[measured["intruders"] > 0]
    share = len(with_some) / len(measured)
    if share >= rule.threshold:
        worst = _worst(with_some, "intruders")
        values: dict[str, Any] = {
            "count": len(with_some),
            "all": str(len(measured)),
            "most": str(int(worst["intruders"])),
        }
        values |= {"layer": str(worst["layer"]), "matrix": worst["series"]}
        value = f"{len(with_some)} / {len(measured)}"
        yield rule.says(value, share / rule.threshold, link_to(worst, "intruders"), **values)


def still_growing(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """A change that was still growing at the last checkpoint."""
    rows = whole_matrices(evidence.steps)
    if not len(rows) or "step" not in rows or not has(rows, "frobenius_norm"):
        return
    sizes = rows[rows["step"].notna()].assign(square=lambda table: table["frobenius_norm"].astype(float) ** 2)
    by_step = np.sqrt(sizes.groupby("step")["square"].sum().astype(float)).sort_index()
    if len(by_step) < 2 or by_step.iloc[-2] <= 0:
        return
    growth = float(by_step.iloc[-1] / by_step.iloc[-2]) - 1
    if growth >= rule.threshold:
        values: dict[str, Any] = {
            "from": str(by_step.index[-2]),
            "to": str(by_step.index[-1]),
            "growth": percent(growth, 2),
        }
        yield rule.says(f"+{percent(growth, 2)}", growth / rule.threshold, "#growth", **values)


def change_size(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How large changes are beside the weights; where the base was not there, how large they are."""
    _, rows = evidence.usual_rows("delta")
    for name, variant in (("relative_frobenius", ""), ("frobenius_norm", "-alone")):
        spread = spread_of(rows, name)
        if spread is not None:
            yield rule.says(str(spread["median"]), f"#map?set=delta&map={name}", variant=variant, **spread)
            return


def changed_most(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The matrix types that changed most and least beside their weights."""
    _, rows = evidence.usual_rows("delta")
    sizes = numbers_of(rows, "relative_frobenius")
    types = by_type(rows, sizes) if len(sizes) else sizes
    if len(types):
        high, low = percent(float(types.iloc[0])), percent(float(types.iloc[-1]))
        values = {"most": str(types.index[0]), "least": str(types.index[-1]), "high": high, "low": low}
        yield rule.says(str(types.index[0]), "#map?set=delta&map=relative_frobenius", **values)


def rank_in_use(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How many of the directions allotted are in use."""
    rows = _adapted(evidence)
    if len(rows):
        used, allotted = _in_use(rows)
        values = {"used": f"{used:,}", "allotted": f"{allotted:,}"}
        yield rule.says(f"{used:,} / {allotted:,}", "#map?set=delta&map=share_of_rank_in_use", **values)


def change_rank(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How many directions the changes spread over."""
    _, rows = evidence.usual_rows("delta")
    spread = spread_of(rows, "stable_rank")
    if spread is not None:
        yield rule.says(str(spread["median"]), "#map?set=delta&map=stable_rank", **spread)
