"""Which jobs a stage of the study holds, in the order they are run, and the lines they leave."""

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rank_study.arms import ARMS, CHALLENGERS, CONFIRMED, TUNED
from rank_study.facts import PILOT, PILOTS

BUDGETS = (2, 4, 8)  # uniform ranks whose parameters are shared out
MIDDLE = 4
RATES = (4e-3, 8e-3)  # where a grid begins; it grows at its edges
RATE_LIMITS = (1.25e-4, 6.4e-2)
RATE_SEEDS = {"smollm2": (10,), "chatglm2": (10, 11)}
SCREEN_SEEDS = (20, 21, 22, 23)
# Fresh ones, each with pilots of its own; fewer on the task where no arm is expected to matter.
CONFIRM_SEEDS = {
    ("smollm2", "medical"): tuple(range(200, 220)),
    ("chatglm2", "medical"): tuple(range(200, 220)),
    ("smollm2", "python"): tuple(range(200, 210)),
}
CURVE_RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
CURVE_SEEDS = {"smollm2": (200, 201, 202), "chatglm2": tuple(range(200, 210))}
# Jobs: what 80 GB hold, and enough to be worth a step's launches.
SIDE_BY_SIDE = {"smollm2": 18, "chatglm2": 30, "neox": 18}
STAGES = ("rates", "screen", "confirm", "curve")
SETTINGS = (("smollm2", "medical"), ("chatglm2", "medical"), ("smollm2", "python"))


class NotReadyError(Exception):
    """A stage that needs what an earlier one has not found yet."""


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


def append_lines(path: Path, text: str) -> None:
    """Put whole lines at the end of a file, also of one whose last line a killed run left unfinished."""
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        file.write(text.encode("utf-8"))


def finished(lines: Sequence[dict]) -> set[Job]:
    return {Job(**{name: line[name] for name in Job.__dataclass_fields__}) for line in lines}


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
    """The tried rate with the lowest loss at this budget; where none was tried there, at the nearest one that was.
    An arm that is not tuned for itself takes delta-threshold's."""
    arm = arm if arm in TUNED else "delta-threshold"
    for near in sorted({MIDDLE, *BUDGETS}, key=lambda other: abs(math.log(other / budget))):
        tried = rates_tried(lines, base, task, arm, near)
        if tried:
            return min(tried, key=lambda rate: (tried[rate], rate))
    raise NotReadyError(f"No rates are tuned for {arm} on {base} and {task} yet: run --stages rates first.")


def rates_wanted(lines: Sequence[dict], base: str, task: str, arm: str, budget: int) -> list[float]:
    """Rates to try: the grid, then twice or half of the best while that one is at an edge of what was tried."""
    tried = rates_tried(lines, base, task, arm, budget)
    missing = [rate for rate in RATES if rate not in tried]
    if missing:
        return missing
    best = min(tried, key=lambda rate: (tried[rate], rate))
    further = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
    return [rate for rate in further if RATE_LIMITS[0] <= rate <= RATE_LIMITS[1]]


def _refuse_open_grids(
    base: str, task: str, lines: Sequence[dict], arms: Sequence[str], budgets: Sequence[int] = BUDGETS
) -> None:
    """A rate that is the best only because nothing beyond it was tried makes a comparison of arms void."""
    for arm in arms:
        for budget in budgets:
            if wanted := rates_wanted(lines, base, task, arm, budget):
                shown = ", ".join(f"{rate:g}" for rate in wanted)
                raise NotReadyError(
                    f"The grid of rates of {arm} at r {budget} on {base} and {task} is open (next {shown}): "
                    "run --stages rates first."
                )


def screened_gaps(lines: Sequence[dict], base: str, task: str) -> dict[str, list[float]]:
    """Arm -> differences from uniform on the development part at the middle budget, over the screening's seeds."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        where = (line["base"], line["task"], line["budget"], line["part"])
        if where == (base, task, MIDDLE, "development") and line["seed"] in SCREEN_SEEDS:
            found.setdefault(line["arm"], {})[line["seed"]] = line["loss"]
    uniform = found.pop("uniform", {})
    gaps = {arm: [own[seed] - uniform[seed] for seed in sorted(set(own) & set(uniform))] for arm, own in found.items()}
    return {arm: gaps[arm] for arm in ARMS if gaps.get(arm)}


def challenger(lines: Sequence[dict]) -> str:
    """The arm that is confirmed beside the declared ones: of CHALLENGERS the one with the lowest sum, over all
    settings, of mean differences from uniform in the screening. Raises NotReadyError before that is complete."""
    totals = dict.fromkeys(CHALLENGERS, 0.0)  # infinite where a run diverged
    for base, task in SETTINGS:
        gaps = screened_gaps(lines, base, task)
        for arm in CHALLENGERS:
            if len(gaps.get(arm, ())) < len(SCREEN_SEEDS):
                raise NotReadyError(f"{arm} is not screened on {base} and {task} yet: run --stages screen first.")
            mean = sum(gaps[arm]) / len(gaps[arm])
            totals[arm] += mean if math.isfinite(mean) else math.inf
    return min(totals, key=lambda arm: totals[arm])


def _confirming(base: str, task: str, lines: Sequence[dict], arms: Sequence[str]) -> Iterator[Job]:
    for seed in CONFIRM_SEEDS[base, task]:
        for budget in BUDGETS:
            for arm in arms:
                yield Job(base, task, arm, budget, seed, best_rate(lines, base, task, arm, budget), "test")


def jobs_of(stage: str, base: str, task: str, lines: Sequence[dict]) -> Iterator[Job]:
    """The jobs of a stage that can be told from these lines, done or not; NotReadyError where none can.

    rates: every tuned arm at each budget on the development part; ask again when they are done, until no grid's best is
    at its edge. screen: every arm, four seeds, development. confirm: the declared arms, then the challenger once it is
    known, fresh seeds, three budgets, test, seed by seed so that a cut leaves pairs whole. curve: uniform over ranks on
    the same test part."""
    if stage == "rates":
        for budget in (MIDDLE, *(other for other in BUDGETS if other != MIDDLE)):
            for arm in TUNED if budget == MIDDLE else CONFIRMED:  # others are screened at the middle budget only
                for rate in rates_wanted(lines, base, task, arm, budget):
                    for seed in RATE_SEEDS[base]:
                        yield Job(base, task, arm, budget, seed, rate, "development")
    elif stage == "screen":
        _refuse_open_grids(base, task, lines, TUNED, (MIDDLE,))
        for arm in ARMS:  # not seed by seed: so one group alone waits for the pilots of other lengths
            for seed in SCREEN_SEEDS:
                yield Job(base, task, arm, MIDDLE, seed, best_rate(lines, base, task, arm, MIDDLE), "development")
    elif stage == "confirm":
        _refuse_open_grids(base, task, lines, CONFIRMED)
        yield from _confirming(base, task, lines, CONFIRMED)
        try:
            arm = challenger(lines)
        except NotReadyError:
            return
        yield from _confirming(base, task, lines, (arm,))
    else:
        _refuse_open_grids(base, task, lines, ("uniform",))
        for seed in CURVE_SEEDS[base]:
            for rank in CURVE_RANKS:
                yield Job(base, task, "uniform", rank, seed, best_rate(lines, base, task, "uniform", rank), "test")


def open_jobs(stage: str, base: str, task: str, lines: Sequence[dict]) -> list[Job]:
    done = finished(lines)
    return [job for job in jobs_of(stage, base, task, lines) if job not in done]


def in_order(settings: Sequence[tuple[str, str]], stages: Sequence[str]) -> list[tuple[str, str, str]]:
    """(stage, base, task) as they are taken up: what a claim needs of all settings first, then setting by setting."""
    wanted = [(stage, *setting) for stage in STAGES[:2] for setting in settings]
    wanted += [(stage, *setting) for setting in settings for stage in STAGES[2:]]
    return [one for one in wanted if one[0] in stages]


def next_group(
    wanted: Sequence[tuple[str, str, str]], lines: Sequence[dict], running: Container[Job], sizes: Mapping[str, int]
) -> list[Job]:
    """The next jobs to run side by side, at most `sizes` of the base; empty where all that is open runs already."""
    for stage, base, task in wanted:
        try:
            todo = [job for job in open_jobs(stage, base, task, lines) if job not in running]
        except NotReadyError:
            continue
        if todo:
            return todo[: sizes[base]]
    return []


def seconds_of_job(lines: Sequence[dict], base: str, steps: int) -> float | None:
    """What a job takes among others, by the last line of this base that ran so; None where there is none."""
    known = [line for line in lines if line["base"] == base and line["jobs_in_group"] > 1]
    if not known:
        return None
    last = known[-1]
    return last["seconds_of_group"] / last["jobs_in_group"] * steps / last["steps"]


def plan(lines: Sequence[dict], steps: int) -> str:
    """Open jobs of every setting and stage with the minutes they should take on one device, as lines of text.

    Of the rates only what is known to be wanted now; a stage that needs what is not found yet says so.
    """
    results = []
    for base, task in SETTINGS:
        for stage in STAGES:
            try:
                jobs = open_jobs(stage, base, task, lines)
            except NotReadyError as error:
                results.append(f"{base} {task} {stage}: {error}")
                continue
            each = seconds_of_job(lines, base, steps)
            runs = float(len(jobs))
            if stage == "confirm":  # each seed has pilots of its own
                runs += len({job.seed for job in jobs}) * PILOTS * PILOT / steps
            minutes = "unknown time" if each is None else f"about {each * runs / 60:.0f} min"
            results.append(f"{base} {task} {stage}: {len(jobs)} jobs, {minutes}")
    return "\n".join(results)


def line_of(job: Job, **measured) -> str:
    return json.dumps({**asdict(job), **measured}) + "\n"
