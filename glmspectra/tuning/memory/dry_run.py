"""`train --dry-run`: everything that can be known before training, and one batch to prove it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.language import text
from glmspectra.tuning.data import IGNORED, TrainingData
from glmspectra.tuning.memory.estimate import GIB, MemoryEstimate, estimate_memory
from glmspectra.tuning.memory.longest_batch import longest_batch, longest_batch_step
from glmspectra.tuning.model.adapter import trainable_by_type
from glmspectra.tuning.model.loading import load_for_settings
from glmspectra.tuning.settings.load import Settings
from glmspectra.tuning.training.inputs import load_inputs
from glmspectra.tuning.training.run import build_run, own_device, request
from glmspectra.tuning.training.start import absent_again

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_EXAMPLES = 2


@dataclass(frozen=True)
class ShownExample:
    """An example as runs of decoded text, each learnt or masked."""

    runs: list[tuple[str, bool]]
    tokens: int
    learnt: int

    def line(self) -> str:
        """The text with what is learnt between ⟦ and ⟧, line breaks shown as ⏎."""
        shown = "".join(f"⟦{run}⟧" if learnt else run for run, learnt in self.runs).replace("\n", "⏎")
        return text("dry-example", tokens=self.tokens, learnt=self.learnt, text=shown)


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` found.

    `step` is what the longest batch gave: rows, tokens, loss, seconds, and on a GPU peak_memory_gib.
    """

    settings: Settings
    data: TrainingData
    trainable: dict[str, int]
    memory: MemoryEstimate
    device: str
    device_bytes: int | None
    steps: int
    examples_a_step: int
    tokens_a_pass: int
    examples: list[ShownExample]
    step: dict[str, Any]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The findings for `--json`."""
        return {
            "settings": self.settings.as_files(),
            "data": self.data.report.as_dict(),
            "trainable_parameters": self.trainable,
            "memory": self.memory.as_dict() | {"device_bytes": self.device_bytes},
            "steps": self.steps,
            "examples_a_step": self.examples_a_step,
            "tokens_a_pass": self.tokens_a_pass,
            "examples": [
                {"tokens": shown.tokens, "learnt": shown.learnt, "runs": shown.runs} for shown in self.examples
            ],
            "longest_batch": self.step,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """The findings as lines to print."""
        total = sum(self.trainable.values())
        return [
            *self.settings.describe(),
            "",
            text("dry-trainable", count=total),
            *(f"  {count:>12,}  {matrix}" for matrix, count in self.trainable.items()),
            "",
            *self.memory.lines(),
            *self._memory_notes(),
            "",
            *self.data.report.lines(),
            text("dry-steps", steps=self.steps, rows=self.examples_a_step, tokens=self.tokens_a_pass),
            "",
            text("dry-examples", template=self.data.report.template),
            *(f"  {shown.line()}" for shown in self.examples),
            "",
            self._step_line(),
            *self.notes,
        ]

    def _memory_notes(self) -> list[str]:
        if self.device_bytes is None:
            return [f"  {text('dry-on-gpu')}"]
        share = self.memory.peak / self.device_bytes
        values = {"size": f"{self.device_bytes / GIB:.1f}", "device": self.device}
        fits = text("dry-fits", **values, share=f"{share:.0%}") if share <= 1 else text("dry-too-large", **values)
        return [f"  {fits}"]

    def _step_line(self) -> str:
        values = {key: str(self.step[key]) for key in ("rows", "tokens")}
        values |= {"loss": f"{self.step['loss']:.4f}", "seconds": f"{self.step['seconds']:.2f}"}
        measured = self.step.get("peak_memory_gib")
        if measured is None:
            return text("dry-longest", **values)
        apart = f"{self.memory.peak / GIB / measured - 1:+.1%}"
        return text("dry-longest-measured", **values, peak=f"{measured:.2f}", apart=apart)


def dry_run(settings: Settings, device: str = "auto") -> DryRun:
    """Check settings and data, estimate memory, then load the model and run its longest batch; nothing is trained.

    Raises:
        the errors of each part, as `prepare_run` does; TrainingError when the batch does not fit into memory.
    """
    arguments = request(settings, device)
    inputs = load_inputs(settings, own_device(device))
    data, where, precision = inputs.data, inputs.device, inputs.precision
    batch = longest_batch(data, arguments.per_device_train_batch_size)
    on_gpu = where.type == "cuda"
    newest = not on_gpu or torch.cuda.get_device_capability(where)[0] >= 9
    memory = estimate_memory(settings, inputs.config, precision, batch, hopper=newest)
    base = load_for_settings(settings, precision, where)
    with absent_again(Path(settings.train.output_dir)):  # the Trainer makes its output folder
        run = build_run(inputs, base, quiet=True)
    if not run.trainer.token_loss.in_chunks:
        memory = estimate_memory(settings, inputs.config, precision, batch, hopper=newest, loss_in_chunks=False)
    start = time.perf_counter()
    step = longest_batch_step(run)
    step["seconds"] = time.perf_counter() - start
    properties = torch.cuda.get_device_properties(where) if on_gpu else None
    return DryRun(
        settings=settings,
        data=data,
        trainable=trainable_by_type(run.model),
        memory=memory,
        device=properties.name if properties else "cpu",
        device_bytes=properties.total_memory if properties else None,
        steps=run.total_steps,
        examples_a_step=arguments.per_device_train_batch_size
        * arguments.gradient_accumulation_steps
        * arguments.world_size,
        tokens_a_pass=sum(data.train["length"]),
        examples=[show(inputs.tokenizer, data.train[index]) for index in range(min(SHOWN_EXAMPLES, len(data.train)))],
        step=step,
        notes=[*settings.notes, *run.notes],
    )


def show(tokenizer: "PreTrainedTokenizerBase", example: dict[str, Any]) -> ShownExample:
    """An example decoded, run by run; an eos that the tokenizer decodes to nothing is written as <eos>."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        learnt = label != IGNORED
        if not runs or runs[-1][1] != learnt:
            runs.append(([], learnt))
        runs[-1][0].append(token)
    decoded = []
    for ids, learnt in runs:
        run = str(tokenizer.decode(ids))
        if ids[-1] == tokenizer.eos_token_id and not tokenizer.decode(ids[-1:]):
            run += "<eos>"
        decoded.append((run, learnt))
    return ShownExample(decoded, len(example["input_ids"]), sum(label != IGNORED for label in example["labels"]))
