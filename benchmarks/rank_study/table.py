"""The table that the README shows, rebuilt from the committed lines."""

from collections.abc import Sequence

import numpy as np

from rank_study.arms import ARMS
from rank_study.facts import PILOT, PILOTS
from rank_study.plan import MIDDLE, SETTINGS, NotReadyError, best_rate, screened_gaps
from rank_study.statistics import EqualLoss, holm, not_worse, paired, uniform_rank_of_equal_loss

MARGIN = 0.002  # nats a token: what 'no worse than uniform' is tested against


def losses_of(lines: Sequence[dict], base: str, task: str, arm: str, budget: int) -> dict[int, float]:
    """Seed -> loss on the test part, at the rate that tuning chose."""
    try:
        rate = best_rate(lines, base, task, arm, budget)
    except NotReadyError:
        return {}
    wanted = (base, task, arm, budget, "test", rate)
    return {
        line["seed"]: line["loss"]
        for line in lines
        if (line["base"], line["task"], line["arm"], line["budget"], line["part"], line["rate"]) == wanted
    }


def curve_of(lines: Sequence[dict], base: str, task: str) -> tuple[list[int], list[float]]:
    """Uniform's mean loss over ranks, on the seeds that every rank has."""
    ranks = sorted({line["budget"] for line in lines if line["arm"] == "uniform" and line["part"] == "test"})
    found = {rank: losses_of(lines, base, task, "uniform", rank) for rank in ranks}
    found = {rank: seeds for rank, seeds in found.items() if seeds}
    if not found:
        return [], []
    shared = sorted(set.intersection(*(set(seeds) for seeds in found.values())))
    if not shared:
        return [], []
    return list(found), [float(np.mean([seeds[seed] for seed in shared])) for seeds in found.values()]


def rows(lines: Sequence[dict]) -> list[dict]:
    """One row a setting, budget and arm; p values of an arm against uniform, Holm-corrected over the whole table."""
    table = []
    for base, task in SETTINGS:
        ranks, curve = curve_of(lines, base, task)
        budgets = sorted({line["budget"] for line in lines if line["part"] == "test" and line["arm"] != "uniform"})
        for budget in budgets:
            uniform = losses_of(lines, base, task, "uniform", budget)
            for arm in (arm for arm in ARMS if arm != "uniform"):
                own = losses_of(lines, base, task, arm, budget)
                seeds = sorted(set(own) & set(uniform))
                if len(seeds) < 2:
                    continue
                a, u = np.array([own[s] for s in seeds]), np.array([uniform[s] for s in seeds])
                row = {"base": base, "task": task, "budget": budget, "arm": arm, "uniform": float(u.mean())}
                row |= {"paired": paired(a, u), "not_worse_p": not_worse(a, u, MARGIN)}
                if len(ranks) > 2 and budget in ranks:
                    at = curve[ranks.index(budget)] + float((a - u).mean())
                    row["worth"] = uniform_rank_of_equal_loss(ranks, curve, at)
                table.append(row)
    for row, p in zip(table, holm([row["paired"].p for row in table]), strict=True):
        row["holm_p"] = p
    return table


def screened(lines: Sequence[dict]) -> list[dict]:
    """One row a setting and arm that was screened: mean difference from uniform on the development part, its standard
    error and the seeds. The screening chooses what to confirm; it is no evidence."""
    table = []
    for base, task in SETTINGS:
        for arm, gaps in screened_gaps(lines, base, task).items():
            error = float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else float("nan")
            row = {"base": base, "task": task, "arm": arm, "mean": float(np.mean(gaps)), "error": error}
            table.append(row | {"seeds": len(gaps)})
    return table


def saving(equal: EqualLoss, budget: int) -> str:
    """Uniform's rank of equal loss, and by how many per cent the parameters are fewer or more than that one's."""
    return f"{equal.rank:.1f} ({budget / equal.rank - 1:+.0%}{', end of curve' if equal.at_end else ''})"


def markdown(lines: Sequence[dict]) -> str:
    """The confirmed arms, and below them the screening where there was one."""
    text = [
        "| base, task | budget | arm | loss - uniform's (95 %) | seeds | p (Holm) | p, worse by "
        f"{MARGIN} | uniform rank of equal loss (parameters against it) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(lines):
        one = row["paired"]
        equal = row.get("worth")
        worth = "-" if equal is None else saving(equal, row["budget"])
        text.append(
            f"| {row['base']}, {row['task']} | r {row['budget']} ({row['uniform']:.4f}) | {row['arm']} | "
            f"{one.mean:+.4f} ({one.low:+.4f} .. {one.high:+.4f}) | {one.seeds} | {row['holm_p']:.2g} | "
            f"{row['not_worse_p']:.2g} | {worth} |"
        )
    rows_of_screen = screened(lines)
    if rows_of_screen:
        text += ["", f"| screened at r {MIDDLE}: base, task | arm | loss - uniform's (standard error) | seeds |"]
        text += ["|---|---|---|---|"]
        text += [
            f"| {row['base']}, {row['task']} | {row['arm']} | {row['mean']:+.4f} ({row['error']:.4f}) | "
            f"{row['seeds']} |"
            for row in rows_of_screen
        ]
    return "\n".join(text)


# Declared with the arms, before the fresh seeds: is a choice by layer more than the choice by matrix type?
COMPARED = (("delta-threshold", "type-alone"), ("effective-rank", "type-alone"))


def against_type(lines: Sequence[dict]) -> list[dict]:
    """One row a setting, budget and pair of COMPARED, over the seeds that both have; Holm over these rows.

    A family of its own: the other table asks whether an arm beats uniform, this one whether layers matter."""
    table = []
    for base, task in SETTINGS:
        for budget in sorted({line["budget"] for line in lines if line["part"] == "test"}):
            for arm, other in COMPARED:
                one, two = (losses_of(lines, base, task, name, budget) for name in (arm, other))
                seeds = sorted(set(one) & set(two))
                if len(seeds) > 1:
                    found = paired(np.array([one[s] for s in seeds]), np.array([two[s] for s in seeds]))
                    table.append(
                        {"base": base, "task": task, "budget": budget, "arm": arm, "other": other} | vars(found)
                    )
    for row, p in zip(table, holm([row["p"] for row in table]), strict=True):
        row["holm_p"] = p
    return table


def costs(lines: Sequence[dict]) -> list[dict]:
    """One row a setting: seconds of one training among others side by side, by the median, and with the pilots.

    A pilot's step is taken to cost what the training's does; it has a larger rank, which matters little beside the
    frozen weights."""
    table = []
    for base, task in SETTINGS:
        own = [line for line in lines if (line["base"], line["task"], line["part"]) == (base, task, "test")]
        if own:
            seconds = float(np.median([line["seconds_of_group"] / line["jobs_in_group"] for line in own]))
            steps, device = own[-1]["steps"], own[-1]["device"]
            factor = 1 + PILOTS * PILOT / steps
            table.append(
                {"base": base, "task": task, "seconds": seconds, "steps": steps, "device": device, "factor": factor}
            )
    return table


def further(lines: Sequence[dict]) -> str:
    """What `--print` shows below the main table: arms against the matrix type alone, and the cost in time."""
    text = [
        "| base, task | budget | arm | loss - type-alone's (95 %) | seeds | p (Holm) |",
        "|---|---|---|---|---|---|",
    ]
    for row in against_type(lines):
        text.append(
            f"| {row['base']}, {row['task']} | r {row['budget']} | {row['arm']} | {row['mean']:+.4f} "
            f"({row['low']:+.4f} .. {row['high']:+.4f}) | {row['seeds']} | {row['holm_p']:.2g} |"
        )
    text += ["", f"| base, task | one run | with its {PILOTS} pilots of {PILOT} steps |", "|---|---|---|"]
    for row in costs(lines):
        text.append(
            f"| {row['base']}, {row['task']} | {row['steps']} steps, {row['seconds']:.1f} s ({row['device']}) | "
            f"{row['factor']:.1f} times as long |"
        )
    return "\n".join(text)
