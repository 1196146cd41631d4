"""What the third part of the study runs; its lines have a file of their own, `results/rivals.jsonl`.

Declared here before the first of them was run: what `controls` left open, on bases that are pre-trained anew where they
are run (a GPT-NeoX of fewer steps than before: `NEOX_STEPS`), so that every comparison has its own uniform runs in this
file; equal compute; rivals at equal parameters, each with a rate of its own; and what adapters answer, beyond their
loss, on every run of the test part (`beyond`). Rates and grids as in `controls`; ten seeds that no other part has seen.
"""

from collections.abc import Iterator, Sequence

from rank_study.control_arms import BY_MATRIX, DELTA, METRIC, PEFT_ARMS
from rank_study.controls import (
    COMPARED,
    CRITERIA,
    LATER,
    LONG,
    METRIC_STEP_SIZE,
    PLACED,
    RIVALS,
    SHORT_PILOT,
    STEP_SIZE,
    Stage,
)

SEEDS = tuple(range(400, 410))
NEOX_STEPS = 900
SIDE_BY_SIDE = {"smollm2": 12, "chatglm2": 24, "neox": 12}  # fewer than elsewhere: answers need room, and PEFT's runs
ONE_PILOT = "delta-threshold-one-pilot"
EQUAL_COMPUTE = ("uniform", DELTA, *LONG)


def _stages() -> Iterator[Stage]:
    def stage(base: str, task: str, arms: tuple[str, ...], budget: int, tier: int) -> Stage:
        return Stage("controls", base, task, arms, (budget,), tier, SEEDS)

    yield stage("chatglm2", "medical", (*EQUAL_COMPUTE, ONE_PILOT, METRIC), 4, 1)
    # LATER and SHORT_PILOT were declared after EQUAL_COMPUTE had been run on chatglm2 and pilots had lost there.
    yield stage("chatglm2", "medical", (*LATER, *SHORT_PILOT), 4, 1)
    yield stage("chatglm2", "medical", RIVALS, 4, 2)
    yield stage("chatglm2", "medical", PEFT_ARMS, 4, 3)
    yield stage("chatglm2", "medical", (BY_MATRIX, *PLACED, *CRITERIA, "type-alone"), 4, 2)
    yield stage("chatglm2", "medical", (*STEP_SIZE, *METRIC_STEP_SIZE), 2, 3)
    yield stage("chatglm2", "medical", LONG, 2, 3)
    yield stage("chatglm2", "medical", (*COMPARED, *LONG), 8, 4)
    yield stage("neox", "medical", STEP_SIZE, 4, 1)
    yield stage(
        "neox", "medical", ("uniform-longer", *SHORT_PILOT, "uniform-one-pilot-longer", ONE_PILOT, METRIC), 4, 2
    )
    yield stage("neox", "medical", (*METRIC_STEP_SIZE, "delta-preconditioned-one-pilot"), 4, 3)
    yield stage("neox", "medical", COMPARED, 8, 4)
    yield stage("neox", "medical", ("delta-threshold-longer", *RIVALS), 4, 5)
    yield stage("neox", "medical", (BY_MATRIX, *PLACED, *CRITERIA), 4, 5)
    yield stage("neox", "python", STEP_SIZE, 4, 6)
    short = ("uniform-short-pilot-longer", "delta-threshold-short-pilot")
    yield stage("smollm2", "medical", ("uniform", DELTA, LONG[0], *short, LONG[1], ONE_PILOT), 4, 1)
    yield stage("smollm2", "medical", STEP_SIZE, 2, 2)
    yield stage("smollm2", "python", STEP_SIZE, 4, 2)
    yield stage("smollm2", "python", ("uniform-longer",), 4, 3)
    yield stage("smollm2", "medical", ("uniform-longer",), 2, 3)
    yield stage("smollm2", "medical", RIVALS, 4, 4)
    yield stage("smollm2", "medical", (METRIC, "delta-preconditioned-short-pilot", "delta-threshold-longer"), 4, 4)
    yield stage("smollm2", "medical", (BY_MATRIX, *PLACED, *CRITERIA), 4, 4)
    yield stage("smollm2", "medical", COMPARED, 8, 5)


STAGES = tuple(_stages())


def tuned_before(control_lines: Sequence[dict]) -> list[dict]:
    """Runs of `controls` that tune rates on weights which are the same there and here: those that a package carries."""
    return [line for line in control_lines if line["base"] == "smollm2" and line["part"] == "development"]


BY_PEFT = tuple(stage for stage in STAGES if stage.arms == PEFT_ARMS)  # one by one: many processes may share a device
