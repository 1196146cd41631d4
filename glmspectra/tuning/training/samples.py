"""Answers to the first evaluation rows at each evaluation, so that one can read what training makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from glmspectra.tuning.inference.generation import decode, generate, split_prompt
from glmspectra.tuning.training import step_lines

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from glmspectra.tuning.training.inputs import Inputs

SAMPLES_FILE = "eval_samples.jsonl"  # lines {"step": N, "context", "reference", "answer"}


class SamplesCallback(TrainerCallback):
    """Generates `finetune.eval_samples` answers after each evaluation, greedily, into the run folder's SAMPLES_FILE."""

    def __init__(self, model: PeftModel, inputs: Inputs, output_dir: Path):
        self.model, self.inputs, self.path = model, inputs, output_dir / SAMPLES_FILE
        self.pairs: list[tuple[list[int], list[int]]] = []  # token ids of prompt and expected answer
        rows = inputs.data.valid
        if rows is not None:
            first = rows.select(range(min(inputs.settings.finetune.eval_samples, len(rows))))
            self.pairs = [split_prompt(row["input_ids"], row["labels"]) for row in first]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.should_save:
            step_lines.cut(self.path, state.global_step or -1)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not args.should_save or not self.pairs:
            return
        inputs, finetune = self.inputs, self.inputs.settings.finetune
        with inputs.precision.context(inputs.device):
            answers = generate(
                self.model,
                inputs.tokenizer,
                [prompt for prompt, _ in self.pairs],
                finetune.eval_samples_max_new_tokens,
                args.per_device_eval_batch_size,
            )
        for (prompt, reference), answer in zip(self.pairs, answers, strict=True):
            texts = {"context": decode(inputs.tokenizer, prompt), "reference": decode(inputs.tokenizer, reference)}
            step_lines.append(self.path, state.global_step, texts | {"answer": answer})
