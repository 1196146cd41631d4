"""Spectra of what training changed: an adapter from its factors, or two checkpoints by streamed differences.

An adapter's exact spectrum needs no base: seconds for a whole model. DoRA, LoftQ and full fine-tuning stream
the base, and so does what compares with W (`against_base`). Every checkpoint-N of a run is measured; where a
base is streamed, each of its weights is read once for all of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glmspectra.device import choose_device
from glmspectra.language import text
from glmspectra.store import Request, Run, RunStore, Source, read_manifest, read_run, run_name
from glmspectra.sweep.delta_measure import DeltaMeasurer
from glmspectra.sweep.delta_moments import POWERS
from glmspectra.sweep.delta_plan import DeltaOptions, DeltaPlan, cost_of, plan_delta
from glmspectra.sweep.known_base import known_base
from glmspectra.sweep.processes import Processes, joined_processes, share_out
from glmspectra.sweep.progress import SweepProgress


@dataclass(frozen=True)
class DeltaResult:
    """What a measurement of changes left behind.

    Attributes:
        folder: the run's tables.
        matrices: how many.
        states: how many.
        measured: how many (matrix, state) pairs were measured now.
        nonfinite: names of the matrices whose base or change holds NaN or infinity.
        first: whether this is process 0, which alone draws and talks.
    """

    folder: Path
    matrices: int
    states: int
    measured: int
    seconds: float
    device: str
    tuned_by: list[str]
    notes: list[str]
    nonfinite: list[str]
    first: bool
    manifest: dict[str, Any] = field(repr=False)


def measure_change(
    base: Path | str | None,
    tuned: Path | str,
    root: Path,
    options: DeltaOptions | None = None,
    tell: Callable[[DeltaPlan], None] | None = None,
) -> tuple[Run, DeltaResult]:
    """Plan, measure and close: what training changed, as a run under `root` (`param_matrix`) with its tables.

    Args:
        base: The base model, or None where every state is an adapter that needs none.
        tuned: An adapter, a tuned model, or a run's folder with its checkpoint-N.
        root: The folder of runs.
        options: What is asked for.
        tell: Is given the plan before it is carried out, to say what it costs.

    Raises:
        RequestError: The base is needed and absent, or nothing is selected.
        CheckpointError: Base and tuned model do not fit, or cannot be read.
    """
    plan = plan_delta(base, tuned, options or DeltaOptions())
    try:
        if tell is not None:
            tell(plan)
        result = measure_delta(plan, root)
    finally:
        plan.close()
    return read_run(result.folder), result


def measure_delta(plan: DeltaPlan, root: Path) -> DeltaResult:
    """Measure everything in the plan into root (`param_matrix`)/<run>; what is finished is reused.

    Rows of quantity 'delta' for every state, and those of `delta_moments` where its optimizer is read; with
    against_base also 'merged' ones, and 'weight' ones of W itself. NaN or infinity in the base or in a state gives rows
    of status 'nonfinite' without spectra, and the run goes on. Under torchrun the matrices are shared out by cost and
    process 0 merges the tables. Raises what reading and writing raise, in every process; what was finished is kept.
    """
    start = time.monotonic()
    with joined_processes() as processes:
        device = str(choose_device(plan.options.device, processes.local_rank))
        store = processes.by_first(lambda: RunStore.of(root, _with_known_base(root, plan.source)))
        with processes.exclusive(store.folder, "delta"):
            # What was measured against the base says all that would be measured now; it is not to be replaced by
            # less.
            reuse = not (plan.options.against_base or plan.options.fresh) and processes.by_first(
                lambda: _has_more(store, plan)
            )
            measured = 0 if reuse else sum(_measure(plan, root, store, device, processes))
            seconds = time.monotonic() - start
            manifest = processes.by_first(lambda: store.merge() if reuse else store.merge(seconds))
        asked = {record.name for record in plan.matrices}
        return DeltaResult(
            store.folder,
            len(plan.matrices),
            len(plan.states),
            measured,
            time.monotonic() - start,
            device,
            list(dict.fromkeys(state.tuned_by for state in plan.states)),
            plan.notes,
            [name for name in manifest["nonfinite"] if name in asked],
            processes.rank == 0,
            manifest,
        )


def _measure(plan: DeltaPlan, root: Path, store: RunStore, device: str, processes: Processes) -> list[int]:
    """Measure this process's share; how many (matrix, state) pairs each process measured."""
    measure = DeltaMeasurer(plan, store, device, processes.by_first(lambda: known_base(root, plan.base)))
    todo = processes.by_first(
        lambda: store.begin(measure.all_requests, lambda: device, processes.count, fresh=plan.options.fresh)
    )
    unfinished = {key: set(names) for key, names in todo.items()}
    work = [record for record in plan.matrices if any(record.name in names for names in unfinished.values())]
    costs = [cost_of(record, plan.states, plan.options, device) for record in work]
    share = share_out(costs, processes.count)[processes.rank]
    label = text("progress-changes") if processes.count == 1 else text("progress-process", count=processes.count)
    quiet = plan.options.quiet or processes.rank > 0

    def mine() -> int:
        measured = 0
        with SweepProgress(len(share), sum(costs[index] for index in share), quiet, label) as progress:
            for index in share:
                record = work[index]
                measured += measure.measure(record, unfinished)
                nbytes = record.nbytes if plan.reads(record.name) else 0
                progress.advance(nbytes, costs[index])
        return measured

    return processes.by_all(mine)


def _has_more(store: RunStore, plan: DeltaPlan) -> bool:
    """Whether the run's folder holds every change of this plan, measured against the same base.

    Any base will do if none is given.
    """
    if not (store.folder / "manifest.json").is_file():
        return False
    requests = store.manifest()["requests"]
    for state in plan.states:
        names = {record.name for record in plan.matrices if record.name in state.names}
        asked = requests.get(Request("spectrum", (), {}, "delta", state.where.step).key)
        if asked is None or not asked["complete"] or not asked["options"].get("against_base"):
            return False
        if not names <= set(asked["names"]):
            return False
        if plan.base is not None and asked["options"]["base"] != plan.base.fingerprint:
            return False
        if asked["stamp"] != Request.from_manifest(asked).stamp(store.source.fingerprint):
            return False  # of another version of the package
        metrics = [requests.get(Request("spectrum", (), {}, quantity, state.where.step).key) for quantity in POWERS]
        if state.moments and not all(metric is not None and metric["complete"] for metric in metrics):
            return False
    return True


def _with_known_base(root: Path, source: Source) -> Source:
    """Keep the base that an earlier run of the same states was given, where this one was given none."""
    folder = Path(root) / run_name(source.name, source.fingerprint)
    if source.details["base"] is not None or not (folder / "manifest.json").is_file():
        return source
    before = (read_manifest(folder)["checkpoint"].get("details") or {}).get("base")
    return replace(source, details={**source.details, "base": before})
