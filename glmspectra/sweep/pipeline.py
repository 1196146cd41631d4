"""Three things at a time: matrices are read and begun, a batch of them is solved, and solved ones are finished.

Begun is the caller's thread. What is begun on a CPU is solved there too, at once; on a CUDA device batches are solved
in a thread and a stream of their own, so that the next one's weights travel and its Gram matrices are made meanwhile.
Finishing (summaries, files) is the processor's work, in a third thread. One batch at a time is in each.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

Step = Callable[[], None]


class Pipeline:
    """Solves and finishes what is handed over, in order.

    Left in any way, even by Ctrl-C, it first finishes what it holds: a matrix that was computed is written. Errors are
    raised at a later handing over, or at `wait`.
    """

    def __init__(self, device: str):
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="glmspectra-finish")
        self._solver: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        if device != "cpu":
            self._solver = ThreadPoolExecutor(1, thread_name_prefix="glmspectra-solve")
            self._stream = torch.cuda.Stream(device)
        self._solving: Future[None] | None = None
        self._finishing: list[Future[None]] = []

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._solver is not None:  # first: it hands on to the other
            self._solver.shutdown(wait=True)
        self._finisher.shutdown(wait=True)

    def hand_over(self, solve: Callable[[], Iterable[Step]]) -> None:
        """Have `solve` called, and then each step that it returns."""
        if self._solver is None:
            self._finish(solve())
            return
        if self._solving is not None:
            self._solving.result()
        self._solving = self._solver.submit(self._solve, solve)

    def wait(self) -> None:
        """Return when all is finished."""
        if self._solving is not None:
            self._solving.result()
        self._finish([])

    def _solve(self, solve: Callable[[], Iterable[Step]]) -> None:
        # What was begun is complete on the device when it is handed over, so that streams need not wait for each other.
        with torch.cuda.stream(self._stream):
            steps = solve()
        self._finish(steps)

    def _finish(self, steps: Iterable[Step]) -> None:
        for future in self._finishing:
            future.result()
        self._finishing = [self._finisher.submit(step) for step in steps]


def batches(shares: Sequence[float]) -> list[int]:
    """How many consecutive matrices to solve together: numbers of nearly equal weight, adding up to len(shares).

    shares: what part of the largest possible batch each matrix takes, above 0 and at most 1.
    """
    total = sum(shares)
    count = max(1, math.ceil(total))
    sizes: list[int] = []
    done, begun = 0.0, 0
    for index, share in enumerate(shares):
        done += share
        if done + share / 2 >= total * (len(sizes) + 1) / count or index == len(shares) - 1:
            sizes.append(index + 1 - begun)
            begun = index + 1
    return sizes
