"""Computing one matrix after another, or several at once on a device that one alone does not fill."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local
from typing import TypeVar

import torch

from glmspectra.errors import GlmspectraError

Job = TypeVar("Job")
Result = TypeVar("Result")

# Matrices that a CUDA device computes at once. Tridiagonalising one of order 4096 is a chain of thousands of steps,
# each too short to fill the device.
CUDA_LANES = 2


def lanes_of(device: str) -> int:
    """How many matrices are computed at once on 'cpu' or 'cuda:N'."""
    return 1 if device == "cpu" else CUDA_LANES


def in_lanes(jobs: Iterator[Job], compute: Callable[[Job], Result], device: str, lanes: int) -> Iterator[Result]:
    """Yield compute(job) in the order of the jobs, up to `lanes` of them computed at once.

    With one lane everything happens in the caller's thread. With more, each has a thread and, on CUDA, a stream of its
    own; what `compute` leaves on the stream is waited for. An error, of a job or of `jobs`, is raised where its result
    would have been yielded, after those before it. At most `lanes` jobs are held, and none between a result and the
    next job.
    """
    if lanes == 1:
        for job in jobs:
            result = compute(job)
            del job  # a weight: it is not to be held beside the next one
            yield result
            del result
        return
    if device != "cpu":
        # PyTorch loads its linear algebra at the first use, and refuses two threads that use it first together.
        torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
    own = local()

    def in_own_stream(job: Job) -> Result:
        if device == "cpu":
            return compute(job)
        if not hasattr(own, "stream"):
            own.stream = torch.cuda.Stream(device)
        with torch.cuda.stream(own.stream):
            result = compute(job)
            own.stream.synchronize()  # the weight's memory is another stream's, free from here on
        return result

    running: deque[Future[Result]] = deque()
    failure: GlmspectraError | None = None
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="glmspectra-lane")
    try:
        while True:
            try:
                job = next(jobs)
            except StopIteration:
                break
            except GlmspectraError as error:
                failure = error
                break
            running.append(pool.submit(in_own_stream, job))
            del job
            if len(running) == lanes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure
