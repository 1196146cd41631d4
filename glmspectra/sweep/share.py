"""One process's share of a sweep: what it measures of the matrices, batch by batch.

Matrices are in work in three stages at a time: one is read from the disk, one batch computed, and one batch, of which
only numbers are left, summarized and written by the processor. A batch is one matrix on a CPU, as many as memory and
the solver's gain allow on a CUDA device.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.errors import CheckpointError
from glmspectra.language import text
from glmspectra.spectra import batch_limit
from glmspectra.store import Request, RunStore
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
from glmspectra.sweep.processes import Processes, share_out
from glmspectra.sweep.progress import SweepProgress
from glmspectra.sweep.readahead import anonymous_bytes, read_ahead

if TYPE_CHECKING:
    from glmspectra.checkpoint import Checkpoint, Part, TensorRecord


def measure_share(
    checkpoint: "Checkpoint",
    work: list["TensorRecord"],
    requests: list[Request],
    todo: dict[str, set[str]],
    options: SweepOptions,
    store: RunStore,
    device: str,
    processes: Processes,
) -> None:
    """Measure what of `work` falls to this process, shared out by cost, into `store`.

    todo: key of a request -> names that it still needs. Raises what reading and writing raise; what was finished is
    kept.
    """
    costs = [_cost(record, options, device) for record in work]
    chosen = share_out(costs, processes.count)[processes.rank]
    share = [work[index] for index in chosen]
    cost_of = {work[index].name: costs[index] for index in chosen}
    positions = {name: position for position, name in enumerate(checkpoint.tensors)}
    identity = Identity(checkpoint.name, checkpoint.fingerprint, positions)
    label = text("progress-measuring") if processes.count == 1 else text("progress-process", count=processes.count)
    quiet = options.quiet or processes.rank > 0
    sound = [record for record in share if record.fault is None]
    sizes = batches([_share_of_batch(record, options, device) for record in sound for _ in record.matrix_parts])
    gathering = Gathering(store, checkpoint.check_unchanged)

    with SweepProgress(len(share), sum(cost_of.values()), quiet, label) as progress, Pipeline(device) as pipeline:
        for record in share:
            if record.fault is not None:
                for request in requests:
                    if record.name in todo[request.key]:
                        store.write(request, unreadable(request.kind, record, identity))
                progress.advance(record.nbytes, cost_of[record.name])
        coming = (Batch(size, requests, todo, identity, options, gathering) for size in sizes)
        batch: Batch | None = None
        try:
            for record, matrix, weight in read_ahead(checkpoint, sound, device):
                batch = batch or next(coming)
                share_of = 1 / len(record.matrix_parts)
                done = partial(progress.advance, record.nbytes * share_of, cost_of[record.name] * share_of)
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
        self._waiting: list[tuple[int, Request]] = []  # index in `_steps` of each spectrum that is solved together
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
            for (index, request), spectrum in zip(self._waiting, self._together.solve(), strict=True):
                self._steps[index] = self._taken(request, spectrum)
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
