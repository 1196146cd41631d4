"""Tables of the controls, the third base and the portfolio, rebuilt from the committed lines of `controls.jsonl`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rank_study.control_arms import CONTROLS, MENU
from rank_study.controls import SEEDS, SETTINGS, STAGES, TESTS, TOURNAMENT, Found, Stage, best_rate, picked
from rank_study.plan import BUDGETS, NotReadyError
from rank_study.statistics import Paired, holm, paired


@dataclass(frozen=True)
class Row:
    """One arm against uniform. rate: its tuned learning rate. holm_p: over all rows of the table."""

    base: str
    task: str
    budget: int
    arm: str
    rate: float
    uniform: float
    gap: Paired
    holm_p: float


def losses_of(found: Found, base: str, task: str, arm: str, budget: int) -> tuple[dict[int, float], float]:
    """Seed -> loss on the test part at the arm's tuned rate, and that rate; nothing where the grid is open."""
    try:
        rate = best_rate(found, base, task, arm, budget)
    except NotReadyError:
        return {}, float("nan")
    runs = found.losses(base, task, arm, budget, "test").items()
    return {seed: loss for (of, seed), loss in runs if of == rate}, rate


def rows(lines: Sequence[dict]) -> list[Row]:
    """Every arm with two seeds or more beside uniform's, in the order of settings, budgets and arms."""
    found, results = Found(lines), []
    for base, task in SETTINGS:
        for budget in BUDGETS:
            uniform, _ = losses_of(found, base, task, "uniform", budget)
            for arm in CONTROLS:
                own, rate = losses_of(found, base, task, arm, budget)
                seeds = sorted(set(own) & set(uniform))
                if arm != "uniform" and len(seeds) > 1:
                    one, two = np.array([own[s] for s in seeds]), np.array([uniform[s] for s in seeds])
                    results.append((base, task, budget, arm, rate, float(two.mean()), paired(one, two)))
    adjusted = holm([row[-1].p for row in results])
    return [Row(*row, holm_p=p) for row, p in zip(results, adjusted, strict=True)]


@dataclass(frozen=True)
class Choice:
    """What one of the portfolio's tests chose in a setting and budget. best: the arm of the menu with the lowest mean
    loss after full training. seeds: of the chosen arms' full trainings; gap, regret: their mean loss less uniform's
    and less that of `best`, over these seeds."""

    base: str
    task: str
    budget: int
    test: str
    picks: dict[str, int]
    best: str
    seeds: int
    gap: float
    regret: float


def choices(lines: Sequence[dict]) -> list[Choice]:
    found, results = Found(lines), []
    for base, task in SETTINGS:
        for budget in BUDGETS:
            full = {arm: losses_of(found, base, task, arm, budget)[0] for arm in MENU}
            full = {arm: own for arm, own in full.items() if len(own) == len(SEEDS)}
            if "uniform" not in full:
                continue
            best = min(full, key=lambda arm: sum(full[arm].values()))
            for test in TESTS:
                chosen = {seed: picked(found, base, task, budget, seed, test) for seed in SEEDS}
                picks = Counter(arm for arm in chosen.values() if arm is not None)
                own = {
                    seed: losses_of(found, base, task, arm, budget)[0][seed]
                    for seed, arm in chosen.items()
                    if arm is not None and seed in losses_of(found, base, task, arm, budget)[0]
                }
                if own:
                    gap = float(np.mean([loss - full["uniform"][seed] for seed, loss in own.items()]))
                    regret = float(np.mean([loss - full[best][seed] for seed, loss in own.items()]))
                    results.append(Choice(base, task, budget, test, dict(picks), best, len(own), gap, regret))
    return results


def predictions(lines: Sequence[dict]) -> list[tuple[str, str, int, str, dict[str, float]]]:
    """Setting, budget, arm of the menu and its mean gap to uniform in each test and after full training ('test'),
    each over the seeds that both have; one row an arm that a test saw."""
    found, results = Found(lines), []
    for base, task in SETTINGS:
        for budget in BUDGETS:
            for arm in MENU[1:]:
                gaps = {}
                for part in (*TESTS, "test"):
                    own, uniform = ({s: loss for (_, s), loss in found.losses(base, task, one, budget, part).items()}
                                    for one in (arm, "uniform"))  # fmt: skip
                    if part == "test":
                        own, uniform = (losses_of(found, base, task, one, budget)[0] for one in (arm, "uniform"))
                    seeds = set(own) & set(uniform)
                    if seeds:
                        gaps[part] = float(np.mean([own[s] - uniform[s] for s in seeds]))
                if any(test in gaps for test in TESTS):
                    results.append((base, task, budget, arm, gaps))
    return results


def not_run(lines: Sequence[dict], stages: Sequence[Stage] = STAGES) -> list[str]:
    """Declared comparisons of which no run of the test part is there."""
    found, missing = Found(lines), []
    for stage in stages:
        for budget in stage.budgets:
            if stage.name == "portfolio":
                open_tests = [
                    test
                    for test in TESTS
                    if not any(found.losses(stage.base, stage.task, arm, budget, test) for arm in MENU)
                ]
                missing += [f"{stage.base} {stage.task} r {budget}: portfolio, {test}" for test in open_tests]
                continue
            arms = [a for a in stage.arms if not losses_of(found, stage.base, stage.task, a, budget)[0]]
            if arms:
                missing.append(f"{stage.base} {stage.task} r {budget}: {', '.join(arms)}")
    return missing


def loss_table(results: Sequence[Row]) -> list[str]:
    """Lines of a table of arms against uniform."""
    text = [
        "| base, task | budget (uniform's loss) | arm | rate | loss - uniform's (95 %) | seeds | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        one = row.gap
        text.append(
            f"| {row.base}, {row.task} | r {row.budget} ({row.uniform:.4f}) | {row.arm} | {row.rate:.2g} | "
            f"{one.mean:+.4f} ({one.low:+.4f} .. {one.high:+.4f}) | {one.seeds} | {row.holm_p:.2g} |"
        )
    return text


def markdown(lines: Sequence[dict]) -> str:
    """The tables that `--print --controls` shows."""
    text = loss_table(rows(lines))
    text += [
        "",
        "| portfolio: base, task | budget | test | it picks (seeds) | best after full training | loss - uniform's | "
        "loss - the best's | seeds trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for choice in choices(lines):
        picks = ", ".join(f"{arm} {count}" for arm, count in choice.picks.items())
        text.append(
            f"| {choice.base}, {choice.task} | r {choice.budget} | {choice.test} | {picks} | {choice.best} | "
            f"{choice.gap:+.4f} | {choice.regret:+.4f} | {choice.seeds} |"
        )
    text += [
        "",
        f"| menu: base, task | budget | arm | pilot cut (no step) - uniform's | {TOURNAMENT} steps - uniform's | "
        "full training - uniform's |",
        "|---|---|---|---|---|---|",
    ]
    for base, task, budget, arm, gaps in predictions(lines):
        cells = [f"{gaps[part]:+.4f}" if part in gaps else "not run" for part in (*TESTS, "test")]
        text.append(f"| {base}, {task} | r {budget} | {arm} | {' | '.join(cells)} |")
    text += ["", "Not run of what was declared (`--plan --controls` has every job):", ""]
    text += [f"- {one}" for one in not_run(lines)]
    return "\n".join(text)
