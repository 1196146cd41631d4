"""How many trainable parameters there are to share out: `like:r=12`, `params:8M`, `bytes:32MiB`, `share:0.1%`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from glmspectra.errors import RequestError
from glmspectra.ranks.evidence import Evidence, Target, matching

BYTES_PER_PARAMETER = 4  # adapters are trained and saved in float32, PEFT's default

DEFAULT_REFERENCE = "query_key_value"  # what the original study gave its r = 12 to

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_BINARY = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True)
class Budget:
    """parameters: the most that all ranks together may cost. text: as it was asked for. unit: its first word."""

    unit: str
    text: str
    parameters: int

    @property
    def nbytes(self) -> int:
        return self.parameters * BYTES_PER_PARAMETER


def parse_budget(text: str, evidence: Evidence) -> Budget:
    """Read a budget against the matrices that are targeted.

    like:r=R: as many parameters as rank R on every target; like:r=R@NAMES: rank R on the matrices of those
    names (globs, joined by commas) instead, whether they are targets or not. params:N with k, M, G. bytes:N
    with KiB, MiB, GiB (4 bytes a parameter: adapters are trained and kept in float32). share:P%: of the
    parameters of the target matrices. Raises RequestError for another spelling, and for a budget that buys
    nothing.
    """
    unit, _, value = text.partition(":")
    value = value.strip()
    if unit == "like":
        parameters = _like(value, text, evidence)
    elif unit == "params":
        parameters = _number(value, _DECIMAL, text)
    elif unit == "bytes":
        parameters = _number(value, _BINARY, text) // BYTES_PER_PARAMETER
    elif unit == "share":
        found = re.fullmatch(r"(\d*\.?\d+|\d+\.)\s*%", value)
        if not found:
            raise RequestError(f"--budget {text}: write a share as share:0.1%.")
        weights = sum(target.rows * target.cols for target in evidence.targets)
        parameters = int(float(found[1]) / 100 * weights)
    else:
        raise RequestError(f"--budget {text}: write like:r=12, params:8M, bytes:32MiB or share:0.1%.")
    cheapest = min(target.cost for target in evidence.targets)
    if parameters < cheapest:
        raise RequestError(
            f"--budget {text} is {parameters} parameters; one direction of the smallest target costs {cheapest}."
        )
    return Budget(unit, text, parameters)


def default_budget(evidence: Evidence) -> str:
    """Rank 12 on query_key_value, shared out over all targets; on all targets where there is no such matrix."""
    names = {target.matrix for target in evidence.every_matrix}
    return f"like:r=12@{DEFAULT_REFERENCE}" if DEFAULT_REFERENCE in names else "like:r=12"


def _like(value: str, text: str, evidence: Evidence) -> int:
    found = re.fullmatch(r"r=(\d+)(?:@(.+))?", value)
    if not found or int(found[1]) < 1:
        raise RequestError(f"--budget {text}: write like:r=12, or like:r=12@query_key_value.")
    reference: Sequence[Target] = evidence.targets
    if found[2]:
        reference = matching(evidence.every_matrix, found[2])
    return int(found[1]) * sum(target.cost for target in reference)


def _number(value: str, units: dict[str, int], text: str) -> int:
    found = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", value)
    if not found or found[2].lower() not in units:
        raise RequestError(f"--budget {text}: {value!r} is no number with a unit ({', '.join(u for u in units if u)}).")
    try:
        return int(float(found[1]) * units[found[2].lower()])
    except ValueError:
        raise RequestError(f"--budget {text}: {found[1]!r} is no number.") from None
