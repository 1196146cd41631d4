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
from glmspectra.language import clauses, text
from glmspectra.progress import ProgressLine
from glmspectra.tuning.model import adalora
from glmspectra.tuning.training import step_lines
from glmspectra.tuning.training.checkpoints import STATE_FILE

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from glmspectra.tuning.training.trainer import AdapterTrainer


class StartCallback(TrainerCallback):
    """Checks the schedule, takes up what a checkpoint left, starts the clock."""

    def __init__(self, trainer: AdapterTrainer, total_steps: int):
        self.trainer = trainer
        self.total_steps = total_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.max_steps != self.total_steps:
            raise TrainingError(
                f"the run has {state.max_steps} steps and was prepared for {self.total_steps}; this is a fault of "
                "glmspectra, please report it with the settings."
            )
        self.trainer.restore_progress()
        self.trainer.throughput.start(time.perf_counter())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A whole number at an epoch's start; a resumed run may begin in the middle of one.
        self.trainer.sampler.set_epoch(int(state.epoch or 0))


class AdaLoraCallback(TrainerCallback):
    """Allocates ranks after each optimizer step, while gradients still stand, and writes the history of ranks."""

    def __init__(self, allocator: adalora.MaskedRankAllocator, output_dir: Path):
        self.allocator = allocator
        self.history = output_dir / adalora.HISTORY_FILE
        self.allocated_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not args.should_save:
            return
        step_lines.cut(self.history, state.global_step or -1)
        if state.global_step == 0:
            step_lines.append(self.history, 0, {"ranks": self.allocator.ranks()})

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step + 1  # the Trainer counts the step after this call
        if self.allocator.allocate(step) and args.should_save:
            step_lines.append(self.history, step, {"ranks": self.allocator.ranks()})
        self.allocated_at = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.allocated_at != state.global_step:
            raise TrainingError(
                f"AdaLoRA's allocation did not run at step {state.global_step}: this version of transformers does "
                "not call on_optimizer_step, so ranks would never change; install a version that pyproject.toml "
                "names."
            )


class CurvesCallback(TrainerCallback):
    """Calls `draw(folder)` after each evaluation and at the end; `trainer_state.json` lies in the folder by then."""

    def __init__(self, draw: Callable[[Path], Any]):
        self.draw = draw
        self.drawn = -1

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if not args.should_save or not state.log_history:
            return
        folder = Path(str(args.output_dir))
        # As `TrainerState.save_to_json`, whole or not at all: a kill must not leave half a history.
        write_text(folder / STATE_FILE, json.dumps(asdict(state), indent=2, sort_keys=True) + "\n")
        if state.global_step != self.drawn:  # the end adds nothing to the curves of an evaluation at the last step
            self.draw(folder)
            self.drawn = state.global_step

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._write(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._write(args, state)


class ProgressCallback(TrainerCallback):
    """How far training is, on stderr: steps, loss, tokens a second, time left; evaluations as lines that stay."""

    def __init__(self) -> None:
        self.line: ProgressLine | None = None
        self.said: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.line = ProgressLine(
                text("training-progress"), state.max_steps, text("training-steps"), done=state.global_step
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.line is not None:
            self.line.update(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self.line is None or not logs:
            return
        if "eval_loss" in logs:
            self.line.print(
                text(
                    "training-evaluated",
                    step=str(state.global_step),
                    loss=f"{logs['eval_loss']:.4f}",
                    perplexity=f"{logs['eval_perplexity']:.3f}",
                    accuracy=f"{logs['eval_token_accuracy']:.3f}",
                )
            )
        if "loss" in logs:
            self.said["loss"] = text("training-loss", loss=f"{logs['loss']:.4f}")
        if "tokens_per_second" in logs:
            self.said["speed"] = text("training-speed", speed=f"{logs['tokens_per_second']:.0f}")
        if "peak_memory_gib" in logs:
            self.said["memory"] = f"{logs['peak_memory_gib']:.1f} GiB"
        if "rank_sum" in logs:
            self.said["ranks"] = text("training-ranks", sum=f"{logs['rank_sum']:.0f}")
        self.line.update(state.global_step, clauses(self.said.values()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; called when training failed too."""
        if self.line is not None:
            self.line.close()
            self.line = None
