"""What happens beside the steps: AdaLoRA's allocation, the progress line, the curves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from glmspectra.errors import TrainingError
from glmspectra.files import write_text
from glmspectra.tuning.model import adalora
from glmspectra.tuning.training.checkpoints import STATE_FILE

if TYPE_CHECKING:
    from glmspectra.tuning.training.trainer import AdapterTrainer


class StartCallback(TrainerCallback):
    """Checks the schedule, takes up what a checkpoint left, starts the clock."""

    def __init__(self, trainer: AdapterTrainer, total_steps: int):
        self.trainer = trainer
        self.total_steps = total_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.max_steps != self.total_steps:
            raise TrainingError(
                f"the run has {state.max_steps} steps and was prepared for {self.total_steps}; this is a fault of "
                "glmspectra, please report it with the settings."
            )
        self.trainer.restore_progress()
        self.trainer.throughput.start(time.perf_counter())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A whole number at an epoch's start; a resumed run may begin in the middle of one.
        self.trainer.sampler.set_epoch(int(state.epoch or 0))


class AdaLoraCallback(TrainerCallback):
    """Allocates ranks after each optimizer step, while gradients still stand, and writes the history of
    ranks."""

    def __init__(self, allocator: adalora.MaskedRankAllocator, output_dir: Path):
        self.allocator = allocator
        self.history = output_dir / adalora.HISTORY_FILE
        self.allocated_at = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.should_save:
            return
        if state.global_step == 0:
            self.history.unlink(missing_ok=True)
            adalora.append_history(self.history, 0, self.allocator.ranks())
        else:
            adalora.cut_history(self.history, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1  # the Trainer counts the step after this call
        if self.allocator.allocate(step) and args.should_save:
            adalora.append_history(self.history, step, self.allocator.ranks())
        self.allocated_at = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.allocated_at != state.global_step:
            raise TrainingError(
                f"AdaLoRA's allocation did not run at step {state.global_step}: this version of transformers does "
                "not call on_optimizer_step, so ranks would never change; install a version that pyproject.toml "
                "names."
            )


class CurvesCallback(TrainerCallback):
    """Calls `draw(folder)` after each evaluation and at the end; `trainer_state.json` lies in the folder by
    then."""

    def __init__(self, draw: Callable[[Path], Any]):
        self.draw = draw

    def _write(self, args: Any, state: Any) -> None:
        if not args.should_save or not state.log_history:
            return
        folder = Path(args.output_dir)
        # As `TrainerState.save_to_json`, whole or not at all: a kill must not leave half a history.
        text = json.dumps(asdict(state), indent=2, sort_keys=True) + "\n"
        write_text(folder / STATE_FILE, text)
        self.draw(folder)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(args, state)


class ProgressCallback(TrainerCallback):
    """One line on the terminal: steps, loss, tokens a second, memory, time left. Evaluations are printed
    above it."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.said: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if not state.is_world_process_zero:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, said="")
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        if "eval_loss" in logs:
            self.bar.print(
                f"step {state.global_step}: eval loss {logs['eval_loss']:.4f}, perplexity "
                f"{logs['eval_perplexity']:.3f}, token accuracy {logs['eval_token_accuracy']:.3f}",
                highlight=False,
            )
        for key, form in (
            ("loss", "loss {:.4f}"),
            ("tokens_per_second", "{:.0f} tokens/s"),
            ("peak_memory_gib", "{:.1f} GiB"),
            ("rank_sum", "ranks {:.0f}"),
        ):
            if key in logs:
                self.said[key] = form.format(logs[key])
        self.bar.update(self.task, said=", ".join(self.said.values()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; called when training failed too."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
