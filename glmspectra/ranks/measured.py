"""What the study of ranks found so far, criterion by criterion: said beside every suggestion.

The study is `benchmarks/ranks.py`; its lines stand in `benchmarks/results/ranks.jsonl`, and a test holds these figures
against them. It is not finished; when more of it has run, this is the one place to change.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gain:
    """Held-out loss below uniform's at equal parameters, nats a token, least and most over the three budgets, on the
    135M base and a task far from what it knows; seeds: paired ones. On the small ChatGLM2-shaped base (ten seeds) no
    criterion differed from uniform."""

    least: float
    most: float
    seeds: int


GAINS = {
    "delta-threshold": Gain(0.010, 0.011, 3),
    "type:delta-threshold": Gain(0.008, 0.009, 3),
    "effective-rank": Gain(0.003, 0.009, 3),
}

UNTESTED = "this criterion was not among those the study confirms, so nothing is known to be gained by it"


def sentence(criterion: str) -> str:
    """How little is to be expected of a criterion, in one sentence; empty for the controls that gain nothing."""
    name = criterion if criterion.startswith("type:") else criterion.partition(":")[0]
    if name in ("uniform", "random"):
        return ""
    gain = GAINS.get(name)
    if gain is None:
        return f"What it gains: {UNTESTED}; train uniform ranks of the same cost beside it (`glmspectra loop` does)."
    return (
        f"What it gains: {gain.least:.3f} to {gain.most:.3f} nats a token below uniform's loss in our study so far, on "
        f"one model and a task far from it ({gain.seeds} seeds, which prove nothing), and nothing on another model; "
        "train uniform ranks of the same cost beside it (`glmspectra loop` does)."
    )
