"""Which jobs the controls and the portfolio hold; their lines have a file of their own, `results/controls.jsonl`.

Declared here before the first of them was run: settings, budgets, arms, seeds, grids, the portfolio's two tests, and
the order in which time is spent. The bases chatglm2 and neox are pre-trained anew where they are run, so that lines are
compared within one file only.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rank_study.control_arms import (
    BY_MATRIX,
    CUT,
    CUT_CONTINUED,
    DELTA,
    MENU,
    METRIC,
    ONE_MATRIX,
    PEFT_ARMS,
    control_of,
)
from rank_study.plan import Job, NotReadyError, finished

SETTINGS = (
    ("smollm2", "medical"),
    ("chatglm2", "medical"),
    ("neox", "medical"),
    ("smollm2", "python"),
    ("neox", "python"),
)
RATE_SEEDS = (12, 13)
SEEDS = tuple(range(300, 310))  # fresh ones, each with pilots of its own
STEP = math.sqrt(2)
GRIDS = {  # where a grid of rates begins; it grows by STEP while its best is at an edge
    "smollm2": (4e-3, 4e-3 * STEP, 8e-3),
    "chatglm2": (8e-3 / STEP, 8e-3, 8e-3 * STEP),
    "neox": (4e-3, 4e-3 * STEP, 8e-3),
}
GRID_OF = {"peft-pissa": (1e-3, 1e-3 * STEP, 2e-3)}  # where an arm's begins elsewhere, on every base
LIMITS = (1e-3, 4.6e-2)
LOWEST = {"peft-pissa": 1e-4}
CUTS = (CUT, CUT_CONTINUED)
STEP_SIZE = (
    "uniform",
    DELTA,
    "uniform-at-delta-steps",
    "delta-constant-alpha",
    "delta-sqrt-alpha",
    "uniform-on-delta-modules",
)
METRIC_STEP_SIZE = (
    METRIC,
    "uniform-at-preconditioned-steps",
    "preconditioned-constant-alpha",
    "preconditioned-sqrt-alpha",
    "uniform-on-preconditioned-modules",
)
COMPARED = ("uniform", DELTA, "type-alone", METRIC)  # what the portfolio is held against
LONG = ("uniform-longer", "uniform-one-pilot-longer", "delta-threshold-longer")
# Of twice the steps: what is left of the gain, and whether one pilot before it pays.
LATER = (
    "delta-preconditioned-one-pilot",
    "delta-preconditioned-longer",
    "delta-threshold-one-pilot-longer",
    "delta-preconditioned-one-pilot-longer",
    "uniform-longer-and-one-pilot",
)
SHORT_PILOT = ("delta-threshold-short-pilot", "delta-preconditioned-short-pilot", "uniform-short-pilot-longer")
RIVALS = ("lora-plus", "rslora", "eva")
PLACED = ("plop-lowest", "plop-highest")
CRITERIA = ("delta-output", "delta-second-order", "delta-consensus")
# Arms whose rates are tuned for themselves; the menu's other criteria take delta-threshold's.
TUNED = (
    *STEP_SIZE,
    *METRIC_STEP_SIZE,
    "type-alone",
    *LONG,
    "delta-preconditioned-longer",
    "uniform-longer-and-one-pilot",
    "uniform-short-pilot-longer",
    *RIVALS,
    *PLACED,
    BY_MATRIX,
    *PEFT_ARMS,
    *CUTS,
)
FACTORS = (0.5, 2.0)  # of the rate of one matrix type
FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
MATRICES = {
    "smollm2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "chatglm2": FUSED,
    "neox": FUSED,
}
PEFT_TOGETHER = 3  # jobs of a group that is run one by one
TESTS = ("truncated", "tournament")  # of the portfolio; losses on the development part
TOURNAMENT = 60  # steps


@dataclass(frozen=True)
class Stage:
    """name: what its jobs are for. arms: whose. budgets: uniform ranks. tier: all stages of a lower one come first.
    seeds: of the test part."""

    name: str
    base: str
    task: str
    arms: tuple[str, ...]
    budgets: tuple[int, ...]
    tier: int
    seeds: tuple[int, ...] = SEEDS


def _stages() -> Iterator[Stage]:
    """What was left open of them at the end is declared anew in `rivals`, but for what goes on with these lines."""
    for base in ("smollm2", "chatglm2"):
        more = METRIC_STEP_SIZE if base == "chatglm2" else ()
        yield Stage("controls", base, "medical", (*STEP_SIZE, *more), (4,), 1)
        yield Stage("cut", base, "medical", CUTS, (4, 2), 1)
        yield Stage("controls", base, "medical", COMPARED, (4,), 2)
        yield Stage("portfolio", base, "medical", MENU, (4,), 2)
    yield Stage("controls", "neox", "medical", COMPARED, (4,), 1)
    yield Stage("controls", "neox", "medical", COMPARED, (2,), 1)
    yield Stage("portfolio", "neox", "medical", MENU, (4, 2), 2)


STAGES = tuple(_stages())


def way_of(job: Job) -> str:
    """Jobs of one way may share a group: 'cut', 'peft', a test of the portfolio, or the length of the training."""
    if job.part in TESTS:
        return job.part
    if job.arm in PEFT_ARMS:
        return "peft"
    return "cut" if job.arm in CUTS else f"{control_of(job.arm).lengths:g}"


class Found:
    """What lines say, by setting, arm, budget and part: (rate, seed) -> loss, infinite where a run diverged."""

    def __init__(self, lines: Sequence[dict]):
        self.jobs = finished(lines)
        self._losses: dict[tuple[object, ...], dict[tuple[float, int], float]] = {}
        for line in lines:
            arm = BY_MATRIX if line["arm"].startswith(f"{BY_MATRIX}:") else line["arm"]
            where = (line["base"], line["task"], arm, line["budget"], line["part"])
            loss = line["loss"] if math.isfinite(line["loss"]) else math.inf
            self._losses.setdefault(where, {})[line["rate"], line["seed"]] = loss

    def losses(self, base: str, task: str, arm: str, budget: int, part: str) -> Mapping[tuple[float, int], float]:
        return self._losses.get((base, task, arm, budget, part), {})


def tried(found: Found, base: str, task: str, arm: str, budget: int) -> dict[float, float]:
    """Rate -> mean loss on the development part over RATE_SEEDS, for rates that all of them have."""
    losses: dict[float, list[float]] = {}
    for (rate, seed), loss in found.losses(base, task, arm, budget, "development").items():
        if seed in RATE_SEEDS:
            losses.setdefault(rate, []).append(loss)
    return {rate: sum(own) / len(own) for rate, own in losses.items() if len(own) == len(RATE_SEEDS)}


def wanted_rates(found: Found, base: str, task: str, arm: str, budget: int) -> list[float]:
    """Rates still to try: the grid, then a step beyond its best while that is at an edge; empty where it is closed."""
    losses = tried(found, base, task, arm, budget)
    if missing := [rate for rate in GRID_OF.get(arm, GRIDS[base]) if rate not in losses]:
        return missing
    best = min(losses, key=lambda rate: (losses[rate], rate))
    beyond = [best / STEP] if best == min(losses) else [best * STEP] if best == max(losses) else []
    return [float(f"{rate:.6g}") for rate in beyond if LOWEST.get(arm, LIMITS[0]) <= rate <= LIMITS[1]]


def best_rate(found: Found, base: str, task: str, arm: str, budget: int) -> float:
    """The rate with the lowest loss; NotReadyError while the grid is open. Fewer or shorter pilots take
    the rate of three; what is not tuned for itself otherwise takes delta-threshold's."""
    arm = arm.replace("-one-pilot", "").replace("-short-pilot", "") if arm.startswith("delta-") else arm
    arm = arm if arm in TUNED else DELTA
    if wanted_rates(found, base, task, arm, budget):
        raise NotReadyError(f"the rates of {arm} at r {budget} on {base} and {task} are not tuned yet")
    losses = tried(found, base, task, arm, budget)
    return min(losses, key=lambda rate: (losses[rate], rate))


def jobs_of(stage: Stage, found: Found) -> Iterator[Job]:
    """Jobs of a stage that these lines allow: an arm is tested as soon as its own grid is closed.

    controls and cut: rates on the development part, then every seed on the test part. portfolio: both tests of the
    whole menu, then on the test part whatever a test picked.
    """
    base, task = stage.base, stage.task
    if stage.name == "portfolio":
        yield from _portfolio(stage, found)
        return
    for budget in stage.budgets:
        for arm in stage.arms:
            if arm == BY_MATRIX:
                yield from _probes(found, base, task, budget)
            if (name := name_of(found, base, task, arm, budget)) is None:
                continue
            for rate in wanted_rates(found, base, task, arm, budget) if arm in TUNED else []:
                for seed in RATE_SEEDS:
                    yield Job(base, task, name, budget, seed, rate, "development")
    for seed in stage.seeds:
        for budget in stage.budgets:
            for arm in stage.arms:
                try:
                    rate = best_rate(found, base, task, arm, budget)
                except NotReadyError:
                    continue
                name = name_of(found, base, task, arm, budget) or arm
                yield Job(base, task, name, budget, seed, rate, "test")


def _probes(found: Found, base: str, task: str, budget: int) -> Iterator[Job]:
    """Uniform at its own best rate, with that of one matrix type multiplied by each of FACTORS."""
    try:
        rate = best_rate(found, base, task, "uniform", budget)
    except NotReadyError:
        return
    for matrix in MATRICES[base]:
        for factor in FACTORS:
            for seed in RATE_SEEDS:
                yield Job(base, task, f"{ONE_MATRIX}:{matrix}={factor:g}", budget, seed, rate, "development")


def name_of(found: Found, base: str, task: str, arm: str, budget: int) -> str | None:
    """An arm's name in its lines; of BY_MATRIX with the factor of each matrix type that did best alone, None while one
    of them is not known."""
    if arm != BY_MATRIX:
        return arm
    try:
        rate = best_rate(found, base, task, "uniform", budget)
    except NotReadyError:
        return None
    chosen = []
    for matrix in MATRICES[base]:
        losses = {1.0: tried(found, base, task, "uniform", budget)[rate]}
        for factor in FACTORS:
            own = tried(found, base, task, f"{ONE_MATRIX}:{matrix}={factor:g}", budget)
            if rate not in own:
                return None
            losses[factor] = own[rate]
        chosen.append(f"{matrix}={min(losses, key=lambda factor: losses[factor]):g}")
    return f"{BY_MATRIX}:{','.join(chosen)}"


def _portfolio(stage: Stage, found: Found) -> Iterator[Job]:
    base, task = stage.base, stage.task
    for test in TESTS:
        for budget in stage.budgets:
            try:
                rates = {arm: best_rate(found, base, task, arm, budget) for arm in stage.arms}
            except NotReadyError:
                continue
            for seed in stage.seeds:
                for arm in stage.arms:
                    yield Job(base, task, arm, budget, seed, rates[arm], test)
            for seed in stage.seeds:
                if (arm := picked(found, base, task, budget, seed, test)) is not None:
                    yield Job(base, task, arm, budget, seed, rates[arm], "test")


def picked(found: Found, base: str, task: str, budget: int, seed: int, test: str) -> str | None:
    """The arm of MENU with the lowest loss in a test; None while one of them is not tested."""
    losses: dict[str, float] = {}
    for arm in MENU:
        own = [loss for (_, of), loss in found.losses(base, task, arm, budget, test).items() if of == seed]
        if not own:
            return None
        losses[arm] = own[-1]
    return min(MENU, key=lambda arm: losses[arm])


def open_jobs(stage: Stage, found: Found) -> list[Job]:
    return list(dict.fromkeys(job for job in jobs_of(stage, found) if job not in found.jobs))


def next_group(
    bases: Container[str],
    lines: Sequence[dict],
    running: Sequence[Sequence[Job]],
    failed: Container[Job],
    sizes: Mapping[str, int],
    stages: Sequence[Stage] = STAGES,
) -> list[Job]:
    """The next jobs to run side by side: of the lowest tier, there of the setting that runs on the fewest devices.

    bases: those that are there. running: groups under way.
    """
    found = Found(lines)
    groups = [(group[0].base, group[0].task) for group in running]
    taken = {job for group in running for job in group}
    for stage in sorted(stages, key=lambda stage: (stage.tier, groups.count((stage.base, stage.task)))):
        if stage.base not in bases:
            continue
        todo = [job for job in open_jobs(stage, found) if job not in taken and job not in failed]
        if todo:
            return side_by_side(todo, sizes[stage.base])
    return []


def side_by_side(todo: Sequence[Job], size: int) -> list[Job]:
    """The first job and others of its way, until their trainings are `size`."""
    chosen, trainings = [], set()
    way = way_of(todo[0])
    size = PEFT_TOGETHER if way == "peft" else size
    for job in todo:
        if way_of(job) != way:
            continue
        one = training_of(job)
        if one not in trainings and len(trainings) == size:
            continue
        trainings.add(one)
        chosen.append(job)
    return chosen


def training_of(job: Job) -> tuple[object, ...]:
    """What jobs share that come from one training."""
    way = way_of(job)
    if way == "cut":
        return (job.seed, job.rate, job.part)
    return (job.seed,) if way == "truncated" else (job,)


def plan(lines: Sequence[dict], stages: Sequence[Stage] = STAGES) -> str:
    """What is done and what is open of each stage, as lines of text."""
    found, said = Found(lines), []
    for stage in stages:
        jobs = set(jobs_of(stage, found))
        budgets = ", ".join(f"r {budget}" for budget in stage.budgets)
        said.append(
            f"{stage.base} {stage.task} {stage.name} ({budgets}: {', '.join(stage.arms)}): "
            f"{len(jobs & found.jobs)} done, {len(jobs - found.jobs)} open of those known by now"
        )
    return "\n".join(said)
