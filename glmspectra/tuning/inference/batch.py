"""Batch inference: questions from a data file of any format to a JSON Lines file of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.device import best_dtype, choose_device
from glmspectra.errors import DataError
from glmspectra.files import write_text
from glmspectra.json_files import json_text
from glmspectra.tuning.data import Encoder, Row
from glmspectra.tuning.data.template import choose_template
from glmspectra.tuning.inference.generation import generate, split_prompt
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.model.four_bit import four_bit_config
from glmspectra.tuning.model.loading import load_base, load_config, load_tokenizer, positions_of
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.settings.models import FinetuneArgs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(encoder: Encoder, question: Row | str) -> list[int]:
    """Token ids that the model answers to: what would stand before the answer in training.

    Args:
        encoder: Writes the turns as in training.
        question: A single question, or a row whose last turn is one.

    Raises:
        DataError: It does not fit.
    """
    row = Row("", 0, (("user", question),), True) if isinstance(question, str) else question
    before = tuple(index for index, (role, _) in enumerate(row.turns) if role == "assistant")
    example = encoder.encode(replace(row, turns=(*row.turns, ("assistant", "a")), silent=before))
    if example is None or isinstance(example, str):
        source = f"{row.file}, line {row.line}: " if row.file else ""
        raise DataError(f"{source}the question {row.turns[-1][1][:40]!r} does not fit: {example or 'too long'}.")
    return split_prompt(example.input_ids, example.labels)[0]


@dataclass
class Loaded:
    """A model that answers: with its tokenizer, and the template that its questions take."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder


def load_for_inference(
    folder: Path,
    adapter: Path | None = None,
    device: str = "auto",
    template: str = "auto",
    max_length: int = 2048,
    four_bit: bool = False,
    conversations: bool = False,
) -> Loaded:
    """The model in `folder`, with an adapter where one is named; bfloat16 or float16 on a GPU, float32 on a CPU."""
    where = choose_device(device)
    dtype = best_dtype(where)
    precision = Precision(dtype, dtype, None)
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    quantization = four_bit_config(FinetuneArgs(dataset_path=""), dtype) if four_bit else None
    model = load_base(folder, precision, where, quantization)
    if adapter is not None:
        from glmspectra.tuning.model.saved_adapter import load_adapter  # PEFT alone takes a second or two

        model = load_adapter(model, adapter)
    chosen = choose_template(template, family_of(config), tokenizer, conversations)
    limit = positions_of(config)
    return Loaded(model, tokenizer, Encoder(tokenizer, chosen, min(max_length, limit or max_length), "cut_context"))


def infer(
    loaded: Loaded,
    questions: Sequence[tuple[dict[str, Any], Row]],
    out: Path,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    **sampling: Any,
) -> str:
    """Answer every question into `out`, one JSON object a line: its own columns and the answer, in the same order.

    Args:
        loaded: The model that answers.
        questions: As `read_questions` gives them.
        out: Appears when all is done.
        max_new_tokens: Length of an answer.
        batch_size: Questions at a time.
        progress: Called with the number of new answers.
        **sampling: Further arguments of `generate`.

    Returns:
        The column that holds the answers: "answer", or "generated_answer" where the rows have one of that name.

    Raises:
        DataError: A question does not fit, before anything is generated.
    """
    prompts = [prompt_ids(loaded.encoder, row) for _, row in questions]
    answers = generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens, batch_size, progress, **sampling)
    name = "generated_answer" if any("answer" in value for value, _ in questions) else "answer"
    pairs = zip(questions, answers, strict=True)
    write_text(out, "".join(json_text({**value, name: answer}) + "\n" for (value, _), answer in pairs))
    return name
