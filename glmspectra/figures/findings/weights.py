"""Rules on the weights: values and spectra."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from glmspectra.figures.findings.evidence import Evidence, by_type, link_to, numbers_of, outlying, spread_of
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.figures.tables import has, in_layers, with_outlier_ratios
from glmspectra.figures.words import measured, number, percent
from glmspectra.language import Words, both
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


def _measured(evidence: Evidence) -> tuple[str, pd.DataFrame, Words]:
    """What the page is about beside changes: its quantity, its rows with `directions`, and what it is called."""
    quantity, rows = evidence.usual_rows("weight", "merged", "quant_error", "gradient")
    if not len(rows):
        return quantity, rows, Words.same("")
    rows = with_outlier_ratios(rows).assign(directions=rows[["rows", "cols"]].min(axis=1).astype(float))
    return quantity, rows, both(f"page-set-{quantity.replace('_', '-')}")


def _range(evidence: Evidence, rule: Typical, name: str) -> Iterable[Finding]:
    """Where a measure lies: lowest, median and highest matrix, and of how many directions."""
    quantity, rows, what = _measured(evidence)
    spread = spread_of(rows, name)
    if spread is not None:
        directions = numbers_of(rows, "directions")
        ends = dict.fromkeys((number(float(directions.min())), number(float(directions.max()))))
        link = f"#map?set={quantity}&map={name}"
        yield rule.says(str(spread["median"]), link, what=what, directions="–".join(ends), **spread)


def stable_rank(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """Where the stable rank lies."""
    return _range(evidence, rule, "stable_rank")


def beyond_noise(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How many directions stand beyond the edge of noise."""
    return _range(evidence, rule, "mp_spikes")


def entry_size(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """Where the standard deviation of the entries lies."""
    return _range(evidence, rule, "std")


def largest_entry(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How far the largest entry is from zero."""
    return _range(evidence, rule, "abs_max_in_std")


def widest_type(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The matrix types that spread over most and fewest of their directions."""
    quantity, rows, _ = _measured(evidence)
    ranks = numbers_of(rows, "effective_rank")
    if not len(ranks):
        return
    medians = by_type(rows, ranks / numbers_of(rows, "directions"))
    if len(medians):
        high, low = percent(float(medians.iloc[0]), 2), percent(float(medians.iloc[-1]), 2)
        values = {"most": str(medians.index[0]), "least": str(medians.index[-1]), "high": high, "low": low}
        yield rule.says(f"{low} – {high}", f"#map?set={quantity}&map=effective_rank", **values)


def tails(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How far the entries are from normal, and in which matrix type farthest."""
    quantity, rows, what = _measured(evidence)
    kurtosis = numbers_of(rows, "excess_kurtosis")
    if len(kurtosis) < 2:
        return
    median, types = number(float(kurtosis.median())), by_type(rows, kurtosis)
    values: dict[str, Any] = {"what": what, "median": median, "all": str(len(kurtosis))}
    if len(types):
        farthest = types.abs().idxmax()
        values |= {"matrix": str(farthest), "value": number(float(types[farthest]))}
    variant = "" if len(types) else "-one"
    yield rule.says(median, f"#map?set={quantity}&map=excess_kurtosis", variant=variant, **values)
