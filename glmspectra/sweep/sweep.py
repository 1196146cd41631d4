"""The loop: every selected matrix is read once, measured, stored; then the tables are merged.

Three matrices are in work at a time: one is read from the disk, one computed, and one, of which only numbers are left,
summarised and written by the processor. (Computing two at once on a CUDA device was tried: 15.6 s in place of 16.7 s
for ChatGLM2's 112 matrices on an H100, not worth a second way.)
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from glmspectra.checkpoint.fingerprint import WHOLE_UP_TO
from glmspectra.checkpoint.selection import left_out_facts
from glmspectra.device import choose_device
from glmspectra.errors import GlmspectraError
from glmspectra.files import readable
from glmspectra.store import Request, RunStore, Source
from glmspectra.sweep.cost import spectrum_cost, value_cost
from glmspectra.sweep.gathering import Gathering
from glmspectra.sweep.measure import Identity, begin_spectrum, begin_values, part_slices, unreadable
from glmspectra.sweep.options import SweepOptions
from glmspectra.sweep.processes import Processes, joined_processes, share_out
from glmspectra.sweep.progress import SweepProgress
from glmspectra.sweep.readahead import read_ahead

if TYPE_CHECKING:
    import torch

    from glmspectra.checkpoint import Checkpoint, Part, TensorRecord


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did, the same in every process but for `first`.

    matrices: how many were asked for; measured: how many of them were read now, the others were finished before;
    nonfinite: names of those with NaN or Inf; unreadable: name -> why, of those that cannot be read. seconds: wall
    time. first: whether this is process 0, which speaks for all.
    """

    matrices: int
    measured: int
    nonfinite: list[str]
    unreadable: dict[str, str]
    seconds: float
    bytes_read: int
    device: str
    processes: int
    first: bool
    manifest: dict[str, Any] = field(repr=False)


def source_of(checkpoint: "Checkpoint") -> Source:
    """The checkpoint as a run's manifest names it.

    Files that the fingerprint only samples bring their time of change too, so that a few changed bytes in a
    large file do not pass for the same file.
    """
    files = tuple(
        {"name": file.name, "size": file.size, "fingerprint": file.fingerprint}
        | ({"modified": file.modified} if file.size > WHOLE_UP_TO else {})
        for file in checkpoint.files
    )
    path = readable(checkpoint.path.resolve())
    found = left_out_facts(checkpoint)
    details = {"left_out": found} if found else {}
    return Source(checkpoint.name, checkpoint.fingerprint, path, checkpoint.form, files, details)


def sweep(
    checkpoint: "Checkpoint", records: Sequence["TensorRecord"], options: SweepOptions, store: RunStore
) -> SweepResult:
    """Measure `records` (matrices in depth order, from `checkpoint.select`) into `store`.

    What is finished is not measured again. Under torchrun the matrices are shared out by cost and process 0
    merges the tables. A matrix with NaN or Inf gets a row that says so and the sweep goes on. Raises what
    reading (CheckpointError) or writing (StoreError) raises, in every process; what was finished is kept.
    """
    start = time.monotonic()
    names = tuple(record.name for record in records)
    requests = [
        Request(kind, names, options.of_kind(kind), vectors=options.vectors if kind == "spectrum" else 0)
        for kind in options.kinds
    ]
    doing = "svd" if options.spectrum else "values"
    with joined_processes() as processes, processes.exclusive(store.folder, doing):
        device = str(choose_device(options.device, processes.local_rank))
        todo = _begin(store, requests, options, device, processes)
        work = [record for record in records if any(record.name in todo[request.key] for request in requests)]
        costs = [_cost(record, options, device) for record in work]
        share = [work[index] for index in share_out(costs, processes.count)[processes.rank]]
        error: GlmspectraError | None = None
        try:
            _measure(checkpoint, share, requests, todo, options, store, device, processes)
        except GlmspectraError as caught:
            error = caught
        _raise_first(processes.from_all(error))
        seconds = time.monotonic() - start
        manifest = _merge(store, seconds, processes)
        asked = set(names)
        return SweepResult(
            matrices=len(records),
            measured=len(work),
            nonfinite=[name for name in manifest["nonfinite"] if name in asked],
            unreadable={record.name: record.fault for record in records if record.fault is not None},
            seconds=seconds,
            bytes_read=sum(record.nbytes for record in work),
            device=device,
            processes=processes.count,
            first=processes.rank == 0,
            manifest=manifest,
        )


def _begin(
    store: RunStore, requests: list[Request], options: SweepOptions, device: str, processes: Processes
) -> dict[str, set[str]]:
    """Process 0 opens the run and tells the others what is to be measured; request key -> names."""
    todo: dict[str, list[str]] | GlmspectraError = {}
    if processes.rank == 0:
        try:
            todo = store.begin(requests, device, processes.count, options.fresh)
        except GlmspectraError as error:
            todo = error
    todo = processes.from_first(todo)
    if isinstance(todo, GlmspectraError):
        raise todo
    return {key: set(names) for key, names in todo.items()}


def _measure(
    checkpoint: "Checkpoint",
    share: list["TensorRecord"],
    requests: list[Request],
    todo: dict[str, set[str]],
    options: SweepOptions,
    store: RunStore,
    device: str,
    processes: Processes,
) -> None:
    positions = {name: position for position, name in enumerate(checkpoint.tensors)}
    identity = Identity(checkpoint.name, checkpoint.fingerprint, positions)
    costs = {record.name: _cost(record, options, device) for record in share}
    label = "measuring" if processes.count == 1 else f"process 0 of {processes.count}"
    quiet = options.quiet or processes.rank > 0
    gathering = Gathering(store, checkpoint.check_unchanged)

    with (
        SweepProgress(len(share), sum(costs.values()), quiet, label) as progress,
        # Left in any way, even by Ctrl-C, it waits for what it holds: a matrix that was computed is written.
        ThreadPoolExecutor(1, thread_name_prefix="glmspectra-finish") as aside,
    ):
        finishing: Future[None] | None = None
        for record in share:
            if record.fault is not None:
                for request in requests:
                    if record.name in todo[request.key]:
                        store.write(request, unreadable(request.kind, record, identity))
                progress.advance(record.nbytes, costs[record.name])
        sound = [record for record in share if record.fault is None]
        for record, matrix, weight in read_ahead(checkpoint, sound, device):
            asked = [request for request in requests if record.name in todo[request.key]]
            rest = [_begin_one(request, weight, record, matrix, identity, options, gathering) for request in asked]
            del weight  # it is not to be held beside the next one
            if finishing is not None:
                finishing.result()  # one in flight; its error is raised here
            if matrix == record.matrix_parts[-1]:
                rest.append(partial(gathering.write, record.name))
            share_of = 1 / max(1, record.experts)
            finishing = aside.submit(_finish, rest, progress, record.nbytes * share_of, costs[record.name] * share_of)
        if finishing is not None:
            finishing.result()


def _begin_one(
    request: Request,
    weight: "torch.Tensor",
    record: "TensorRecord",
    matrix: "Part",
    identity: Identity,
    options: SweepOptions,
    gathering: Gathering,
) -> Callable[[], None]:
    """Do the device's share of one measurement; the processor's, and the writing, are left to what is returned."""
    begin = begin_values if request.kind == "values" else begin_spectrum
    finish = begin(weight, record, matrix, identity, options)
    return lambda: gathering.take(request, *finish())


def _finish(rest: list[Callable[[], None]], progress: SweepProgress, nbytes: float, cost: float) -> None:
    for step in rest:
        step()
    progress.advance(nbytes, cost)


def _merge(store: RunStore, seconds: float, processes: Processes) -> dict[str, Any]:
    merged: dict[str, Any] | GlmspectraError = {}
    if processes.rank == 0:
        try:
            merged = store.merge(seconds)
        except GlmspectraError as error:
            merged = error
    merged = processes.from_first(merged)
    if isinstance(merged, GlmspectraError):
        raise merged
    return merged


def _raise_first(errors: list[GlmspectraError | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _cost(record: "TensorRecord", options: SweepOptions, device: str) -> float:
    shapes = [(rows.stop - rows.start, record.columns) for rows in part_slices(record, options).values()]
    shapes *= max(1, record.experts)
    cost = value_cost(shapes) if options.values else 0.0
    return cost + (spectrum_cost(shapes, device) if options.spectrum else 0.0)
