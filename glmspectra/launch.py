"""How many processes a command was started in: what torchrun says in the environment."""

import os
import re
from dataclasses import dataclass

from glmspectra.errors import GlmspectraError, RequestError

# What gloo, NCCL and torch's store say when the process at the other end is gone.
_GONE = re.compile(
    r"closed by peer|reset by peer|\bgloo\b|ncclRemoteError|Broken pipe|failed to connect|Socket Timeout", re.I
)


@dataclass(frozen=True)
class Launch:
    """This process among those of its command.

    Attributes:
        rank: Its number, 0 to count - 1.
        count: How many there are.
        local_rank: Its number on this host.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


def read_launch() -> Launch:
    """This process as RANK, WORLD_SIZE and LOCAL_RANK describe it; the only one where none of them is set.

    Raises:
        RequestError: They contradict each other, or the address at which the processes meet is missing.
    """
    given = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ]
    if not given:
        return Launch()
    count, rank, local_rank = (_number(name, default) for name, default in _DEFAULTS)
    needed = ["RANK", "WORLD_SIZE"] + (["MASTER_ADDR", "MASTER_PORT"] if count > 1 else [])
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise RequestError(
            f"{' and '.join(given)} of the environment say that several processes were started, and "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start them by torchrun, which "
            f"sets all, or unset {' and '.join(given)}."
        )
    if not (0 <= rank < count and local_rank >= 0):
        raise RequestError(
            f"RANK={rank}, WORLD_SIZE={count} and LOCAL_RANK={local_rank} of the environment cannot be together: start "
            "the processes by torchrun, or unset these variables."
        )
    return Launch(rank, count, local_rank)


def lost_process(error: Exception) -> GlmspectraError:
    """What torch raised over a process that is gone, as one sentence: its connection is closed, or never came."""
    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return GlmspectraError(
        f"another process of this command ended before its work was done ({said}): what was finished is kept; see what "
        "that process said, and run the same command again."
    )


def tells_of_lost_process(error: Exception) -> bool:
    """Whether an error of torch says that another process is gone."""
    return isinstance(error, RuntimeError) and "WORLD_SIZE" in os.environ and bool(_GONE.search(str(error)))


_DEFAULTS = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError(f"{name}={text!r} of the environment is no number of processes: unset it, or use torchrun.")
    return int(text)
