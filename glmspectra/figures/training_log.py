"""What training runs logged: `trainer_state.json` of any year, and `rank_history.jsonl` of AdaLoRA.

Only JSON is read. `training_args.bin` is a pickle and is never opened.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from glmspectra.errors import RequestError
from glmspectra.figures.tables import layer_and_matrix
from glmspectra.language import Words
from glmspectra.store.trainer_state import LogEntry, read_rank_lines, read_sample_lines, read_trainer_state

SAMPLES_FILE = "eval_samples.jsonl"

# Names under which trainers log the speed, newest first; the first one present is drawn.
TOKEN_RATES = (
    "tokens_per_second",
    "tokens_per_sec",
    "train_tokens_per_second",
    "tokens_per_second_per_gpu",
    "real_tokens_per_second",
)


@dataclass(frozen=True)
class TrainingRun:
    """One run: its name, its log and, for AdaLoRA, its ranks.

    history: one row a log entry with columns step, epoch, loss, learning_rate, grad_norm, eval_loss, eval_perplexity,
        tokens_per_second, logged_perplexity; NaN where an entry does not hold one. Losses are natural-log, per token;
        eval_perplexity is exp(eval_loss), whatever the log says.
    ranks: columns step, module, layer, matrix, rank; empty but for AdaLoRA.
    label: what a page calls it where its name is no name that somebody chose.
    broken: measure (loss, eval_loss, grad_norm) -> steps at which NaN or an infinity was logged, ascending.
    """

    name: str
    folder: Path
    history: pd.DataFrame
    ranks: pd.DataFrame
    broken: Mapping[str, Sequence[int]] = field(default_factory=dict)
    label: Words | None = None

    @property
    def title(self) -> Words:
        """What it is called in each language: `label`, or its name, which is the same in both."""
        return self.label or Words.same(self.name)

    def has(self, column: str) -> bool:
        return bool(self.history[column].notna().any())

    @property
    def perplexity_disagrees(self) -> bool:
        """True when the log holds an eval_perplexity that is not exp(eval_loss): the original study wrote 2 ** loss."""
        both = self.history.dropna(subset=["eval_perplexity", "logged_perplexity"])
        return bool((np.abs(both["logged_perplexity"] / both["eval_perplexity"] - 1) > 0.01).any())


ENDS = 5  # logged losses of which an end of a curve is the mean: single batches differ


def ends_of(run: TrainingRun) -> tuple[float, float, int] | None:
    """Loss at the beginning and at the end of a run, each a mean, and of how many logged values.

    At most ENDS, and of a short log no value in both. None where no loss was logged.
    """
    losses = run.history["loss"]
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return None
    count = max(1, min(ENDS, len(losses) // 2))
    return float(losses.head(count).mean()), float(losses.tail(count).mean()), count


def find_state(folder: Path) -> Path:
    """The trainer_state.json of a run: the file itself, the folder's own, or that of its last checkpoint-N.

    Raises RequestError when there is none.
    """
    if folder.is_file():
        return folder
    candidates = [folder / "trainer_state.json"]
    checkpoints = []
    for path in folder.glob("*/trainer_state.json"):
        found = re.fullmatch(r"checkpoint-(\d+)", path.parent.name)
        if found:
            checkpoints.append((int(found[1]), path))
    candidates += [path for _, path in sorted(checkpoints, reverse=True)]
    for path in candidates:
        if path.is_file():
            return path
    raise RequestError(
        f"{folder} holds no trainer_state.json, nor does a checkpoint-N in it: name the folder of a training run."
    )


def read_training(folder: Path, name: str | None = None) -> TrainingRun:
    """Read one run. `name` is what its curves are called, by default the folder's name.

    Raises RequestError when there is no trainer_state.json, StoreError when a file cannot be read.
    """
    state_path = find_state(Path(folder))
    log = [entry for entry in read_trainer_state(state_path).log_history if entry.step is not None]
    columns = [
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "eval_loss",
        "eval_perplexity",
        "tokens_per_second",
        "logged_perplexity",
    ]
    history = (
        pd.DataFrame([_entry(entry) for entry in log], columns=columns)
        .astype(float)
        .sort_values("step", kind="stable", ignore_index=True)
    )
    home = state_path.parent
    ranks = pd.DataFrame(columns=["step", "module", "layer", "matrix", "rank"])
    for path in (home / "rank_history.jsonl", home.parent / "rank_history.jsonl"):
        if path.is_file() and (path.parent == home or home.name.startswith("checkpoint-")):
            ranks = read_rank_history(path)
            break
    label = name or (home.parent.name if home.name.startswith("checkpoint-") else home.name)
    return TrainingRun(label, home, history, ranks, _broken(log))


def _broken(log: Sequence[LogEntry]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for measure in ("loss", "eval_loss", "grad_norm"):
        values = [(entry.step or 0, getattr(entry, measure)) for entry in log]
        steps = sorted({step for step, value in values if value is not None and not math.isfinite(value)})
        if steps:
            found[measure] = steps
    return found


def _entry(logged: LogEntry) -> dict[str, float | None]:
    eval_loss = math.nan if logged.eval_loss is None else logged.eval_loss
    return {
        "step": logged.step,
        "epoch": logged.epoch,
        "loss": logged.loss,
        "learning_rate": logged.learning_rate,
        "grad_norm": logged.grad_norm,
        "eval_loss": eval_loss,
        # A loss above 700 has no finite exp in float64; it is drawn as a gap, as NaN is.
        "eval_perplexity": math.exp(eval_loss) if eval_loss < 700 else math.nan,
        "logged_perplexity": logged.eval_perplexity,
        "tokens_per_second": logged.number(*TOKEN_RATES),
    }


def read_rank_history(path: Path) -> pd.DataFrame:
    """Ranks over time: columns step, module, layer, matrix, rank. A last line cut off by a crash is left out.

    Raises:
        StoreError: Another line is not {"step": N, "ranks": {module: rank}}.
    """
    lines = read_rank_lines(path)
    rows = [
        (line.step, module, *layer_and_matrix(module), rank) for line in lines for module, rank in line.ranks.items()
    ]
    table = pd.DataFrame(rows, columns=["step", "module", "layer", "matrix", "rank"])
    # A resumed run writes some steps twice; the later line is what the final adapter saw.
    return table.drop_duplicates(["step", "module"], keep="last").sort_values("step", kind="stable", ignore_index=True)


def read_samples(run: TrainingRun) -> list[dict[str, str]]:
    """Answers at the run's last evaluation: {"context", "reference", "tuned"}; none where none were generated.

    Raises:
        StoreError: The file holds another line.
    """
    path = run.folder / SAMPLES_FILE
    lines = read_sample_lines(path) if path.is_file() else []
    last = max((line.step for line in lines), default=0)
    return [
        {"context": line.context, "reference": line.reference, "tuned": line.answer}
        for line in lines
        if line.step == last
    ]


def read_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[TrainingRun]:
    """Read training runs; of equal names all but the first get a number, so that each has a line of its own.

    Raises RequestError when a folder holds no trainer_state.json, StoreError when one cannot be read.
    """
    runs: list[TrainingRun] = []
    taken: dict[str, int] = {}
    for i, folder in enumerate(folders):
        run = read_training(Path(folder), names[i] if names else None)
        taken[run.name] = taken.get(run.name, 0) + 1
        if taken[run.name] > 1:
            run = replace(run, name=f"{run.name} ({taken[run.name]})")
        runs.append(run)
    return runs
