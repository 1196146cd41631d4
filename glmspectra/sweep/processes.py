"""Several processes on one sweep, as `torchrun` starts them: who this one is, and what they tell each other.

Only names, counts and error messages travel between processes, never a weight, so gloo on the CPU serves
whatever the device; a process group that is already there (nccl, say) is used as it is.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from glmspectra.errors import GlmspectraError
from glmspectra.files import exclusive
from glmspectra.launch import lost_process, read_launch

Value = TypeVar("Value")

# A process that is done waits for the slowest; a dead one closes its connection and ends the wait at once.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """rank: this process, 0 to count - 1; local_rank: its number on this host."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def from_first(self, value: Value) -> Value:
        """Process 0's `value`, in every process."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _all_alive():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: Value) -> list[Value]:
        """Everybody's `value` by rank, in every process, once all have come here."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with _all_alive():
            dist.all_gather_object(values, value)
        return values

    def by_first(self, work: Callable[[], Value]) -> Value:
        """What `work` returns in process 0, which alone runs it, in every process; its error is raised in all."""
        found: Value | GlmspectraError | None = None
        if self.rank == 0:
            try:
                found = work()
            except GlmspectraError as error:
                found = error
        found = self.from_first(found)
        if isinstance(found, GlmspectraError):
            raise found
        return cast(Value, found)

    def by_all(self, work: Callable[[], Value]) -> list[Value]:
        """What `work` returns in each process, by rank; the first one's error is raised in all of them."""
        found: Value | GlmspectraError
        try:
            found = work()
        except GlmspectraError as error:
            found = error
        values = self.from_all(found)
        for value in values:
            if isinstance(value, GlmspectraError):
                raise value
        return cast(list[Value], values)

    @contextmanager
    def exclusive(self, folder: Path, doing: str) -> Iterator[None]:
        """Be the only command that writes `folder`: process 0 holds its lock for all. Raises RequestError in all."""
        with ExitStack() as held:
            self.by_first(lambda: held.enter_context(exclusive(folder, doing)))
            yield


@contextmanager
def _all_alive() -> Iterator[None]:
    """Say in one sentence what torch says of a process that is gone: its connection is closed, or never came."""
    try:
        yield
    except RuntimeError as error:  # dist.DistBackendError is one
        raise lost_process(error) from error


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes of this sweep: those of torchrun (WORLD_SIZE in the environment), else this one alone."""
    launch = read_launch()
    if launch.count == 1 and "torch.distributed" not in sys.modules:  # then no group can be there
        yield Processes()
        return
    import torch.distributed as dist

    if launch.count == 1 and not (dist.is_available() and dist.is_initialized()):
        yield Processes()
        return
    ours = not dist.is_initialized()
    if ours:
        with _all_alive():
            dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), launch.local_rank)
    finally:
        if ours:
            dist.destroy_process_group()


def share_out(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of `costs` for each of `count` processes, ascending, so that the sums are nearly equal.

    Longest processing time first: the dearest item to the process with least so far (Graham 1969: at most 4/3
    of the best possible longest share). Deterministic: ties go to the lower index and the lower process.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(count), key=lambda process: (sums[process], process))
        shares[least].append(index)
        sums[least] += costs[index]
    return [sorted(share) for share in shares]
