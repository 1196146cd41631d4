"""What training runs logged: `trainer_state.json` of any year, and `rank_history.jsonl` of AdaLoRA.

Only JSON is read. `training_args.bin` is a pickle and is never opened.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from glmspectra.errors import RequestError, StoreError
from glmspectra.figures.tables import place

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
    """

    name: str
    folder: Path
    history: pd.DataFrame
    ranks: pd.DataFrame

    def has(self, column: str) -> bool:
        return bool(self.history[column].notna().any())

    @property
    def perplexity_disagrees(self) -> bool:
        """True when the log holds an eval_perplexity that is not exp(eval_loss): the original study wrote 2 ** loss."""
        both = self.history.dropna(subset=["eval_perplexity", "logged_perplexity"])
        return bool((np.abs(both["logged_perplexity"] / both["eval_perplexity"] - 1) > 0.01).any())


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
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
        log = state["log_history"]
        entries = [_entry(record) for record in log if "step" in record]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{state_path} is not a trainer's state with a log_history ({type(error).__name__}: {error}): "
            "copy it again from the training folder."
        ) from error
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
    history = pd.DataFrame(entries, columns=columns).astype(float).sort_values("step", kind="stable", ignore_index=True)
    home = state_path.parent
    ranks = pd.DataFrame(columns=["step", "module", "layer", "matrix", "rank"])
    for path in (home / "rank_history.jsonl", home.parent / "rank_history.jsonl"):
        if path.is_file() and (path.parent == home or home.name.startswith("checkpoint-")):
            ranks = read_rank_history(path)
            break
    label = name or (home.parent.name if home.name.startswith("checkpoint-") else home.name)
    return TrainingRun(label, home, history, ranks)


def _entry(record: dict) -> dict[str, float]:
    def number(*names: str) -> float:
        for name in names:
            value = record.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return math.nan

    eval_loss = number("eval_loss")
    return {
        "step": float(record["step"]),
        "epoch": number("epoch"),
        "loss": number("loss"),
        "learning_rate": number("learning_rate"),
        "grad_norm": number("grad_norm"),
        "eval_loss": eval_loss,
        # A loss above 700 has no finite exp in float64; it is drawn as a gap, as NaN is.
        "eval_perplexity": math.exp(eval_loss) if eval_loss < 700 else math.nan,
        "logged_perplexity": number("eval_perplexity"),
        "tokens_per_second": number(*TOKEN_RATES),
    }


def read_rank_history(path: Path) -> pd.DataFrame:
    """Ranks over time: columns step, module, layer, matrix, rank. A last line cut off by a crash is left out.

    Lines are {"step": N, "ranks": {module: rank}}. Raises StoreError when another line is not of that form.
    """
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step, ranks = int(record["step"]), record["ranks"]
            rows += [(step, module, *place(module), int(rank)) for module, rank in ranks.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise StoreError(
                f"{path}, line {number}: not a line of step and ranks ({error}): remove it or train again."
            ) from error
    table = pd.DataFrame(rows, columns=["step", "module", "layer", "matrix", "rank"])
    # A resumed run writes some steps twice; the later line is what the final adapter saw.
    return table.drop_duplicates(["step", "module"], keep="last").sort_values("step", kind="stable", ignore_index=True)


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
