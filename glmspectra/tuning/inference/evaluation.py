"""Loss, perplexity, token accuracy and text scores of a model, without and with an adapter, row by row."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModelForCausalLM, get_peft_model_state_dict
from peft.utils import load_peft_weights
from scipy import stats

from glmspectra.checkpoint.adapter.adapter import WEIGHT_FILES
from glmspectra.device import choose_device
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import write_text
from glmspectra.json_files import write_json
from glmspectra.tuning.data import prepare_data
from glmspectra.tuning.data.batching import REAL_TOKENS, TrainingCollator
from glmspectra.tuning.inference.generation import decode, generate, split_prompt
from glmspectra.tuning.inference.text_scores import text_scores
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.model.four_bit import keep_layout
from glmspectra.tuning.model.loading import (
    LOADING_ERRORS,
    first_line,
    load_config,
    load_for_settings,
    load_tokenizer,
    positions_of,
)
from glmspectra.tuning.model.precision import choose_precision
from glmspectra.tuning.training.token_loss import TokenLoss
from glmspectra.tuning.training.trainer import token_metrics

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings


@dataclass
class Evaluation:
    """What was found. `base` is of the model alone, `tuned` with the adapter (None without one).

    Each: loss (nats a token, over tokens), perplexity, token_accuracy, tokens, and with text scores rouge_l,
    bleu (0 to 100). difference: mean over rows of (loss with adapter - without), its 95 % interval, and the
    rows. samples: context, reference, base and tuned answer.
    """

    model: str
    adapter: str | None
    split: str
    rows: int
    base: dict[str, float] | None
    tuned: dict[str, float] | None
    difference: dict[str, float] | None = None
    samples: list[dict[str, str]] = field(default_factory=list)
    # name ('base', 'tuned') -> mean loss of each row, float64 [rows]: for comparing adapters row by row.
    row_losses: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "row_losses"}

    def lines(self) -> list[str]:
        lines = [f"{self.rows:,} rows of {self.split}"]
        for name, values in (("base", self.base), ("with adapter", self.tuned)):
            if values is not None:
                text = (
                    f"{name}: loss {values['loss']:.4f}, perplexity {values['perplexity']:.3f}, token accuracy "
                    f"{values['token_accuracy']:.3f} over {values['tokens']:,} tokens"
                )
                if "rouge_l" in values:
                    text += f"; ROUGE-L {values['rouge_l']:.2f}, BLEU {values['bleu']:.2f} by character"
                lines.append(text)
        if self.difference is not None:
            found = self.difference
            lines.append(
                f"loss of a row, with adapter minus without: {found['mean']:+.4f} (95 % interval {found['low']:+.4f} "
                f"to {found['high']:+.4f}, {found['rows']} rows)"
            )
        return lines


def paired_interval(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """Mean of after - before over rows, with Student's t interval: {"mean", "low", "high", "rows"}.

    before, after: float [rows], the same rows in the same order.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    rows, mean = len(difference), float(difference.mean())
    if rows < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan, "rows": rows}
    half = float(stats.t.ppf(0.5 + confidence / 2, rows - 1) * difference.std(ddof=1) / math.sqrt(rows))
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
    """Per row: summed loss in nats, supervised tokens, correct tokens; float64 [rows, 3], in the order of
    `rows`."""
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

    adapter: a PEFT folder; the model is then evaluated without and with it. limit: rows at most. samples: how
    many answers are generated for reading; scored: for how many rows answers are generated for ROUGE-L and
    BLEU. progress(what, done, all).

    Raises RequestError when there is no such split or adapter; the errors of loading and of the data.
    """
    place = choose_device(device)
    precision = choose_precision(settings, place)
    config = load_config(settings.finetune.model_path)
    tokenizer = load_tokenizer(settings.finetune.model_path)
    data = prepare_data(
        settings, tokenizer, family_of(config), limit=positions_of(config), vocabulary=config.vocab_size
    )
    rows = data.train if split == "train" else data.valid
    if rows is None:
        raise RequestError(
            f"there are no {split} rows in {settings.finetune.dataset_path}; give valid_path or valid_fraction "
            "(--set finetune.valid_fraction=0.1), or --split train."
        )
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    model = load_for_settings(settings, precision, place)
    token_loss = TokenLoss(model)
    if adapter is not None:
        model = load_adapter(model, adapter)
    collator = TrainingCollator(data.collator, data.collator.pad_token_id)

    def say(what: str, count: int) -> Callable[[int], None]:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(what, done, count)

        return advance

    with precision.context(place):
        with _without(model, adapter):
            before = losses_by_row(model, token_loss, rows, collator, batch_size, say("base loss", len(rows)))
        result = Evaluation(
            model=str(settings.finetune.model_path),
            adapter=str(adapter) if adapter is not None else None,
            split=split,
            rows=len(rows),
            base=token_metrics(*before.sum(0).tolist()),
            tuned=None,
        )
        result.row_losses["base"] = before[:, 0] / before[:, 1]
        if adapter is not None:
            after = losses_by_row(model, token_loss, rows, collator, batch_size, say("loss with adapter", len(rows)))
            result.tuned = token_metrics(*after.sum(0).tolist())
            result.row_losses["tuned"] = after[:, 0] / after[:, 1]
            result.difference = paired_interval(result.row_losses["base"], result.row_losses["tuned"])
        _generated(result, model, tokenizer, rows, adapter, samples, scored, max_new_tokens, batch_size, say)
    return result


def _generated(
    result: Evaluation,
    model: Any,
    tokenizer: Any,
    rows: Any,
    adapter: Path | None,
    samples: int,
    scored: int,
    max_new_tokens: int,
    batch_size: int,
    say: Callable[[str, int], Callable[[int], None]],
) -> None:
    count = min(max(samples, scored), len(rows))
    if not count:
        return
    split = [split_prompt(row["input_ids"], row["labels"]) for row in rows.select(range(count))]
    prompts = [prompt for prompt, _ in split]
    references = [decode(tokenizer, answer) for _, answer in split]
    answers: dict[str, list[str]] = {}
    for name in ("base", "tuned") if adapter is not None else ("base",):
        with _without(model, adapter) if name == "base" else nullcontext():
            advance = say(f"answers, {'base' if name == 'base' else 'with adapter'}", count)
            answers[name] = generate(model, tokenizer, prompts, max_new_tokens, batch_size, advance)
        values = result.base if name == "base" else result.tuned
        if scored and values is not None:
            values |= text_scores(answers[name][:scored], references[:scored])
    for index in range(min(samples, count)):
        sample = {"context": decode(tokenizer, prompts[index]), "reference": references[index]}
        result.samples.append(sample | {name: texts[index] for name, texts in answers.items()})


def load_adapter(model: Any, adapter: Path) -> Any:
    """A PEFT adapter folder on a loaded base, for inference. Folders of 2023 load too. A 4-bit base keeps its
    layout on any CPU.

    Raises:
        RequestError: there is no adapter.
        CheckpointError: it cannot be read, or it is not of this base: PEFT would leave out in silence what the base
            has no place for, and leave as they start the adapters that the folder says nothing of.
    """
    if not (adapter / "adapter_config.json").is_file():
        inner = sorted(path.parent for path in adapter.glob("*/adapter_config.json"))
        hint = f"; {inner[0]} is one" if inner else ""
        raise RequestError(f"--adapter {adapter}: there is no adapter_config.json{hint}.")
    if not any((adapter / name).is_file() for name in WEIGHT_FILES):  # PEFT would look for them on a hub
        raise CheckpointError(f"{adapter}: adapter_config.json is there, but neither {' nor '.join(WEIGHT_FILES)}.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")
            wrapped = PeftModelForCausalLM.from_pretrained(model, str(adapter), is_trainable=False)
        stored = load_peft_weights(str(adapter), device="cpu")
    except (*LOADING_ERRORS, UserWarning) as error:
        raise CheckpointError(
            f"{adapter}: cannot be put on this base: {first_line(error).rstrip('.')}; "
            "it is damaged, or of another model."
        ) from error
    homeless = stored.keys() - get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
    if foreign := sorted(key for key in homeless if "lora_" in key):
        raise CheckpointError(
            f"{adapter}: changes {len(foreign)} tensors that this base has no place for, {foreign[0]} among them; "
            f"it was trained on {wrapped.peft_config['default'].base_model_name_or_path or 'another base'}."
        )
    if getattr(model, "is_loaded_in_4bit", False):
        keep_layout(wrapped)
    return wrapped.eval()


def write_evaluation(result: Evaluation, out: Path) -> None:
    """evaluation.json, and samples.jsonl where there are any, into `out`."""
    values = {key: value for key, value in result.as_dict().items() if key != "samples"}
    write_json(out / "evaluation.json", values)
    if result.samples:
        text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in result.samples)
        write_text(out / "samples.jsonl", text)


def _without(model: Any, adapter: Path | None) -> Any:
    return model.disable_adapter() if adapter is not None else nullcontext()
