"""Which jobs a stage of the study holds, in the order they are run, and the lines they leave."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rank_study.arms import ARMS, CONFIRMED

BUDGETS = (2, 4, 8)  # uniform ranks whose parameters are shared out
MIDDLE = 4
RATES = {"smollm2": (1e-3, 2e-3, 4e-3), "chatglm2": (8e-3, 1.6e-2, 3.2e-2)}
RATE_SEEDS = {"smollm2": (10,), "chatglm2": (10, 11)}
CONFIRM_SEEDS = tuple(range(100, 110))
SCREEN_SEEDS = (20, 21)
CURVE_RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
CURVE_SEEDS = (100, 101, 102)
SETTINGS = (("smollm2", "medical"), ("chatglm2", "medical"), ("smollm2", "python"))


@dataclass(frozen=True)
class Job:
    """One training run. budget: the uniform rank whose parameters it may use. part: what its loss is taken on."""

    base: str
    task: str
    arm: str
    budget: int
    seed: int
    rate: float
    part: str

    @property
    def key(self) -> tuple:
        return (self.base, self.task, self.arm, self.budget, self.seed, self.rate, self.part)


def read_lines(path: Path) -> list[dict]:
    """Lines of finished jobs; a last line that a killed run left unfinished is passed over."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def finished(lines: list[dict]) -> set[tuple]:
    return {Job(**{name: line[name] for name in Job.__dataclass_fields__}).key for line in lines}


def best_rate(lines: list[dict], base: str, task: str, arm: str) -> float:
    """The rate with the lowest mean loss on the development part, of those tried at the middle budget."""
    losses: dict[float, list[float]] = {}
    for line in lines:
        if (line["base"], line["task"], line["arm"], line["part"]) == (base, task, arm, "development"):
            losses.setdefault(line["rate"], []).append(line["loss"])
    if not losses:
        raise SystemExit(f"No rates are tuned for {arm} on {base} and {task} yet: run --stage rates first.")
    return min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))


def jobs_of(stage: str, base: str, task: str, lines: list[dict]) -> Iterator[Job]:
    """The jobs of a stage, done or not.

    rates: every confirmed arm at the middle budget on the development part. screen: every arm, two seeds, development.
    confirm: the declared arms, ten fresh seeds, three budgets, test, seed by seed so that a cut leaves pairs whole.
    curve: uniform over ranks on the same test part."""
    if stage == "rates":
        for seed in RATE_SEEDS[base]:
            for rate in RATES[base]:
                for arm in CONFIRMED:
                    yield Job(base, task, arm, MIDDLE, seed, rate, "development")
    elif stage == "screen":
        for seed in SCREEN_SEEDS:
            for arm in ARMS:
                rate = best_rate(lines, base, task, arm if arm in CONFIRMED else "delta-threshold")
                yield Job(base, task, arm, MIDDLE, seed, rate, "development")
    elif stage == "confirm":
        for seed in CONFIRM_SEEDS:
            for budget in BUDGETS:
                for arm in CONFIRMED:
                    yield Job(base, task, arm, budget, seed, best_rate(lines, base, task, arm), "test")
    elif stage == "curve":
        for seed in CURVE_SEEDS:
            for rank in CURVE_RANKS:
                yield Job(base, task, "uniform", rank, seed, best_rate(lines, base, task, "uniform"), "test")
    else:
        raise SystemExit(f"Unknown stage {stage}: rates, screen, confirm or curve.")


def line_of(job: Job, **measured) -> str:
    return json.dumps({**asdict(job), **measured}) + "\n"
