"""The loop: every selected matrix is read once, measured, stored; then the tables are merged.

What computes is imported once something is to be computed: a sweep that finds all finished loads no torch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from glmspectra.checkpoint.fingerprint import WHOLE_UP_TO
from glmspectra.checkpoint.selection import left_out_facts
from glmspectra.device import device_name
from glmspectra.files import readable
from glmspectra.store import Request, RunStore, Source
from glmspectra.sweep.options import SweepOptions
from glmspectra.sweep.processes import joined_processes

if TYPE_CHECKING:
    from glmspectra.checkpoint import Checkpoint, TensorRecord


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did, the same in every process but for `first`.

    matrices: how many were asked for; measured: how many of them were read now, the others were finished before;
    nonfinite: names of those with NaN or Inf; unreadable: name -> why, of those that cannot be read. seconds: wall
    time. device: where they were measured, now or before. first: whether this is process 0, which speaks for all.
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
    return Source(checkpoint.name, checkpoint.fingerprint, path, checkpoint.format, files, details)


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
        device = cache(partial(device_name, options.device, processes.local_rank))
        if options.device != "auto":
            device()  # one that is not there is refused even where nothing is left to do
        todo = processes.by_first(lambda: store.begin(requests, device, processes.count, options.fresh))
        unfinished = {key: set(names) for key, names in todo.items()}
        work = [record for record in records if any(record.name in names for names in unfinished.values())]
        if work:
            from glmspectra.sweep.share import measure_share

            processes.by_all(
                lambda: measure_share(checkpoint, work, requests, unfinished, options, store, device(), processes)
            )
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
            device=manifest["requests"][requests[0].key]["device"],
            processes=processes.count,
            first=processes.rank == 0,
            manifest=manifest,
        )
