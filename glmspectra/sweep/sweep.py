"""The loop: every selected matrix is read once, measured, stored; then the tables are merged.

Matrices are in work in three places at a time: one is read from the disk, one batch computed, and one batch, of which
only numbers are left, summarised and written by the processor. A batch is one matrix on a CPU, as many as memory and
the solver's gain allow on a CUDA device.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.checkpoint.fingerprint import WHOLE_UP_TO
from glmspectra.checkpoint.selection import left_out_facts
from glmspectra.device import choose_device
from glmspectra.errors import CheckpointError
from glmspectra.files import readable
from glmspectra.spectra import batch_limit
from glmspectra.store import Request, RunStore, Source
from glmspectra.sweep.cost import spectrum_cost, value_cost
from glmspectra.sweep.gathering import Gathering
from glmspectra.sweep.measure import (
    Identity,
    SpectraTogether,
    begin_spectrum,
    begin_values,
    part_slices,
    unreadable,
)
from glmspectra.sweep.options import SweepOptions
from glmspectra.sweep.pipeline import Pipeline, batches
from glmspectra.sweep.processes import Processes, joined_processes, share_out
from glmspectra.sweep.progress import SweepProgress
from glmspectra.sweep.readahead import anonymous_bytes, read_ahead

if TYPE_CHECKING:
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
        processes.by_all(partial(_measure, checkpoint, share, requests, todo, options, store, device, processes))
        seconds = time.monotonic() - start
        manifest = processes.by_first(lambda: store.merge(seconds))
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
    todo = processes.by_first(lambda: store.begin(requests, device, processes.count, options.fresh))
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
    sound = [record for record in share if record.fault is None]
    sizes = batches([_share_of_batch(record, options, device) for record in sound for _ in record.matrix_parts])
    gathering = Gathering(store, checkpoint.check_unchanged)

    with SweepProgress(len(share), sum(costs.values()), quiet, label) as progress, Pipeline(device) as pipeline:
        for record in share:
            if record.fault is not None:
                for request in requests:
                    if record.name in todo[request.key]:
                        store.write(request, unreadable(request.kind, record, identity))
                progress.advance(record.nbytes, costs[record.name])
        coming = (Batch(size, requests, todo, identity, options, gathering) for size in sizes)
        batch: Batch | None = None
        try:
            for record, matrix, weight in read_ahead(checkpoint, sound, device):
                batch = batch or next(coming)
                share_of = 1 / len(record.matrix_parts)
                done = partial(progress.advance, record.nbytes * share_of, costs[record.name] * share_of)
                batch.begin(record, matrix, weight, done)
                del weight  # it is not to be held beside the next one
                if batch.full:
                    pipeline.hand_over(batch.solve)
                    batch = None
        except CheckpointError:
            if batch is not None:  # what was read before the file that cannot be
                pipeline.hand_over(batch.solve)
            raise
        pipeline.wait()


class Batch:
    """Matrices that are solved together, and what is left to do for each, in order."""

    def __init__(
        self,
        size: int,
        requests: list[Request],
        todo: dict[str, set[str]],
        identity: Identity,
        options: SweepOptions,
        gathering: Gathering,
    ):
        self._size, self._requests, self._todo = size, requests, todo
        self._identity, self._options, self._gathering = identity, options, gathering
        self._together = SpectraTogether(identity, options) if size > 1 else None
        self._steps: list[Callable[[], None]] = []
        self._waiting: list[tuple[int, Request]] = []  # place in `_steps` of each spectrum that is solved together
        self._begun = 0

    @property
    def full(self) -> bool:
        return self._begun == self._size

    def begin(self, record: "TensorRecord", matrix: "Part", weight: torch.Tensor, done: Callable[[], None]) -> None:
        """Do the device's share of the measurements of one matrix, but for what is solved together.

        `done` is called when they are written.
        """
        self._begun += 1
        for request in self._requests:
            if record.name not in self._todo[request.key]:
                continue
            if request.kind == "spectrum" and self._together is not None:
                self._together.add(weight, record, matrix)
                self._waiting.append((len(self._steps), request))
                self._steps.append(_nothing)
            else:
                begin = begin_values if request.kind == "values" else begin_spectrum
                self._steps.append(self._taken(request, begin(weight, record, matrix, self._identity, self._options)))
        if matrix == record.matrix_parts[-1]:
            self._steps.append(partial(self._gathering.write, record.name))
        self._steps.append(done)

    def solve(self) -> list[Callable[[], None]]:
        """What is left for the processor: summaries, writing, progress."""
        if self._together is not None:
            for (place, request), spectrum in zip(self._waiting, self._together.solve(), strict=True):
                self._steps[place] = self._taken(request, spectrum)
        return self._steps

    def _taken(self, request: Request, finish: Callable[[], Any]) -> Callable[[], None]:
        return lambda: self._gathering.take(request, *finish())


def _nothing() -> None:
    pass


def _share_of_batch(record: "TensorRecord", options: SweepOptions, device: str) -> float:
    """What part of the largest batch that the device's memory allows a matrix takes; 1: it is solved alone."""
    if device == "cpu" or not options.spectrum or options.method != "exact":
        return 1.0
    orders = [min(rows.stop - rows.start, record.columns) for rows in part_slices(record, options).values()]
    nbytes = anonymous_bytes(record) or record.nbytes // len(record.matrix_parts)
    return min(1.0, sum(1 / batch_limit(order, nbytes, torch.device(device)) for order in orders))


def _cost(record: "TensorRecord", options: SweepOptions, device: str) -> float:
    shapes = [(rows.stop - rows.start, record.columns) for rows in part_slices(record, options).values()]
    shapes *= max(1, record.experts)
    cost = value_cost(shapes) if options.values else 0.0
    return cost + (spectrum_cost(shapes, device) if options.spectrum else 0.0)
