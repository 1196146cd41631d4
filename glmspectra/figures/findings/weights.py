"""Rules on the weights: values and spectra."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from glmspectra.figures.findings.evidence import Evidence, link_to, outlying
from glmspectra.figures.findings.rule import Finding, Rule
from glmspectra.figures.tables import has, in_layers, with_outlier_ratios
from glmspectra.figures.words import measured, number, percent
from glmspectra.language import Words
from glmspectra.store.columns import column

# Measures among which a matrix may stand out, in the order in which they are named.
TELLING = (
    "stable_rank",
    "effective_rank",
    "spectral_norm",
    "frobenius_norm",
    "alpha",
    "std",
    "excess_kurtosis",
    "abs_max_in_std",
    "row_peak",
    "column_peak",
    "condition_number",
    "relative_frobenius",
)
MOST_CELLS = 3  # of one rule


def _label(name: str) -> Words:
    return Words(*column(name).label)


def _listed(names: Iterable[str]) -> Words:
    labels = [_label(name) for name in names]
    return Words(", ".join(label.en for label in labels), "、".join(label.zh for label in labels))


def outlying_cells(rows: pd.DataFrame, rule: Rule) -> list[Finding]:
    """The matrices that stand out from their matrix type, each once, by the measure in which it does most."""
    rows = in_layers(rows)
    if not len(rows):
        return []
    out = {name: outlying(rows, name) for name in TELLING if name in rows}
    tables = [table.assign(measure=name) for name, table in out.items() if len(table)]
    if not tables:
        return []
    cells = pd.concat(tables).sort_values("size", ascending=False, kind="stable")
    found = []
    for _, group in cells.groupby(["layer", "series"], sort=False):
        first = group.iloc[0]
        name, others = str(first["measure"]), list(group["measure"][1:3])
        own, usual = (measured(float(first[key]), column(name)) for key in (name, "middle"))
        values: dict[str, Any] = {"layer": str(first["layer"]), "matrix": first["series"], "measure": _label(name)}
        values |= {"value": own, "median": usual}
        extra: dict[str, Any] = {"variant": "-also", "others": _listed(others)} if others else {}
        found.append(rule.says(own, float(first["size"]), link_to(first, name), **values, **extra))
        if len(found) == MOST_CELLS:
            break
    return found


def outlying_matrices(evidence: Evidence, rule: Rule) -> list[Finding]:
    """Matrices of the weights that stand out from the other layers' (parts too)."""
    tables = evidence.sets.get("weight") or evidence.sets.get("merged")
    return outlying_cells(with_outlier_ratios(tables.matrices), rule) if tables is not None else []


def nonfinite(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices with NaN or infinity."""
    for tables in evidence.sets.values():
        rows = tables.matrices
        broken = (
            rows[(rows["status"] == "nonfinite") & (rows["part"] == "whole")] if "status" in rows else rows.iloc[:0]
        )
        if len(broken) >= rule.threshold:
            first = str(broken["name"].iloc[0])
            yield rule.says(str(len(broken)), np.inf, "#table?f=nonfinite", count=len(broken), first=first)


def poor_fits(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Power-law fits that are not to be read."""
    rows = evidence.rows("weight")
    if not has(rows, "alpha"):
        return
    alpha = rows["alpha"].astype(float)
    distance = rows["alpha_ks"].astype(float) if has(rows, "alpha_ks") else pd.Series(0.0, index=rows.index)
    fitted = alpha.notna()
    poor = int(((alpha > 6) | (distance > 0.1))[fitted].sum())
    share = poor / max(int(fitted.sum()), 1)
    if share >= rule.threshold:
        shown = percent(share, 2)
        yield rule.says(
            shown, share / rule.threshold, "#map?map=alpha", share=shown, count=poor, all=str(int(fitted.sum()))
        )


def far_entries(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Entries so far from zero that one int4 scale for their row leaves most others at zero."""
    rows = evidence.rows("weight")
    rows = with_outlier_ratios(rows) if len(rows) else rows
    if not has(rows, "abs_max_in_std"):
        return
    far = rows[rows["abs_max_in_std"] >= rule.threshold]
    if len(far):
        worst = far.loc[far["abs_max_in_std"].astype(float).idxmax()]
        value = number(float(worst["abs_max_in_std"]))
        values: dict[str, Any] = {
            "layer": str(worst["layer"]),
            "matrix": worst["series"],
            "value": value,
            "count": len(far),
        }
        size = float(worst["abs_max_in_std"]) / rule.threshold
        yield rule.says(value, size, link_to(worst, "abs_max_in_std"), all=str(len(rows)), **values)


def outlier_channels(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Rows or columns of a norm far above the others'."""
    rows = evidence.rows("weight")
    rows = with_outlier_ratios(rows) if len(rows) else rows
    for name in ("row_peak", "column_peak"):
        if has(rows, name) and float(rows[name].max()) >= rule.threshold:
            worst = rows.loc[rows[name].astype(float).idxmax()]
            value = number(float(worst[name]), 2)
            count = int((rows[name] >= rule.threshold).sum())
            values: dict[str, Any] = {
                "layer": str(worst["layer"]),
                "matrix": worst["series"],
                "value": value,
                "count": count,
            }
            size = float(worst[name]) / rule.threshold
            variant = "-columns" if name == "column_peak" else ""
            yield rule.says(value, size, link_to(worst, name), variant=variant, all=str(len(rows)), **values)


def like_noise(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices without a direction beyond the edge of noise."""
    rows = evidence.rows("weight")
    if not has(rows, "mp_spikes"):
        return
    rows = rows[rows["mp_spikes"].notna()]
    none = rows[rows["mp_spikes"].eq(0).astype(bool)]
    share = len(none) / len(rows)
    if share >= rule.threshold:
        yield rule.says(
            percent(share, 2), share / rule.threshold, "#map?map=mp_spikes", count=len(none), all=str(len(rows))
        )


def lost_rank(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices whose smallest direction is lost beside the largest."""
    rows = evidence.rows("weight")
    if "condition_number" not in rows:
        return
    condition = rows["condition_number"].astype(float)
    bad = rows[condition >= rule.threshold]
    if len(bad):
        worst = bad.loc[condition[bad.index].idxmax()]
        value = number(float(worst["condition_number"]), 2)
        size = min(float(np.log10(worst["condition_number"]) / np.log10(rule.threshold)), 10.0)
        values: dict[str, Any] = {
            "layer": str(worst["layer"]),
            "matrix": worst["series"],
            "value": value,
            "count": len(bad),
        }
        yield rule.says(value, size, link_to(worst, "condition_number"), all=str(len(rows)), **values)


def few_directions(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices of many directions, of which 12 hold half of the energy."""
    rows = evidence.rows("weight")
    if not has(rows, "top12_energy_share"):
        return
    large = rows[rows[["rows", "cols"]].min(axis=1) >= 120]
    heavy = large[large["top12_energy_share"] >= rule.threshold]
    if len(heavy):
        worst = heavy.loc[heavy["top12_energy_share"].astype(float).idxmax()]
        value = percent(float(worst["top12_energy_share"]), 2)
        size = float(worst["top12_energy_share"]) / rule.threshold
        values: dict[str, Any] = {
            "layer": str(worst["layer"]),
            "matrix": worst["series"],
            "value": value,
            "count": len(heavy),
        }
        yield rule.says(value, size, link_to(worst, "top12_energy_share"), all=str(len(large)), **values)


def trends(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """A measure that rises or falls steadily with depth: the steepest one."""
    rows, best = evidence.rows("weight"), None
    for name in ("spectral_norm", "stable_rank", "effective_rank", "std"):
        if not has(rows, name):
            continue
        for series, group in rows.groupby("series", sort=False):
            line = group.drop_duplicates("layer").sort_values("layer")[name].astype(float).dropna()
            if len(line) < 8 or float(line.min()) <= 0:
                continue
            order = abs(float(line.rank().corr(pd.Series(range(len(line)), index=line.index))))
            third = max(len(line) // 3, 2)
            ratio = float(line.iloc[-third:].median() / line.iloc[:third].median())
            factor = max(ratio, 1 / ratio)
            if order >= 0.85 and factor >= rule.threshold and (best is None or factor > best[0]):
                best = factor, name, str(series), ratio > 1
    if best is not None:
        factor, name, series, rises = best
        value = f"× {number(factor, 2)}"
        values: dict[str, Any] = {"measure": _label(name), "matrix": series, "factor": number(factor, 2)}
        link = f"#depth?depth={name}"
        yield rule.says(value, factor / rule.threshold, link, variant="" if rises else "-falls", **values)
