"""Second moments of the gradient by matrix type and depth, beside the ranks that each metric keeps.

AdamW's metric wins on one base of the study and loses on another. What it multiplies delta-W by is read here from one
pilot: the mean of V, the second moment of dL/dW, in each matrix, and how far it spreads over its rows and columns.
"""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glmspectra.ranks.allocation import Limits, allocate_by_threshold
from rank_study.arms import by_module, by_weight
from rank_study.bases import Base
from rank_study.facts import column_moments, pilot_metrics, row_moments, targets_of, train_jobs
from rank_study.tasks import Rows

BUDGET = 4  # the uniform rank whose parameters the kept ranks share out
METRICS = ("plain", "tempered", "preconditioned")


def measure(base: Base, rows: Rows, task: str, rank: int, rate: float, steps: int, batch: int, seed: int) -> list[dict]:
    """One uniform pilot; a line for each matrix.

    level: mean of V; row_spread, column_spread: standard deviations of ln V over rows and over columns;
    one key for each of METRICS: the rank it keeps at the budget of uniform r BUDGET.
    """
    targets = targets_of(base.shapes())
    adapters = train_jobs(base, rows, [dict.fromkeys(base.modules, rank)], [rate], [seed], steps, batch)
    try:
        found = pilot_metrics(adapters)[0]
        level, over_rows, over_columns = {}, {}, {}
        for name, _, down in adapters.factors():
            second_a, second_b = (part.double() for part in adapters.of(adapters.second, name))
            own = row_moments(second_b, down.double())[0] / (1 - 0.999**steps)
            level[name] = float(own.mean())
            over_rows[name] = float(own.clamp(min=1e-30).log().std())
            over_columns[name] = float(column_moments(second_a)[0].clamp(min=1e-30).log().std())
    finally:
        adapters.remove()
    budget = BUDGET * sum(target.cost for target in targets)
    kept = {
        metric: by_module(allocate_by_threshold(targets, by_weight(found[metric]), budget, Limits()).ranks)
        for metric in METRICS
    }
    results = {"base": base.name, "weights": base.digest, "task": task, "steps": steps, "batch": batch, "rate": rate}
    return [
        results
        | {"module": t.module, "layer": t.layer, "matrix": t.matrix, "rows": t.rows, "cols": t.cols}
        | {"level": level[t.module], "row_spread": over_rows[t.module], "column_spread": over_columns[t.module]}
        | {metric: kept[metric][t.module] for metric in METRICS}
        for t in targets
    ]


def as_text(lines: Sequence[dict]) -> str:
    return "".join(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}) + "\n"
                   for line in lines)  # fmt: skip


def explained(lines: Sequence[dict], key: Callable[[Mapping], object]) -> float:
    """Share of the variance of ln level between matrices that groups of `key` explain (eta squared)."""
    values = np.log([line["level"] for line in lines])
    groups: dict[object, list[float]] = {}
    for line, value in zip(lines, values, strict=True):
        groups.setdefault(key(line), []).append(float(value))
    between = sum(len(own) * (np.mean(own) - values.mean()) ** 2 for own in groups.values())
    return float(between / np.sum((values - values.mean()) ** 2))


def without_outliers(lines: Sequence[dict], share: float = 0.05) -> float:
    """What is left of the variance of ln level without the `share` of matrices farthest from its median."""
    values = np.log([line["level"] for line in lines])
    far = np.argsort(np.abs(values - np.median(values)))[: len(values) - max(1, round(share * len(values)))]
    return float(values[far].var() / values.var())


def third_of(line: Mapping, layers: int) -> str:
    return ("first third", "middle third", "last third")[3 * line["layer"] // layers]


def markdown(lines: Sequence[dict]) -> str:
    """A table for each base, and below it what the spread of V is made of."""
    pieces = []
    for base in dict.fromkeys(line["base"] for line in lines):
        own = [line for line in lines if line["base"] == base]
        pieces.append(_table(base, own) + "\n\n" + _sentence(own))
    return "\n\n".join(pieces)


def _table(base: str, lines: Sequence[dict]) -> str:
    layers = 1 + max(line["layer"] for line in lines)
    middle = float(np.median([line["level"] for line in lines]))
    text = [
        f"| {base}: matrix | depth | mean V over the median matrix's | ln V over rows, columns (sd) | "
        + " | ".join(f"rank, {metric}" for metric in METRICS) + " |",
        "|---|---|---|---|" + "---|" * len(METRICS),
    ]  # fmt: skip
    for matrix in dict.fromkeys(line["matrix"] for line in lines):
        for third in ("first third", "middle third", "last third"):
            own = [line for line in lines if line["matrix"] == matrix and third_of(line, layers) == third]
            if not own:
                continue
            level = np.exp(np.mean(np.log([line["level"] for line in own]))) / middle
            spread = [np.mean([line[key] for line in own]) for key in ("row_spread", "column_spread")]
            ranks = " | ".join(f"{np.mean([line[metric] for line in own]):.1f}" for metric in METRICS)
            text.append(f"| {matrix} | {third} | {level:.2g} | {spread[0]:.2f}, {spread[1]:.2f} | {ranks} |")
    return "\n".join(text)


def _sentence(lines: Sequence[dict]) -> str:
    layers = 1 + max(line["layer"] for line in lines)
    values = np.log([line["level"] for line in lines])
    one = lines[0]
    correlations = [
        f"{metric} {np.corrcoef(values, [line[metric] for line in lines])[0, 1]:+.2f}" for metric in METRICS
    ]
    return (
        f"One pilot of {one['steps']} steps of {one['batch']} rows at {one['rate']:g}, {one['task']}: ln of a matrix's "
        f"mean V has standard deviation {values.std():.2f} over {len(lines)} matrices; kind explains "
        f"{explained(lines, lambda line: line['matrix']):.0%} of its variance, depth (thirds) "
        f"{explained(lines, lambda line: third_of(line, layers)):.0%}, both together "
        f"{explained(lines, lambda line: (line['matrix'], third_of(line, layers))):.0%}; without the 5 % of matrices "
        f"farthest from the median {without_outliers(lines):.0%} of it is left. Correlation of ln V with the kept "
        f"rank: {', '.join(correlations)}."
    )
