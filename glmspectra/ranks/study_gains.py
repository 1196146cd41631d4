"""What the study of ranks found, criterion by criterion: said beside every suggestion.

The study is `benchmarks/ranks.py`; its lines stand in `benchmarks/results/ranks.jsonl`, and a test holds these figures
against them. When the study goes on, this is the one place to change.
"""

from dataclasses import dataclass

from glmspectra.language import listed, text

# Base and task -> its name in the catalogue.
SETTINGS = {
    ("smollm2", "medical"): "ranks-study-far",
    ("chatglm2", "medical"): "ranks-study-same",
    ("smollm2", "python"): "ranks-study-near",
}


@dataclass(frozen=True)
class Gain:
    """Held-out loss below uniform's at equal parameters, in nats a token; negative where uniform was better.

    Attributes:
        least: over three budgets.
        most: over three budgets.
        sure: p < 0.01 at each budget, after Holm's correction.
    """

    least: float
    most: float
    sure: bool


GAINS = {
    "delta-threshold": (Gain(0.010, 0.013, True), Gain(0.020, 0.050, True), Gain(0.003, 0.005, False)),
    "type:delta-threshold": (Gain(0.008, 0.011, True), Gain(0.007, 0.013, True), Gain(0.004, 0.006, True)),
    "delta-adamw": (Gain(0.003, 0.009, False), Gain(0.033, 0.092, True), Gain(0.001, 0.002, False)),
    "effective-rank": (Gain(0.002, 0.007, False), Gain(-0.003, 0.000, False), Gain(0.000, 0.003, False)),
}


def sentence(criterion: str) -> str:
    """What is to be expected of a criterion, in one or two sentences; empty for the controls that gain nothing."""
    name = criterion if criterion.startswith("type:") else criterion.partition(":")[0]
    if name in ("uniform", "random"):
        return ""
    if name not in GAINS:
        return text("ranks-untested")
    parts = [
        text(
            "ranks-gain" if gain.sure else "ranks-gain-unsure",
            least=f"{gain.least:.3f}",
            most=f"{gain.most:.3f}",
            where=text(where),
        )
        for gain, where in zip(GAINS[name], SETTINGS.values(), strict=True)
    ]
    return text("ranks-gains", gains=listed(parts))
