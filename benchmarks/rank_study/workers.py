"""Runs what is open of the study: one process a device, groups of jobs side by side, one writer of the lines."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from rank_study import controls, rivals
from rank_study.bases import Base, load_chatglm2, load_smollm2, pretrain_chatglm2
from rank_study.beyond import Beyond, beyond_of, measure
from rank_study.control_arms import CONTROLS, CUT_CONTINUED, CUT_MORE, CUT_RANK, control_of, rates_by_matrix
from rank_study.cutting import keep_leading, ranks_over_threshold, singular_directions
from rank_study.facts import PILOT, Facts, pilot_seeds_of, train_further, train_jobs
from rank_study.many_adapters import ManyAdapters
from rank_study.moving_ranks import movers_of
from rank_study.peft_arms import run_peft
from rank_study.plan import BUDGETS, CONFIRM_SEEDS, SIDE_BY_SIDE, Job, append_lines, line_of, next_group, read_lines
from rank_study.tasks import Rows, encode, medical_pairs, python_bodies, split
from rank_study.third_base import load_neox, pretrain_neox

PRETRAINED = {"chatglm2": pretrain_chatglm2, "neox": pretrain_neox}
PILOT_RANK = 3 * max(BUDGETS)  # three times the largest mean rank, so that the pilot itself cuts nothing off


@dataclass(frozen=True)
class Settings:
    """work: folder of the pre-trained base and of the pilots. medical: JSON Lines with context and target. gguf: the
    file of smollm2, absent: the package's. batch: rows a job and step. held_out: rows of each of development
    and test. beyond: whether runs of the test part are measured beyond their loss."""

    work: Path
    medical: Path | None
    gguf: Path | None
    steps: int
    batch: int
    held_out: int
    pilot_rate: float
    pretrain_steps: Mapping[str, int] = field(default_factory=lambda: {"chatglm2": 3000, "neox": 2000})
    beyond: bool = False


def rows_of(base: Base, task: str, medical: Path | None, held_out: int) -> dict[str, Rows]:
    pairs = pairs_of(task, medical, held_out).items()
    return {name: encode(part, base.tokens, base.prefix, base.eos, base.length) for name, part in pairs}


def pairs_of(task: str, medical: Path | None, held_out: int) -> dict[str, list[tuple[str, str]]]:
    """Question and answer of the rows of each part."""
    pairs = python_bodies() if task == "python" else medical_pairs(medical)
    return dict(zip(("train", "development", "test"), split(pairs, held_out), strict=True))


def run_group(
    base: Base,
    rows: dict[str, Rows],
    facts: Facts,
    jobs: Sequence[Job],
    steps: int,
    batch: int,
    beyond: Beyond | None = None,
) -> str:
    """Train jobs of one setting and one length side by side and measure each on its part; a line for each.

    beyond: measured too, of jobs of the test part, where it is given.
    """
    device = str(next(base.model.parameters()).device)
    budgets = [job.budget * sum(target.cost for target in facts.targets) for job in jobs]
    arms = [control_of(job.arm) for job in jobs]
    ranks = [arm.ranks(facts, budget, job.seed) for arm, job, budget in zip(arms, jobs, budgets, strict=True)]
    factors = [
        arm.factors(facts, budget, job.seed, own) if arm.factors else {}
        for arm, job, budget, own in zip(arms, jobs, budgets, ranks, strict=True)
    ]
    starts: dict[str, dict[int, torch.Tensor]] = {}
    for number, job in enumerate(jobs):
        if job.arm == "eva":
            for name in base.modules:
                starts.setdefault(name, {})[number] = facts.inputs.directions[name]
    steps = controls.TOURNAMENT if jobs[0].part == "tournament" else round(steps * arms[0].lengths)
    movers = movers_of([job.arm for job in jobs], budgets, facts.targets, steps)
    started = time.perf_counter()
    rates, seeds, ups = [job.rate for job in jobs], [job.seed for job in jobs], [arm.up_rate for arm in arms]
    multipliers = [rates_by_matrix(job.arm, facts) for job in jobs]
    adapters = train_jobs(
        base, rows["train"], ranks, rates, seeds, steps, batch, starts, movers, factors, ups, multipliers
    )
    try:
        kept = [ranks_kept(adapters, number) for number in range(len(jobs))]
        parts = {job.part for job in jobs}
        losses = {part: adapters.evaluate(rows_of_part(rows, part).batches(batch, device)).tolist() for part in parts}
        answered = beyond is not None and "test" in parts
        said = measure(adapters, base, beyond, rows["test"], batch) if answered else [{} for _ in jobs]
    finally:
        adapters.remove()
    more = [one if job.part == "test" else {} for one, job in zip(said, jobs, strict=True)]
    own = [losses[job.part][number] for number, job in enumerate(jobs)]
    return told_lines(base, facts, jobs, own, kept, steps, time.perf_counter() - started, more)


def rows_of_part(rows: Mapping[str, Rows], part: str) -> Rows:
    """The rows of a job's part; the portfolio's tests are taken on the development part."""
    return rows["development" if part in controls.TESTS else part]


def ranks_kept(adapters: ManyAdapters, number: int) -> dict[str, int]:
    """Module -> rank of a job."""
    return {name: int(adapters.kept(name)[number].sum()) for name in adapters.layers}


def told_lines(
    base: Base,
    facts: Facts,
    jobs: Sequence[Job],
    losses: Sequence[float],
    ranks: Sequence[Mapping[str, int]],
    steps: int,
    seconds: float,
    more: Sequence[Mapping[str, float]] | None = None,
) -> str:
    """A line for each job of a group. ranks: module -> rank of each. seconds: of the whole group. more: measures of
    each."""
    cost = {target.module: target.cost for target in facts.targets}
    device = next(base.model.parameters()).device
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return "".join(
        line_of(
            job,
            loss=loss,
            parameters=sum(rank * cost[name] for name, rank in own.items()),
            adapted=sum(rank > 0 for rank in own.values()),
            largest_rank=max(own.values()),
            weights=base.digest,
            steps=steps,
            seconds_of_group=round(seconds, 2),
            jobs_in_group=len(jobs),
            device=card,
            **extra,
        )
        for job, loss, own, extra in zip(jobs, losses, ranks, more or [{}] * len(jobs), strict=True)
    )


def run_cut(base: Base, rows: dict[str, Rows], facts: Facts, jobs: Sequence[Job], steps: int, batch: int) -> str:
    """Train uniform adapters of rank CUT_RANK, one for each seed and rate; cut each to the budgets of its jobs by one
    global threshold; measure, or train CUT_MORE steps more and then measure."""
    device, started = str(next(base.model.parameters()).device), time.perf_counter()
    trainings = list(dict.fromkeys(controls.training_of(job) for job in jobs))
    first = [next(job for job in jobs if controls.training_of(job) == one) for one in trainings]
    seeds, rates = [job.seed for job in first], [job.rate for job in first]
    ranks = [dict.fromkeys(base.modules, CUT_RANK)] * len(first)
    whole = sum(target.cost for target in facts.targets)  # read before adapters stand in the layers' places
    adapters = train_jobs(base, rows["train"], ranks, rates, seeds, steps, batch)
    losses, kept = [0.0] * len(jobs), [dict[str, int]()] * len(jobs)
    try:
        sizes, factors = singular_directions(adapters, range(len(first)))
        for budget, part, arm in dict.fromkeys((job.budget, job.part, job.arm) for job in jobs):
            own = [ranks_over_threshold(facts.targets, size, budget * whole) for size in sizes]
            for number, cut in enumerate(own):
                keep_leading(adapters, number, factors[number], cut)
            if arm == CUT_CONTINUED:
                train_further(adapters, rows["train"], [seed + 5000 for seed in seeds], CUT_MORE, batch)
            found = adapters.evaluate(rows[part].batches(batch, device)).tolist()
            for number, job in enumerate(jobs):
                if (job.budget, job.part, job.arm) == (budget, part, arm):
                    one = trainings.index(controls.training_of(job))
                    losses[number], kept[number] = found[one], own[one]
    finally:
        adapters.remove()
    return told_lines(base, facts, jobs, losses, kept, steps, time.perf_counter() - started)


def run_truncated(base: Base, rows: dict[str, Rows], facts: Facts, jobs: Sequence[Job], steps: int, batch: int) -> str:
    """The portfolio's test without training: one of each seed's pilots is cut to the ranks of an arm, and its loss on
    the development part taken."""
    device, started = str(next(base.model.parameters()).device), time.perf_counter()
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    ranks = [dict.fromkeys(base.modules, facts.rank)] * len(seeds)
    pilots = [pilot_seeds_of(seed)[0] for seed in seeds]
    whole = sum(target.cost for target in facts.targets)
    tests = {  # what arms look at is measured before the pilots stand on the model
        (arm, budget): [CONTROLS[arm].ranks(facts, budget * whole, seed) for seed in seeds]
        for arm, budget in dict.fromkeys((job.arm, job.budget) for job in jobs)
    }
    adapters = train_jobs(base, rows["train"], ranks, [facts.rate] * len(seeds), pilots, PILOT, batch)
    losses, kept = [0.0] * len(jobs), [dict[str, int]()] * len(jobs)
    try:
        _, factors = singular_directions(adapters, range(len(seeds)))
        for (arm, budget), own in tests.items():
            for number, cut in enumerate(own):
                keep_leading(adapters, number, factors[number], cut)
            found = adapters.evaluate(rows["development"].batches(batch, device)).tolist()
            for number, job in enumerate(jobs):
                if (job.arm, job.budget) == (arm, budget):
                    losses[number], kept[number] = found[seeds.index(job.seed)], own[seeds.index(job.seed)]
    finally:
        adapters.remove()
    return told_lines(base, facts, jobs, losses, kept, PILOT, time.perf_counter() - started)


class Worker:
    """What one process keeps between groups: bases, encoded rows, facts."""

    def __init__(self, device: str, settings: Settings):
        self.device, self.settings = device, settings
        self.prepared: dict[tuple[str, str], tuple[dict[str, Rows], Facts, Beyond | None]] = {}

    @cached_property
    def smollm2(self) -> Base:
        return load_smollm2(self.device, self.settings.gguf)

    @cached_property
    def chatglm2(self) -> Base:
        return load_chatglm2(self.device, self.settings.work / "chatglm2")

    @cached_property
    def neox(self) -> Base:
        return load_neox(self.device, self.settings.work / "neox")

    def pretrain(self, base: str) -> str:
        """Pre-train a base that is not there yet."""
        steps = self.settings.pretrain_steps[base]
        PRETRAINED[base](self.settings.work / base, self.device, steps)
        torch.cuda.empty_cache()
        return ""

    def run(self, jobs: Sequence[Job]) -> str:
        own, setting = self.settings, (jobs[0].base, jobs[0].task)
        base: Base = getattr(self, jobs[0].base)
        if setting not in self.prepared:
            rows = rows_of(base, jobs[0].task, own.medical, own.held_out)
            facts = Facts(
                base, rows["train"], jobs[0].task, own.work, own.pilot_rate, PILOT_RANK, own.batch,
                own_pilots=(*CONFIRM_SEEDS.get(setting, ()), *controls.SEEDS, *rivals.SEEDS),
            )  # fmt: skip
            pairs = pairs_of(jobs[0].task, own.medical, own.held_out)["test"] if own.beyond else []
            self.prepared[setting] = rows, facts, beyond_of(base, jobs[0].task, pairs) if own.beyond else None
        rows, facts, beyond = self.prepared[setting]
        try:
            way = controls.way_of(jobs[0])
            if way in ("cut", "truncated"):
                return (run_cut if way == "cut" else run_truncated)(base, rows, facts, jobs, own.steps, own.batch)
            if way == "peft":
                return run_peft(base, rows, jobs, own.steps, own.batch, beyond)
            return run_group(base, rows, facts, jobs, own.steps, own.batch, beyond)
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise
        torch.cuda.empty_cache()  # outside of the handler, whose traceback holds the tensors
        half = len(jobs) // 2
        return self.run(jobs[:half]) + self.run(jobs[half:])


def serve(number: int, device: str, threads: int, settings: Settings, tasks, results) -> None:
    """Run groups from `tasks` until there is None; a name is a base to pre-train. Of each (number, lines, error,
    whether it goes on) to `results`."""
    torch.set_num_threads(threads)  # together the processes have one a core: more would wait for each other
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    worker = Worker(device, settings)
    while (jobs := tasks.get()) is not None:
        try:
            lines = worker.pretrain(jobs) if isinstance(jobs, str) else worker.run(jobs)
            results.put((number, lines, "", True))
        except SystemExit as error:  # the parent tells it, and goes on with the other groups
            results.put((number, "", str(error), True))
        except Exception:
            results.put((number, "", traceback.format_exc(), False))
            raise  # a device in trouble would fail every group that is left


Work = list[Job] | str  # jobs that run side by side, or a base to pre-train
Choose = Callable[[Sequence[dict], Sequence[Work], set[Job]], Work]


def run_open(
    wanted: Sequence[tuple[str, str, str]], out: Path, devices: Sequence[str], settings: Settings, minutes: float
) -> list[str]:
    """Run what is open of `wanted` (stage, base, task) on these devices and append its lines to `out`.

    Starts no group after `minutes`. Returns the errors of groups that failed: their jobs stay open.
    """

    def there() -> list[tuple[str, str, str]]:
        return [one for one in wanted if one[1] != "chatglm2" or (settings.work / "chatglm2").is_dir()]

    def choose(lines: Sequence[dict], running: Sequence[Work], failed: set[Job]) -> Work:
        return next_group(there(), lines, failed.union(*running), SIDE_BY_SIDE)

    errors = dispatch(choose, out, devices, settings, minutes)
    if there() != list(wanted):
        errors.append(f"The base chatglm2 is not in {settings.work} yet: run --pretrain first.")
    return errors


def run_controls(
    out: Path,
    devices: Sequence[str],
    settings: Settings,
    minutes: float,
    stages: Sequence[controls.Stage] = controls.STAGES,
    only: str | None = None,
    sizes: Mapping[str, int] = SIDE_BY_SIDE,
    known: Sequence[dict] = (),
) -> list[str]:
    """The same for the jobs of `controls`, or of other stages; a base that is not there yet is pre-trained by the first
    free device. only: this base, where it is given. sizes: of the groups, by base. known: lines that
    stand elsewhere."""

    def choose(lines: Sequence[dict], running: Sequence[Work], failed: set[Job]) -> Work:
        bases = {base for base in PRETRAINED if (settings.work / base).is_dir()}
        for base in ("neox", "chatglm2"):
            if base not in bases and base not in running and only in (None, base):
                return base
        if settings.gguf is None or settings.gguf.is_file():
            bases.add("smollm2")
        groups = [work for work in running if not isinstance(work, str)]
        wanted = bases & {only} if only else bases
        return controls.next_group(wanted, [*known, *lines], groups, failed, sizes, stages)

    return dispatch(choose, out, devices, settings, minutes)


def dispatch(choose: Choose, out: Path, devices: Sequence[str], settings: Settings, minutes: float) -> list[str]:
    """Give every device, each with a process of its own, what `choose` says, and append the lines to `out`.

    choose(lines so far, work under way, failed jobs); nothing where there is no work for one more device.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    tasks = [context.SimpleQueue() for _ in devices]
    threads = max(1, torch.get_num_threads() // len(devices))
    processes = [
        context.Process(target=serve, args=(number, device, threads, settings, tasks[number], results), daemon=True)
        for number, device in enumerate(devices)
    ]
    for process in processes:
        process.start()
    started, errors, failed = time.perf_counter(), list[str](), set[Job]()
    running: dict[int, Work] = {}
    in_service = set(range(len(devices)))
    while True:
        lines = read_lines(out)
        late = time.perf_counter() - started > 60 * minutes
        for number in sorted(in_service - running.keys()):
            if not late and (work := choose(lines, list(running.values()), failed)):
                running[number] = work
                tasks[number].put(work)
        if not running:
            break
        ended = _next_result(results, {number: processes[number] for number in running})
        if ended is None:
            continue
        number, text, error, goes_on = ended
        work = running.pop(number)
        append_lines(out, text)
        said = title_of(work)
        print(f"{time.perf_counter() - started:.0f} s, {devices[number]}: {said}{' FAILED' * bool(error)}", flush=True)
        if error:
            errors.append(f"{said}: {error}")
            failed.update([] if isinstance(work, str) else work)
            if isinstance(work, str):
                in_service.discard(number)  # else it would begin the same again
        if not goes_on:
            in_service.discard(number)
    for queue in tasks:
        queue.put(None)
    for process in processes:
        process.join()
    return errors


def title_of(work: Work) -> str:
    if isinstance(work, str):
        return f"pre-training {work}"
    return f"{work[0].base} {work[0].task} {', '.join(sorted({job.arm for job in work}))}: {len(work)} jobs"


def _next_result(results, processes: Mapping[int, Any]) -> tuple[int, str, str, bool] | None:
    """What `serve` tells of the group that ends next, or the same of one whose process was killed; None where nothing
    ended for some seconds, in which work for an idle device may have come up."""
    try:
        return results.get(timeout=5)
    except Empty:
        for number, process in processes.items():
            if not process.is_alive():
                return number, "", f"the process ended with exit code {process.exitcode}", False
    return None
