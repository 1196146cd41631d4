"""Which jobs a stage of the study holds, in the order they are run, and the lines they leave."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rank_study.arms import ARMS, CONFIRMED, PILOT, PILOTS, TUNED

BUDGETS = (2, 4, 8)  # uniform ranks whose parameters are shared out
MIDDLE = 4
RATES = {"smollm2": (4e-3, 8e-3), "chatglm2": (2e-3, 4e-3, 8e-3)}  # where a grid begins; it grows at its edges
RATE_LIMITS = (1.25e-4, 6.4e-2)
RATE_SEEDS = {"smollm2": (10,), "chatglm2": (10, 11)}
# Seeds 100 to 109 were run while the grids of rates ended at the best rate: they are shown until the fresh ones are
# there, which were not looked at before.
FIRST_SEEDS = tuple(range(100, 110))
CONFIRM_SEEDS = tuple(range(200, 210))
SCREEN_SEEDS = (20, 21)
CURVE_RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
CURVE_SEEDS = (200, 201, 202)
SETTINGS = (("smollm2", "medical"), ("chatglm2", "medical"), ("smollm2", "python"))


@dataclass(frozen=True)
class Job:
    """One training run. budget: the uniform rank whose parameters it may use. part: what its loss is taken on."""

    base: str
    task: str
    arm: str
    budget: int
    seed: int
    rate: float
    part: str

    @property
    def key(self) -> tuple:
        return (self.base, self.task, self.arm, self.budget, self.seed, self.rate, self.part)


def read_lines(path: Path) -> list[dict]:
    """Lines of finished jobs; a last line that a killed run left unfinished is passed over."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def finished(lines: list[dict]) -> set[tuple]:
    return {Job(**{name: line[name] for name in Job.__dataclass_fields__}).key for line in lines}


def rates_tried(lines: Sequence[dict], base: str, task: str, arm: str, budget: int) -> dict[float, float]:
    """Rate -> mean loss on the development part over the seeds of tuning; infinity where a run diverged.

    A rate that a killed run left without some of its seeds is not tried yet."""
    losses: dict[float, dict[int, float]] = {}
    for line in lines:
        found = (line["base"], line["task"], line["arm"], line["budget"], line["part"])
        if found == (base, task, arm, budget, "development") and line["seed"] in RATE_SEEDS[base]:
            loss = line["loss"] if math.isfinite(line["loss"]) else math.inf
            losses.setdefault(line["rate"], {})[line["seed"]] = loss
    whole = {rate: own for rate, own in losses.items() if len(own) == len(RATE_SEEDS[base])}
    return {rate: sum(own.values()) / len(own) for rate, own in whole.items()}


def best_rate(lines: Sequence[dict], base: str, task: str, arm: str, budget: int) -> float:
    """The tried rate with the lowest loss at this budget; where none was tried there, at the nearest one that was."""
    for near in sorted({MIDDLE, *BUDGETS}, key=lambda other: abs(math.log(other / budget))):
        tried = rates_tried(lines, base, task, arm, near)
        if tried:
            return min(tried, key=lambda rate: (tried[rate], rate))
    raise SystemExit(f"No rates are tuned for {arm} on {base} and {task} yet: run --stage rates first.")


def rates_wanted(lines: Sequence[dict], base: str, task: str, arm: str, budget: int) -> list[float]:
    """Rates to try: the grid, then twice or half of the best while that one is at an edge of what was tried."""
    tried = rates_tried(lines, base, task, arm, budget)
    missing = [rate for rate in RATES[base] if rate not in tried]
    if missing:
        return missing
    best = min(tried, key=lambda rate: (tried[rate], rate))
    further = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
    return [rate for rate in further if RATE_LIMITS[0] <= rate <= RATE_LIMITS[1]]


def _refuse_open_grids(base: str, task: str, lines: Sequence[dict], arms: Sequence[str]) -> None:
    """A rate that is the best only because nothing beyond it was tried makes a comparison of arms void."""
    for arm in arms:
        for budget in BUDGETS:
            if wanted := rates_wanted(lines, base, task, arm, budget):
                shown = ", ".join(f"{rate:g}" for rate in wanted)
                raise SystemExit(
                    f"The grid of rates of {arm} at r {budget} on {base} and {task} is open (next {shown}): "
                    "run --stage rates first."
                )


def jobs_of(stage: str, base: str, task: str, lines: Sequence[dict]) -> Iterator[Job]:
    """The jobs of a stage, done or not.

    rates: every tuned arm at each budget on the development part; ask again when they are done, until no grid's best is
    at its edge. screen: every arm, two seeds, development. confirm: the declared arms, ten fresh seeds, three budgets,
    test, seed by seed so that a cut leaves pairs whole. curve: uniform over ranks on the same test part."""
    if stage == "rates":
        for budget in (MIDDLE, *(other for other in BUDGETS if other != MIDDLE)):
            for arm in TUNED if budget == MIDDLE else CONFIRMED:  # others are screened at the middle budget only
                for rate in rates_wanted(lines, base, task, arm, budget):
                    for seed in RATE_SEEDS[base]:
                        yield Job(base, task, arm, budget, seed, rate, "development")
    elif stage == "screen":
        for seed in SCREEN_SEEDS:
            for arm in ARMS:
                rate = best_rate(lines, base, task, arm if arm in TUNED else "delta-threshold", MIDDLE)
                yield Job(base, task, arm, MIDDLE, seed, rate, "development")
    elif stage == "confirm":
        _refuse_open_grids(base, task, lines, CONFIRMED)
        for seed in CONFIRM_SEEDS:
            for budget in BUDGETS:
                for arm in CONFIRMED:
                    yield Job(base, task, arm, budget, seed, best_rate(lines, base, task, arm, budget), "test")
    elif stage == "curve":
        _refuse_open_grids(base, task, lines, ("uniform",))
        for seed in CURVE_SEEDS:
            for rank in CURVE_RANKS:
                yield Job(base, task, "uniform", rank, seed, best_rate(lines, base, task, "uniform", rank), "test")
    else:
        raise SystemExit(f"Unknown stage {stage}: rates, screen, confirm or curve.")


def groups_of(stage: str, base: str, task: str, lines: Sequence[dict], size: int) -> list[list[Job]]:
    """What is open of a stage, `size` jobs at a time."""
    done = finished(list(lines))
    todo = [job for job in jobs_of(stage, base, task, lines) if job.key not in done]
    return [todo[start : start + size] for start in range(0, len(todo), size)]


def seconds_of_group(lines: Sequence[dict], base: str, jobs: int, steps: int) -> float | None:
    """What a group takes, by the last line of this base that was run in a full group; None where there is none."""
    known = [line for line in lines if line["base"] == base and line["jobs_in_group"] > 1]
    if not known:
        return None
    last = known[-1]
    return last["seconds_of_group"] * jobs / last["jobs_in_group"] * steps / last["steps"]


def plan(lines: Sequence[dict], size: int, steps: int) -> str:
    """Open groups of every setting and stage with the minutes they should take, as lines of text.

    Of the rates only what is known to be wanted now; a stage that needs rates not tuned yet says so.
    """
    told = []
    for base, task in SETTINGS:
        for stage in ("rates", "screen", "confirm", "curve"):
            try:
                groups = groups_of(stage, base, task, lines, size)
            except SystemExit as error:
                told.append(f"{base} {task} {stage}: {error}")
                continue
            jobs = sum(len(group) for group in groups)
            each = seconds_of_group(lines, base, size, steps)
            runs = float(jobs)
            if stage == "confirm":  # each seed has pilots of its own
                runs += len({job.seed for group in groups for job in group}) * PILOTS * PILOT / steps
            minutes = "unknown time" if each is None else f"about {each * runs / size / 60:.0f} min"
            told.append(f"{base} {task} {stage}: {len(groups)} groups, {jobs} jobs, {minutes}")
    return "\n".join(told)


def line_of(job: Job, **measured) -> str:
    return json.dumps({**asdict(job), **measured}) + "\n"
