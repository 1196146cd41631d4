"""Rules on several runs side by side."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from glmspectra.figures.findings.evidence import Evidence, numbers_of
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.figures.findings.weights import TELLING
from glmspectra.figures.tables import has, in_layers, whole_matrices
from glmspectra.figures.words import measured, number
from glmspectra.language import Words, listed
from glmspectra.store.columns import column

# Measures that are compared by their ratio: one that may be of either sign has none that says anything near 0.
RATIOS = tuple(name for name in TELLING if not column(name).signed)


def medians(rows: pd.DataFrame, name: str) -> pd.Series:
    """Median over the layers of each matrix."""
    if not has(rows, name):
        return pd.Series(dtype=float)
    return rows.groupby("matrix", sort=False)[name].median().astype(float).dropna()


def _pairs(evidence: Evidence) -> Iterable[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """The first run beside each further one."""
    tables = {name: in_layers(whole_matrices(run.matrices)) for name, run in evidence.compared.items()}
    names = list(tables)
    for other in names[1:]:
        yield names[0], other, tables[names[0]], tables[other]


Farthest = tuple[float, str, str, float, float]  # ratio, measure, matrix, median in the one run and in the other


def _farthest(one: pd.DataFrame, two: pd.DataFrame) -> Farthest | None:
    """The measure and matrix whose medians are farthest apart by their ratio; None where no two can be compared."""
    best: Farthest | None = None
    for name in RATIOS:
        before, after = medians(one, name), medians(two, name)
        for matrix in [matrix for matrix in before.index if matrix in after.index]:
            a, b = float(before[matrix]), float(after[matrix])
            factor = max(a / b, b / a) if a > 0 and b > 0 else 1.0
            if factor > (best[0] if best else 1.0):
                best = factor, name, str(matrix), a, b
    return best


def _as_words(first: str, second: str, best: Farthest) -> tuple[str, str, dict[str, Any]]:
    """The ratio as it is shown, the address on the page, and the variables of the sentence."""
    factor, name, matrix, a, b = best
    values: dict[str, Any] = {"measure": Words(*column(name).label), "matrix": matrix, "one": first, "two": second}
    values |= {"before": measured(a, column(name)), "after": measured(b, column(name))}
    return f"× {number(factor, 2 if factor >= 1.1 else 3)}", f"#compared?measure={name}&matrix={matrix}", values


def moved_measures(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """The measure and matrix whose median differs most between two runs."""
    for first, second, one, two in _pairs(evidence):
        best = _farthest(one, two)
        if best is not None and best[0] >= rule.threshold:
            value, link, values = _as_words(first, second, best)
            yield rule.says(value, best[0] / rule.threshold, link, **values)


def nothing_shared(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Runs whose matrices have no name in common."""
    for first, second, one, two in _pairs(evidence):
        shared = set(one["matrix"]) & set(two["matrix"])
        if len(shared) < rule.threshold:
            yield rule.says("0", 1.0, "#compared", one=first, two=second)


def alike(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Runs whose medians agree to within the threshold."""
    for first, second, one, two in _pairs(evidence):
        gaps = []
        for name in RATIOS:
            before, after = medians(one, name), medians(two, name)
            shared = [matrix for matrix in before.index if matrix in after.index and before[matrix] != 0]
            gaps += [abs(float(after[matrix] / before[matrix]) - 1) for matrix in shared]
        if gaps and max(gaps) < rule.threshold:
            worst = f"{100 * max(gaps):.2g} %"
            yield rule.says(f"< {100 * rule.threshold:.2g} %", 1.0, "#compared", one=first, two=second, most=worst)


def farthest_medians(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The medians that are farthest apart, however little that is."""
    for first, second, one, two in _pairs(evidence):
        best = _farthest(one, two)
        if best is not None:
            value, link, values = _as_words(first, second, best)
            yield rule.says(value, link, **values)


def medians_by_run(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The median over all matrices, run by run."""
    tables = {name: in_layers(whole_matrices(run.matrices)) for name, run in evidence.compared.items()}
    for measure in ("effective_rank", "stable_rank", "spectral_norm", "std"):
        known = {name: numbers_of(rows, measure).median() for name, rows in tables.items() if has(rows, measure)}
        if len(known) < 2:
            continue
        shown = {name: measured(float(value), column(measure)) for name, value in known.items()}
        runs = [f"{name} {value}" for name, value in shown.items()]
        words = Words(listed(runs, "en"), listed(runs, "zh"))
        label = Words(*column(measure).label)
        label = Words(label.en[:1].upper() + label.en[1:], label.zh)
        value = " – ".join(list(shown.values())[:2])
        yield rule.says(value, f"#compared?measure={measure}", measure=label, runs=words)
