"""Rules on several runs side by side."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from glmspectra.figures.findings.evidence import Evidence
from glmspectra.figures.findings.rule import Finding, Rule
from glmspectra.figures.findings.weights import TELLING
from glmspectra.figures.tables import has, in_layers, whole_matrices
from glmspectra.figures.words import measured, number
from glmspectra.language import Words
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


def moved_measures(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """The measure and matrix whose median differs most between two runs."""
    for first, second, one, two in _pairs(evidence):
        best = None
        for name in RATIOS:
            before, after = medians(one, name), medians(two, name)
            shared = [matrix for matrix in before.index if matrix in after.index]
            for matrix in shared:
                a, b = float(before[matrix]), float(after[matrix])
                factor = max(a / b, b / a) if a > 0 and b > 0 else 1.0
                if factor >= rule.threshold and (best is None or factor > best[0]):
                    best = factor, name, matrix, a, b
        if best is None:
            continue
        factor, name, matrix, a, b = best
        values: dict[str, Any] = {
            "measure": Words(*column(name).label),
            "matrix": str(matrix),
            "one": first,
            "two": second,
        }
        values |= {"before": measured(a, column(name)), "after": measured(b, column(name))}
        link = f"#compared?measure={name}&matrix={matrix}"
        yield rule.says(f"× {number(factor, 2)}", factor / rule.threshold, link, **values)


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
