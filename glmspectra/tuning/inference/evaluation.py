"""Loss, perplexity, token accuracy and text scores of a model, without and with an adapter, row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from scipy import special

from glmspectra.device import choose_device
from glmspectra.errors import RequestError
from glmspectra.files import write_text
from glmspectra.json_files import write_json
from glmspectra.language import both, text
from glmspectra.tuning.data.batching import REAL_TOKENS, TrainingCollator
from glmspectra.tuning.inference.generation import decode, generate, split_prompt
from glmspectra.tuning.inference.text_scores import text_scores
from glmspectra.tuning.model.loading import load_for_settings
from glmspectra.tuning.model.saved_adapter import load_adapter
from glmspectra.tuning.training.inputs import Inputs, load_inputs
from glmspectra.tuning.training.token_loss import TokenLoss
from glmspectra.tuning.training.trainer import token_metrics

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings


@dataclass
class Evaluation:
    """What was found. `base` is of the model alone, `tuned` with the adapter (None without one).

    base, tuned: loss (nats a token, mean over all tokens, so that long rows count for more), perplexity (exp of it),
    token_accuracy, tokens; with text scores rouge_l and bleu (0 to 100).
    difference: of the rows' own losses (each the mean nats a token of a row), with the adapter minus without: mean over
    rows, its 95 % interval, the number of rows. It is another average than that of `base` and `tuned`.
    samples: context, reference, base and tuned answer.
    four_bit: how the base's linear layers were rounded to 4 bits (bitsandbytes' 'nf4' or 'fp4'); None as stored.
    """

    model: str
    adapter: str | None
    split: str
    rows: int
    base: dict[str, float] | None
    tuned: dict[str, float] | None
    difference: dict[str, float] | None = None
    samples: list[dict[str, str]] = field(default_factory=list)
    four_bit: str | None = None
    # name ('base', 'tuned') -> mean nats a token of each row, float64 [rows]: for comparing adapters row by row.
    row_losses: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "row_losses"}

    def lines(self) -> list[str]:
        lines = [text("evaluation-rows", rows=self.rows, split=self.split)]
        if self.four_bit is not None:
            lines.append(text("evaluation-four-bit", type=self.four_bit))
        for name, values in (("base", self.base), ("tuned", self.tuned)):
            if values is not None:
                lines.append(_scores(name, values))
        if self.difference is not None and not math.isfinite(self.difference["low"]):
            lines.append(text("evaluation-difference-one", mean=f"{self.difference['mean']:+.4f}"))
        elif self.difference is not None:
            interval = {key: f"{self.difference[key]:+.4f}" for key in ("mean", "low", "high")}
            lines.append(text("evaluation-difference", **interval, rows=int(self.difference["rows"])))
        rows = self.row_losses
        if self.tuned is not None and "tuned" in rows and np.array_equal(rows["base"], rows["tuned"]):
            lines.append(text("evaluation-same"))
        return lines


def _scores(name: str, values: dict[str, float]) -> str:
    """Loss and scores of one model in a line; name: 'base' or 'tuned'."""
    scores = text(
        "evaluation-scores",
        name=both(f"evaluation-{name}"),
        loss=f"{values['loss']:.4f}",
        tokens=int(values["tokens"]),
        perplexity=f"{values['perplexity']:.3f}",
        accuracy=f"{values['token_accuracy']:.3f}",
    )
    if "rouge_l" not in values:
        return scores
    return text("evaluation-text-scores", scores=scores, rouge=f"{values['rouge_l']:.2f}", bleu=f"{values['bleu']:.2f}")


def paired_interval(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """Mean of after - before over rows, with Student's t interval: {"mean", "low", "high", "rows"}.

    before, after: float [rows], the same rows in the same order.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    rows, mean = len(difference), float(difference.mean())
    if rows < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan, "rows": rows}
    half = float(special.stdtrit(rows - 1, 0.5 + confidence / 2) * difference.std(ddof=1) / math.sqrt(rows))
    return {"mean": mean, "low": mean - half, "high": mean + half, "rows": rows}


@torch.no_grad()
def losses_by_row(
    model: Any,
    token_loss: TokenLoss,
    rows: Any,
    collator: TrainingCollator,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Per row: summed loss in nats, supervised tokens, correct tokens; float64 [rows, 3], in the order of `rows`."""
    device = next(model.parameters()).device
    model.eval()
    found = np.zeros((len(rows), 3))
    order = np.argsort(-np.asarray(rows["length"]), kind="stable")
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = collator([rows[int(index)] for index in chosen])
        inputs = {key: value.to(device) for key, value in batch.items() if key != REAL_TOKENS}
        losses = token_loss(model, inputs)
        values = torch.stack((losses.nll, torch.ones_like(losses.nll), losses.correct.float()), -1).double().cpu()
        sums = torch.zeros(len(chosen), 3, dtype=torch.float64).index_add_(0, losses.rows.cpu(), values)
        found[chosen] = sums.numpy()
        if progress is not None:
            progress(len(chosen))
    return found


def evaluate(
    settings: Settings,
    adapter: Path | None = None,
    device: str = "auto",
    split: str = "valid",
    limit: int | None = None,
    samples: int = 0,
    scored: int = 0,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate the model that the settings name on a split of their data.

    The base is measured before an adapter touches it: biases, heads or weights that an adapter replaces or starts from
    (`bias`, `modules_to_save`, PiSSA) are the base's own then.

    Args:
        settings: Of the model and its data.
        adapter: A PEFT folder; the model is evaluated without and with it.
        device: As `choose_device` takes it.
        split: "valid" or "train".
        limit: Rows at most.
        samples: How many answers are generated for reading.
        scored: For how many rows answers are generated for ROUGE-L and BLEU.
        max_new_tokens: Length of an answer.
        batch_size: Rows at a time.
        progress: Called with what is done, how much of it, and of how much.

    Raises:
        RequestError: There is no such split or adapter.
        CheckpointError, DataError: Model, adapter or data cannot be used.
    """
    inputs = load_inputs(settings, choose_device(device))
    rows = _rows_of(inputs, split, limit)
    model = load_for_settings(settings, inputs.precision, inputs.device)
    answered = rows.select(range(min(max(samples, scored), len(rows))))
    prompts = [split_prompt(row["input_ids"], row["labels"]) for row in answered]
    questions = [decode(inputs.tokenizer, prompt) for prompt, _ in prompts[:samples]]
    references = [decode(inputs.tokenizer, answer) for _, answer in prompts]
    work = _Work(inputs, rows, [prompt for prompt, _ in prompts], max_new_tokens, batch_size, progress)
    found = {"base": work.measure(model, "base")}
    if adapter is not None:
        found["tuned"] = work.measure(load_adapter(model, adapter), "tuned")
    for measured in found.values():
        if scored:
            measured.metrics |= text_scores(measured.answers[:scored], references[:scored])
    row_losses = {name: measured.row_losses for name, measured in found.items()}
    return Evaluation(
        model=str(settings.finetune.model_path),
        adapter=str(adapter) if adapter is not None else None,
        split=split,
        rows=len(rows),
        base=found["base"].metrics,
        tuned=found["tuned"].metrics if adapter is not None else None,
        difference=paired_interval(row_losses["base"], row_losses["tuned"]) if adapter is not None else None,
        samples=_samples(questions, references, found),
        four_bit=settings.finetune.bnb_4bit_quant_type if settings.quantized else None,
        row_losses=row_losses,
    )


def _rows_of(inputs: Inputs, split: str, limit: int | None) -> Any:
    rows = inputs.data.train if split == "train" else inputs.data.valid
    if rows is None:
        raise RequestError(
            f"there are no {split} rows in {inputs.settings.finetune.dataset_path}; give valid_path or valid_fraction "
            "(--set finetune.valid_fraction=0.1), or --split train."
        )
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _samples(
    questions: Sequence[str], references: Sequence[str], found: Mapping[str, _Measured]
) -> list[dict[str, str]]:
    """What a person reads beside each other: the question, the answer of the data, and each model's."""
    return [
        {"context": question, "reference": references[index]}
        | {name: measured.answers[index] for name, measured in found.items()}
        for index, question in enumerate(questions)
    ]


@dataclass
class _Measured:
    """One model on the rows. row_losses: mean nats a token of each row, float64 [rows]."""

    metrics: dict[str, float]
    row_losses: np.ndarray
    answers: list[str]


@dataclass(frozen=True)
class _Work:
    """What is measured of each model: losses on all rows, answers to the prompts (token ids)."""

    inputs: Inputs
    rows: Any
    prompts: list[list[int]]
    max_new_tokens: int
    batch_size: int
    progress: Callable[[str, int, int], None] | None

    def measure(self, model: Any, name: str) -> _Measured:
        """Measure a model, 'base' or 'tuned' (with an adapter)."""
        shown = text(f"evaluation-{name}")
        inputs, data = self.inputs, self.inputs.data
        token_loss = TokenLoss(model.get_base_model() if isinstance(model, PeftModel) else model)
        collator = TrainingCollator(data.collator)
        with inputs.precision.context(inputs.device):
            advance = self._advance(f"{shown}: {text('progress-loss')}", len(self.rows))
            sums = losses_by_row(model, token_loss, self.rows, collator, self.batch_size, advance)
            answers: list[str] = []
            if self.prompts:
                advance = self._advance(f"{shown}: {text('progress-answers')}", len(self.prompts))
                answers = generate(model, inputs.tokenizer, self.prompts, self.max_new_tokens, self.batch_size, advance)
        return _Measured(token_metrics(*sums.sum(0).tolist()), sums[:, 0] / sums[:, 1], answers)

    def _advance(self, what: str, count: int) -> Callable[[int], None]:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress(what, done, count)

        return advance


def write_evaluation(result: Evaluation, out: Path) -> None:
    """evaluation.json, and samples.jsonl where there are any, into `out`."""
    values = {key: value for key, value in result.as_dict().items() if key != "samples"}
    write_json(out / "evaluation.json", values)
    if result.samples:
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in result.samples)
        write_text(out / "samples.jsonl", "".join(lines))
