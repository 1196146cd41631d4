"""Tables of the third part, rebuilt from the committed lines of `rivals.jsonl`: loss, and what adapters answer."""

from collections.abc import Sequence

import numpy as np

from rank_study import control_table, rivals
from rank_study.control_arms import CONTROLS, DELTA, METRIC, PEFT_ARMS
from rank_study.control_table import losses_of, rows
from rank_study.controls import SETTINGS, Found
from rank_study.plan import BUDGETS
from rank_study.statistics import holm, paired

LONGER = "uniform-longer"
BEYOND = {
    "accuracy": "token accuracy",
    "choice": "multiple choice",
    "informed": "multiple choice, less without question",
    "rouge_l": "ROUGE-L",
    "parsed": "parse rate",
}
PAIRS = (
    (DELTA, LONGER),
    (METRIC, LONGER),
    ("delta-threshold-longer", LONGER),
    ("delta-preconditioned-longer", LONGER),
    (rivals.ONE_PILOT, "uniform-one-pilot-longer"),
    ("delta-preconditioned-one-pilot", "uniform-one-pilot-longer"),
    ("delta-threshold-short-pilot", "uniform-short-pilot-longer"),
    ("delta-preconditioned-short-pilot", "uniform-short-pilot-longer"),
    ("delta-threshold-one-pilot-longer", "uniform-longer-and-one-pilot"),
    ("delta-preconditioned-one-pilot-longer", "uniform-longer-and-one-pilot"),
    (DELTA, "lora-plus"),
    (METRIC, "lora-plus"),
    (DELTA, "rslora"),
    (METRIC, "rslora"),
    (DELTA, "eva"),
    *((arm, "peft-lora") for arm in PEFT_ARMS[1:]),
    *((DELTA, arm) for arm in PEFT_ARMS),
    *((METRIC, arm) for arm in PEFT_ARMS),
)


def facts_of(lines: Sequence[dict]) -> str:
    """Which weights, devices and parameters the lines are of."""
    results = []
    for base in dict.fromkeys(base for base, _ in SETTINGS):
        own = [line for line in lines if line["base"] == base]
        if own:
            weights = ", ".join(sorted({line["weights"] for line in own}))
            devices = ", ".join(sorted({line["device"] for line in own}))
            results.append(f"{base}: {len(own)} lines, weights {weights}, on {devices}.")
    return "\n".join(results)


def duels(lines: Sequence[dict]) -> list[str]:
    """One arm less another over the seeds that both have, p after Holm over the table."""
    found, results = Found(lines), []
    for base, task in SETTINGS:
        for budget in BUDGETS:
            for one, other in PAIRS:
                mine, theirs = (losses_of(found, base, task, arm, budget)[0] for arm in (one, other))
                seeds = sorted(set(mine) & set(theirs))
                if len(seeds) > 1:
                    gap = paired(np.array([mine[s] for s in seeds]), np.array([theirs[s] for s in seeds]))
                    results.append((base, task, budget, one, other, gap))
    adjusted = holm([gap.p for *_, gap in results])
    return [
        f"| {base}, {task} | r {budget} | {one} | {other} | {gap.mean:+.4f} ({gap.low:+.4f} .. {gap.high:+.4f}) | "
        f"{gap.seeds} | {p:.2g} |"
        for (base, task, budget, one, other, gap), p in zip(results, adjusted, strict=True)
    ]


def answered(lines: Sequence[dict]) -> list[str]:
    """Each arm's measures beyond loss less uniform's, over the seeds that both have, in hundredths; p after Holm over
    the table."""
    found, results = Found(lines), []
    by_job = {
        (line["base"], line["task"], line["arm"].partition(":")[0], line["budget"], line["rate"], line["seed"]): line
        for line in lines
        if line["part"] == "test"
    }
    for base, task in SETTINGS:
        for budget in BUDGETS:
            for arm in CONTROLS:
                against = "peft-lora" if arm in PEFT_ARMS[1:] else "uniform"
                sides = [(losses_of(found, base, task, name, budget), name) for name in (arm, against)]
                seeds = sorted(set(sides[0][0][0]) & set(sides[1][0][0]))
                if arm == against or len(seeds) < 2:
                    continue
                one, other = (
                    [by_job[base, task, name, budget, rate, seed] for seed in seeds] for (_, rate), name in sides
                )
                for measure, label in BEYOND.items():
                    if all(measure in line for line in (*one, *other)):
                        values = [np.array([100 * line[measure] for line in side]) for side in (one, other)]
                        results.append((base, task, budget, arm, against, label, values, paired(*values)))
    adjusted = holm([row[-1].p if np.isfinite(row[-1].p) else 1.0 for row in results])  # nan: equal in every seed
    return [
        f"| {base}, {task} | r {budget} | {arm} | {label} | {values[0].mean():.2f} | "
        f"{values[1].mean():.2f} ({against}) | "
        f"{gap.mean:+.2f} ({gap.low:+.2f} .. {gap.high:+.2f}) | {gap.seeds} | {p:.2g} |"
        for (base, task, budget, arm, against, label, values, gap), p in zip(results, adjusted, strict=True)
    ]


def markdown(own: Sequence[dict], known: Sequence[dict]) -> str:
    """The tables that `--print --rivals` shows. known: lines of `rivals.tuned_before`."""
    lines = [*known, *own]
    text = [facts_of(own), "", *control_table.loss_table(rows(lines))]
    text += ["", "| base, task | budget | one | other | loss - the other's (95 %) | seeds | p (Holm) |"]
    text += ["|---|---|---|---|---|---|---|", *duels(lines)]
    text += [
        "",
        "| base, task | budget | arm | measure | its, % | uniform's, % | difference (95 %) | seeds | p (Holm) |",
    ]
    text += ["|---|---|---|---|---|---|---|---|---|", *answered(lines)]
    text += ["", "Not run of what was declared (`--plan --rivals` has every job):", ""]
    text += [f"- {one}" for one in control_table.not_run(lines, rivals.STAGES)]
    return "\n".join(text)
