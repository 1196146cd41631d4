"""`trainer_state.json` as transformers' Trainer has written it since 2023, and `rank_history.jsonl` beside it."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from glmspectra.errors import StoreError
from glmspectra.json_files import parse_json, read_bytes, validate

# Beyond any training; a longer number is damage, and would not fit into a table.
Step = Annotated[int, Field(ge=0, le=2**53)]


Line = TypeVar("Line", bound=BaseModel)


class LogEntry(BaseModel):
    """One record of the log: what was logged at a step. Values of further names are kept, whatever they are.

    loss, eval_loss: nats a token. NaN and infinities are values here: the Trainer writes them where a step overflowed.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    step: Step | None = None
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    eval_perplexity: float | None = None

    def number(self, *names: str) -> float | None:
        """The value of the first of `names` that holds a number."""
        for name in names:
            value = getattr(self, name, None)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return None


class TrainerState(BaseModel):
    """What is read of the file; the rest is the Trainer's own."""

    model_config = ConfigDict(extra="allow", strict=True)

    log_history: list[LogEntry]
    global_step: Step | None = None


class RankLine(BaseModel):
    """One line of `rank_history.jsonl`: the ranks of AdaLoRA's matrices after a step."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Step
    ranks: dict[str, Step]


class SampleLine(BaseModel):
    """One line of `eval_samples.jsonl`: what a model in training answered at a step."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Step
    context: str
    reference: str
    answer: str


def read_trainer_state(path: Path) -> TrainerState:
    """The state in a file. Raises StoreError, naming what is wrong, where it is none."""
    value = parse_json(read_bytes(path, StoreError), str(path), StoreError, allow_nan=True)
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds no JSON object: it is not a trainer's state; copy it again.")
    return validate(value, TrainerState, str(path), StoreError)


def read_rank_lines(path: Path) -> list[RankLine]:
    """The lines of a rank history; a last one that a crash cut off is left out. Raises StoreError for any other."""
    return _read_lines(path, RankLine)


def read_sample_lines(path: Path) -> list[SampleLine]:
    """The lines of evaluation samples; as `read_rank_lines`."""
    return _read_lines(path, SampleLine)


def _read_lines(path: Path, model: type[Line]) -> list[Line]:
    lines = read_bytes(path, StoreError).decode("utf-8", errors="replace").splitlines()
    found: list[Line] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            origin = f"{path}, line {number}"
            value = parse_json(line, origin, StoreError)
            found.append(validate(value if isinstance(value, dict) else {}, model, origin, StoreError))
        except StoreError:
            if number < len(lines):
                raise
    return found
