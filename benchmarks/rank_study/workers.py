"""Runs what is open of the study: one process a device, groups of jobs side by side, one writer of the lines."""

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from rank_study.arms import ARMS
from rank_study.bases import Base, load_chatglm2, load_smollm2
from rank_study.facts import Facts, train_jobs
from rank_study.moving_ranks import movers_of
from rank_study.plan import BUDGETS, CONFIRM_SEEDS, SIDE_BY_SIDE, Job, append_lines, line_of, next_group, read_lines
from rank_study.tasks import Rows, encode, medical_pairs, python_bodies, split

PILOT_RANK = 3 * max(BUDGETS)  # three times the largest mean rank, so that the pilot itself cuts nothing off


@dataclass(frozen=True)
class Settings:
    """work: folder of the pre-trained base and of the pilots. medical: JSON Lines with context and target. gguf: the
    file of smollm2, absent: the package's. batch: rows a job and step. held_out: rows of each of development
    and test."""

    work: Path
    medical: Path | None
    gguf: Path | None
    steps: int
    batch: int
    held_out: int
    pilot_rate: float


def rows_of(base: Base, task: str, medical: Path | None, held_out: int) -> dict[str, Rows]:
    pairs = python_bodies() if task == "python" else medical_pairs(medical)
    parts = zip(("train", "development", "test"), split(pairs, held_out), strict=True)
    return {name: encode(part, base.tokens, base.prefix, base.eos, base.length) for name, part in parts}


def run_group(base: Base, rows: dict[str, Rows], facts: Facts, jobs: Sequence[Job], steps: int, batch: int) -> str:
    """Train jobs of one setting side by side and measure each on its part; a line for each."""
    device = str(next(base.model.parameters()).device)
    cost = {target.module: target.cost for target in facts.targets}
    budgets = [job.budget * sum(cost.values()) for job in jobs]
    ranks = [ARMS[job.arm](facts, budget, job.seed) for job, budget in zip(jobs, budgets, strict=True)]
    starts: dict[str, dict[int, torch.Tensor]] = {}
    for number, job in enumerate(jobs):
        if job.arm == "eva":
            for name in base.modules:
                starts.setdefault(name, {})[number] = facts.inputs.directions[name]
    rates, seeds = [job.rate for job in jobs], [job.seed for job in jobs]
    movers = movers_of([job.arm for job in jobs], budgets, facts.targets, steps)
    started = time.perf_counter()
    adapters = train_jobs(base, rows["train"], ranks, rates, seeds, steps, batch, starts, movers)
    kept = {name: adapters.kept(name).sum(1).tolist() for name in adapters.layers}
    ranks = [{name: int(of_jobs[number]) for name, of_jobs in kept.items()} for number in range(len(jobs))]
    parts = {job.part for job in jobs}
    try:
        losses = {part: adapters.evaluate(rows[part].batches(batch, device)).tolist() for part in parts}
    finally:
        adapters.remove()
    seconds = time.perf_counter() - started
    card = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    return "".join(
        line_of(
            job,
            loss=losses[job.part][number],
            parameters=sum(rank * cost[name] for name, rank in ranks[number].items()),
            adapted=sum(rank > 0 for rank in ranks[number].values()),
            largest_rank=max(ranks[number].values()),
            weights=base.digest,
            steps=steps,
            seconds_of_group=round(seconds, 2),
            jobs_in_group=len(jobs),
            device=card,
        )
        for number, job in enumerate(jobs)
    )


class Worker:
    """What one process keeps between groups: bases, encoded rows, facts."""

    def __init__(self, device: str, settings: Settings):
        self.device, self.settings = device, settings
        self.prepared: dict[tuple[str, str], tuple[dict[str, Rows], Facts]] = {}

    @cached_property
    def smollm2(self) -> Base:
        return load_smollm2(self.device, self.settings.gguf)

    @cached_property
    def chatglm2(self) -> Base:
        return load_chatglm2(self.device, self.settings.work / "chatglm2")

    def run(self, jobs: Sequence[Job]) -> str:
        own, setting = self.settings, (jobs[0].base, jobs[0].task)
        base: Base = getattr(self, jobs[0].base)
        if setting not in self.prepared:
            rows = rows_of(base, jobs[0].task, own.medical, own.held_out)
            facts = Facts(
                base, rows["train"], jobs[0].task, own.work, own.pilot_rate, PILOT_RANK, own.batch,
                own_pilots=CONFIRM_SEEDS[setting],
            )  # fmt: skip
            self.prepared[setting] = rows, facts
        rows, facts = self.prepared[setting]
        try:
            return run_group(base, rows, facts, jobs, own.steps, own.batch)
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise
        torch.cuda.empty_cache()  # outside of the handler, whose traceback holds the tensors
        half = len(jobs) // 2
        return self.run(jobs[:half]) + self.run(jobs[half:])


def serve(number: int, device: str, threads: int, settings: Settings, tasks, results) -> None:
    """Run groups from `tasks` until there is None; (number, lines, error, whether it goes on) of each to `results`."""
    torch.set_num_threads(threads)  # together the processes have one a core: more would wait for each other
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    worker = Worker(device, settings)
    while (jobs := tasks.get()) is not None:
        try:
            results.put((number, worker.run(jobs), "", True))
        except SystemExit as error:  # the parent tells it, and goes on with the other groups
            results.put((number, "", str(error), True))
        except Exception:
            results.put((number, "", traceback.format_exc(), False))
            raise  # a device in trouble would fail every group that is left


def run_open(
    wanted: Sequence[tuple[str, str, str]], out: Path, devices: Sequence[str], settings: Settings, minutes: float
) -> list[str]:
    """Run what is open of `wanted` (stage, base, task) on these devices, a process each, and append its lines to `out`.

    Starts no group after `minutes`. Returns the errors of groups that failed: their jobs stay open.
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
    running: dict[int, list[Job]] = {}
    in_service = set(range(len(devices)))
    while True:
        lines = read_lines(out)
        there = [one for one in wanted if one[1] != "chatglm2" or (settings.work / "chatglm2").is_dir()]
        late = time.perf_counter() - started > 60 * minutes
        for number in sorted(in_service - running.keys()):
            taken = failed.union(*running.values())
            if not late and (jobs := next_group(there, lines, taken, SIDE_BY_SIDE)):
                running[number] = jobs
                tasks[number].put(jobs)
        if not running:
            break
        number, text, error, goes_on = _next_result(results, {number: processes[number] for number in running})
        jobs = running.pop(number)
        append_lines(out, text)
        told = f"{jobs[0].base} {jobs[0].task} {', '.join(sorted({job.arm for job in jobs}))}: {len(jobs)} jobs"
        print(f"{time.perf_counter() - started:.0f} s, {devices[number]}: {told}{' FAILED' * bool(error)}", flush=True)
        if error:
            errors.append(f"{told}: {error}")
            failed.update(jobs)
        if not goes_on:
            in_service.discard(number)
    for queue in tasks:
        queue.put(None)
    for process in processes:
        process.join()
    if there != list(wanted):
        errors.append(f"The base chatglm2 is not in {settings.work} yet: run --pretrain first.")
    return errors


def _next_result(results, processes: Mapping[int, Any]) -> tuple[int, str, str, bool]:
    """What `serve` tells of the group that ends next, or the same of one whose process was killed."""
    while True:
        try:
            return results.get(timeout=5)
        except Empty:
            for number, process in processes.items():
                if not process.is_alive():
                    return number, "", f"the process ended with exit code {process.exitcode}", False
