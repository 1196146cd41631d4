"""Arms that could refute what the study says of ranks, and the criteria that the portfolio chooses from.

Every arm of `arms.ARMS` trains at one effective scale, 2, so that a matrix with more rank may only be a faster matrix.
The controls take the two apart: the ranks of one arm at the scales of another, one rank on the modules that an arm
keeps, adapters cut after training instead of before, and uniform ranks with the steps that the pilots took.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from glmspectra.ranks.allocation import Limits, allocate_by_scores
from rank_study.arms import ARMS, Arm, Ranks, by_module, by_weight, over_one_threshold, uniform
from rank_study.facts import PILOT, PILOTS, Facts, mean_of

Factors = Mapping[str, float]  # module -> what its effective scale is of the common one
FLOOR = 0.5  # the rank that a matrix of rank 0 counts as where it lends its step size: it still has a direction there


@dataclass(frozen=True)
class Control:
    """ranks: as of any arm. factors: of the scale, from those ranks; None: 1 everywhere. lengths: training steps over
    the study's. up_rate: by what B's learning rate is multiplied."""

    ranks: Arm
    factors: Callable[[Facts, int, int, Ranks], Factors] | None = None
    lengths: float = 1.0
    up_rate: float = 1.0


def step_of(arm: str) -> Callable[[Facts, int, int, Ranks], Factors]:
    """Scales 2 r_i / r: the step that another arm's ranks r_i would take at scale 2, without their directions."""

    def factors(facts: Facts, budget: int, seed: int, ranks: Ranks) -> Factors:
        lent = ARMS[arm](facts, budget, seed)
        return {name: max(lent[name], FLOOR) / rank for name, rank in ranks.items() if rank}

    return factors


def alpha_by(power: float) -> Callable[[Facts, int, int, Ranks], Factors]:
    """alpha_i proportional to r_i ** power, the study's 2 r_i at the mean rank r: scale 2 (r_i / r) ** (power - 1).
    0: one alpha for all; 1/2: as rsLoRA (Kalajdzievski 2023)."""

    def factors(facts: Facts, budget: int, seed: int, ranks: Ranks) -> Factors:
        mean = budget / sum(target.cost for target in facts.targets)
        return {name: (rank / mean) ** (power - 1) for name, rank in ranks.items() if rank}

    return factors


def on_kept(facts: Facts, budget: int, seed: int, arm: str) -> Ranks:
    """One rank on exactly the modules that another arm gives any, within the same budget."""
    kept = ARMS[arm](facts, budget, seed)
    scores = {name: float(rank > 0) for name, rank in kept.items()}
    return by_module(allocate_by_scores(facts.targets, by_weight(scores), budget, Limits()).ranks)


def delta_fan(facts: Facts, budget: int, seed: int) -> Ranks:
    """Singular values of the pilots' mean delta-W times sqrt(in / out), the size that muP gives an update (Yang et al.
    2023): plain ones grow with the square root of the rows."""
    sizes = mean_of([one.plain for one in facts.pilots(seed)])
    scaled = {t.module: sizes[t.module] * (t.cols / t.rows) ** 0.5 for t in facts.targets}
    return over_one_threshold(facts, scaled, budget)


def delta_relative(facts: Facts, budget: int, seed: int) -> Ranks:
    """Singular values of the pilots' mean delta-W over the largest of the base's weight."""
    sizes = mean_of([one.plain for one in facts.pilots(seed)])
    return over_one_threshold(facts, {name: sigma / facts.largest[name] for name, sigma in sizes.items()}, budget)


def delta_tempered(facts: Facts, budget: int, seed: int) -> Ranks:
    """Delta-W in the metric `facts.delta_metrics` calls tempered."""
    return over_one_threshold(facts, mean_of([one.tempered for one in facts.pilots(seed)]), budget)


def by_pilots(facts: Facts, budget: int, seed: int, metric: str) -> Ranks:
    """One global threshold on another of `facts.Pilot`'s sizes."""
    return over_one_threshold(facts, mean_of([getattr(one, metric) for one in facts.pilots(seed)]), budget)


def delta_consensus(facts: Facts, budget: int, seed: int) -> Ranks:
    """One global threshold on the singular values of the mean delta-W of pilots that share A's start."""
    return over_one_threshold(facts, facts.consensus(seed), budget)


def placed(facts: Facts, budget: int, seed: int, lowest: bool) -> Ranks:
    """One rank on half of the matrix types, those of the lowest normalized feature norm (PLoP, arXiv 2506.20629), or
    of the highest."""
    norms: dict[str, list[float]] = {}
    for target in facts.targets:
        norms.setdefault(target.matrix, []).append(facts.moments[target.module].norm)
    order = sorted(norms, key=lambda matrix: sum(norms[matrix]) / len(norms[matrix]), reverse=not lowest)
    chosen = order[: (len(order) + 1) // 2]
    scores = {t.name: float(t.matrix in chosen) for t in facts.targets}
    return by_module(allocate_by_scores(facts.targets, scores, budget, Limits()).ranks)


def rates_by_matrix(arm: str, facts: Facts) -> dict[str, float]:
    """Module -> by what its rate is multiplied, from an arm named like `rates-by-kind:dense=2,query_key_value=0.5`."""
    results = dict(one.split("=") for one in arm.partition(":")[2].split(",") if one)
    return {t.module: float(results[t.matrix]) for t in facts.targets if t.matrix in results}


DELTA, METRIC = "delta-threshold", "delta-preconditioned"
LONGER = 1 + PILOTS * PILOT / 240  # the study's own training with its pilots' steps added
ONE_MATRIX, BY_MATRIX = "rate-of", "rates-by-kind"
PEFT_ARMS = ("peft-lora", "peft-dora", "peft-pissa", "peft-eva", "peft-adalora")
SHORT = 20  # steps of the shortest pilot that was screened
CUT, CUT_CONTINUED = "cut-16", "cut-16-continued"
CUT_RANK = 16
CUT_MORE = 60  # steps of the continuation

CONTROLS: dict[str, Control] = {
    **{name: Control(arm) for name, arm in ARMS.items()},
    "uniform-at-delta-steps": Control(uniform, step_of(DELTA)),
    "delta-constant-alpha": Control(ARMS[DELTA], alpha_by(0.0)),
    "delta-sqrt-alpha": Control(ARMS[DELTA], alpha_by(0.5)),
    "uniform-on-delta-modules": Control(partial(on_kept, arm=DELTA)),
    "uniform-at-preconditioned-steps": Control(uniform, step_of(METRIC)),
    "preconditioned-constant-alpha": Control(ARMS[METRIC], alpha_by(0.0)),
    "preconditioned-sqrt-alpha": Control(ARMS[METRIC], alpha_by(0.5)),
    "uniform-on-preconditioned-modules": Control(partial(on_kept, arm=METRIC)),
    "uniform-longer": Control(uniform, lengths=LONGER),
    "delta-threshold-longer": Control(ARMS[DELTA], lengths=LONGER),
    "delta-preconditioned-longer": Control(ARMS[METRIC], lengths=LONGER),
    "delta-preconditioned-one-pilot": Control(partial(ARMS[METRIC], pilots=1)),
    "delta-threshold-short-pilot": Control(partial(ARMS[DELTA], pilots=1, steps=SHORT)),
    "delta-preconditioned-short-pilot": Control(partial(ARMS[METRIC], pilots=1, steps=SHORT)),
    "uniform-short-pilot-longer": Control(uniform, lengths=1 + SHORT / 240),
    "delta-threshold-one-pilot-longer": Control(partial(ARMS[DELTA], pilots=1), lengths=LONGER),
    "delta-preconditioned-one-pilot-longer": Control(partial(ARMS[METRIC], pilots=1), lengths=LONGER),
    "uniform-longer-and-one-pilot": Control(uniform, lengths=LONGER + PILOT / 240),
    "uniform-one-pilot-longer": Control(uniform, lengths=1 + PILOT / 240),
    "rslora": Control(uniform, lambda facts, budget, seed, ranks: {n: r**0.5 for n, r in ranks.items() if r}),
    "lora-plus": Control(uniform, up_rate=16.0),  # the ratio that LoRA+ (Hayou et al. 2024) recommends
    CUT: Control(uniform),  # trained at CUT_RANK whatever the budget, see `workers.run_cut`
    CUT_CONTINUED: Control(uniform),
    # trained by PEFT itself, see `peft_arms`; its uniform is what the others are held against
    **{name: Control(uniform) for name in PEFT_ARMS},
    # rates of matrix types stand in the whole name, after a colon, see `rates_by_matrix`
    ONE_MATRIX: Control(uniform),
    BY_MATRIX: Control(uniform),
    "plop-lowest": Control(partial(placed, lowest=True)),
    "plop-highest": Control(partial(placed, lowest=False)),
    "delta-output": Control(partial(by_pilots, metric="output")),
    "delta-second-order": Control(partial(by_pilots, metric="second_order")),
    "delta-consensus": Control(delta_consensus),
    "delta-tempered": Control(delta_tempered),
    "delta-fan": Control(delta_fan),
    "delta-relative": Control(delta_relative),
}


def control_of(arm: str) -> Control:
    return CONTROLS[arm.partition(":")[0]]


# What the portfolio chooses from, declared before its runs; uniform is always among them.
MENU = (
    "uniform",
    DELTA,
    "type-alone",
    METRIC,
    "delta-tempered",
    "delta-fan",
    "delta-relative",
    "effective-rank",
)
