"""How often a test of the portfolio picks the arm that is best after full training, from the committed lines.

Two answers. By seed: of the arms that every seed of a setting was fully trained with, is the test's best the seed's
best. By pairs of arms: do test and full training order them alike, with the gaps of `controls.jsonl`, and with those of
the first study's screening (four seeds on the development part, where it screened an arm of the menu).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rank_study.control_arms import DELTA, MENU, METRIC
from rank_study.control_table import losses_of, predictions
from rank_study.controls import SEEDS, SETTINGS, TESTS, Found
from rank_study.plan import BUDGETS, MIDDLE, screened_gaps
from rank_study.plan import SETTINGS as FIRST_SETTINGS

FIXED = (DELTA, METRIC)  # what a test has to beat: to pick one of them always


@dataclass(frozen=True)
class Agreement:
    """Of one test in a setting and budget.

    arms: fully trained with every seed. hits: seeds whose best of them is the test's best of them; fixed: of each of
    FIXED, the seeds whose best it is. seeds: compared. pairs, screened: (ordered alike, compared) pairs of arms,
    uniform among them, against full training and against the first study's screening.
    """

    base: str
    task: str
    budget: int
    test: str
    arms: tuple[str, ...]
    hits: int
    fixed: tuple[int, ...]
    seeds: int
    pairs: tuple[int, int]
    screened: tuple[int, int]


def ordered_alike(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[int, int]:
    """(pairs of keys that both order in the same way, pairs that both have)."""
    shared = [name for name in one if name in other]
    alike = [(one[a] - one[b]) * (other[a] - other[b]) > 0 for a, b in combinations(shared, 2)]
    return sum(alike), len(alike)


def agreements(lines: Sequence[dict], control_lines: Sequence[dict]) -> list[Agreement]:
    """One row for each setting, budget and test that has a seed to compare. lines: of the first study."""
    found, results = Found(control_lines), []
    gaps = {(base, task, budget, arm): own for base, task, budget, arm, own in predictions(control_lines)}
    for base, task in SETTINGS:
        for budget in BUDGETS:
            full = {arm: losses_of(found, base, task, arm, budget)[0] for arm in MENU}
            full = {arm: own for arm, own in full.items() if len(own) == len(SEEDS)}
            for test in TESTS:
                tested = _by_seed(found, base, task, budget, test, full)
                if not tested or len(full) < 2:
                    continue
                best = {seed: min(full, key=lambda arm: full[arm][seed]) for seed in tested}
                picks = {seed: min(own, key=lambda arm: own[arm]) for seed, own in tested.items()}
                menu = {arm: gaps[base, task, budget, arm] for arm in MENU[1:] if (base, task, budget, arm) in gaps}
                seen = {"uniform": 0.0} | {arm: own[test] for arm, own in menu.items() if test in own}
                trained = {"uniform": 0.0} | {arm: own["test"] for arm, own in menu.items() if "test" in own}
                results.append(
                    Agreement(
                        base, task, budget, test, tuple(full),
                        sum(picks[seed] == best[seed] for seed in tested),
                        tuple(sum(best[seed] == arm for seed in tested) for arm in FIXED),
                        len(tested),
                        ordered_alike(seen, trained),
                        ordered_alike(seen, _screening(lines, base, task, budget)),
                    )
                )  # fmt: skip
    return results


def _by_seed(
    found: Found, base: str, task: str, budget: int, test: str, arms: Iterable[str]
) -> dict[int, dict[str, float]]:
    """Seed -> arm -> loss in the test, for seeds that it saw with all of `arms`."""
    losses = {arm: {s: loss for (_, s), loss in found.losses(base, task, arm, budget, test).items()} for arm in arms}
    seeds = [seed for seed in SEEDS if losses and all(seed in own for own in losses.values())]
    return {seed: {arm: own[seed] for arm, own in losses.items()} for seed in seeds}


def _screening(lines: Sequence[dict], base: str, task: str, budget: int) -> dict[str, float]:
    if (base, task) not in FIRST_SETTINGS or budget != MIDDLE:
        return {}
    gaps = {arm: float(np.mean(own)) for arm, own in screened_gaps(lines, base, task).items()}
    return {"uniform": 0.0} | gaps if gaps else {}


def markdown(lines: Sequence[dict], control_lines: Sequence[dict]) -> str:
    """The table, and a line for each test over all settings."""
    rows = agreements(lines, control_lines)
    fixed = " | ".join(f"{arm} always is" for arm in FIXED)
    text = [
        "| test picks the best: base, task | budget | test | arms fully trained | its best is the seed's best | "
        f"{fixed} | pairs of arms ordered as by full training | as by the first study's screening |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        where = f"| {row.base}, {row.task} | r {row.budget} | {row.test} | {len(row.arms)} |"
        text.append(f"{where} {_cells([row])} |")
    for test in TESTS:
        if own := [row for row in rows if row.test == test]:
            text.append(f"| all | | {test} | | {_cells(own)} |")
    return "\n".join(text)


def _cells(rows: Sequence[Agreement]) -> str:
    """Counts over rows, as 'n of m'."""
    seeds = sum(row.seeds for row in rows)
    cells = [(sum(row.hits for row in rows), seeds)]
    cells += [(sum(row.fixed[place] for row in rows), seeds) for place in range(len(FIXED))]
    for pairs in ([row.pairs for row in rows], [row.screened for row in rows]):
        cells.append((sum(alike for alike, _ in pairs), sum(count for _, count in pairs)))
    return " | ".join(f"{found} of {count}" if count else "-" for found, count in cells)
