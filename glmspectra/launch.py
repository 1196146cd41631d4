"""How many processes a command was started in: what torchrun says in the environment."""

import os
from dataclasses import dataclass

from glmspectra.errors import RequestError


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


_DEFAULTS = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError(f"{name}={text!r} of the environment is no number of processes: unset it, or use torchrun.")
    return int(text)
