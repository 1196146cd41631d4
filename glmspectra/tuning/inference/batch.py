"""Batch inference: a JSON Lines file of questions to a JSON Lines file of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmspectra.device import best_dtype, choose_device
from glmspectra.errors import DataError, RequestError
from glmspectra.files import write_text
from glmspectra.tuning.data import Encoder, Row
from glmspectra.tuning.data.template import choose_template
from glmspectra.tuning.inference.generation import generate, split_prompt
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.model.four_bit import four_bit_config
from glmspectra.tuning.model.loading import load_base, load_config, load_tokenizer, positions_of
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.model.saved_adapter import load_adapter
from glmspectra.tuning.settings.models import FinetuneArgs


def read_questions(path: Path, column: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file. Raises RequestError without the file, DataError naming line and fault."""
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file.")
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (UnicodeDecodeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: is not one JSON object in UTF-8 ({error}).") from None
            if not isinstance(row, dict) or not isinstance(row.get(column), str) or not row[column].strip():
                raise DataError(
                    f"{path}, line {number}: has no text under {column}; name the right column with --column."
                )
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    return rows


def prompt_ids(encoder: Encoder, question: str) -> list[int]:
    """Token ids that the model answers to: what would stand before the answer in training."""
    row = Row("", 0, (("user", question), ("assistant", "a")), True)
    example = encoder.encode(row)
    if example is None or isinstance(example, str):
        raise DataError(f"the question {question[:40]!r} does not fit: {example or 'too long'}.")
    return split_prompt(example.input_ids, example.labels)[0]


@dataclass
class Loaded:
    """A model that answers: with its tokenizer, and the form that its questions take."""

    model: Any
    tokenizer: Any
    encoder: Encoder


def load_for_inference(
    place: Path,
    adapter: Path | None = None,
    device: str = "auto",
    template: str = "auto",
    max_length: int = 2048,
    four_bit: bool = False,
) -> Loaded:
    """The model at `place`, with an adapter where one is named; bfloat16 or float16 on a GPU, float32 on a
    CPU."""
    where = choose_device(device)
    dtype = best_dtype(where)
    precision = Precision(dtype, dtype, None)
    config, tokenizer = load_config(place), load_tokenizer(place)
    quantization = four_bit_config(FinetuneArgs(dataset_path=""), dtype) if four_bit else None
    model = load_base(place, precision, where, quantization)
    if adapter is not None:
        model = load_adapter(model, adapter)
    form = choose_template(template, family_of(config), tokenizer, conversations=False)
    limit = positions_of(config)
    return Loaded(model, tokenizer, Encoder(tokenizer, form, min(max_length, limit or max_length), "cut_context"))


def infer(
    loaded: Loaded,
    source: Path,
    out: Path,
    column: str = "context",
    max_new_tokens: int = 256,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    **sampling: Any,
) -> int:
    """Answer every line of `source` into `out`: the line's own fields and "answer", in the same order;
    returns the count.

    `out` appears when all is done. Raises DataError for a line that cannot be used, before anything is
    generated.
    """
    rows = read_questions(source, column)
    prompts = [prompt_ids(loaded.encoder, row[column]) for row in rows]
    answers = generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens, batch_size, progress, **sampling)
    pairs = zip(rows, answers, strict=True)
    write_text(out, "".join(json.dumps({**row, "answer": answer}, ensure_ascii=False) + "\n" for row, answer in pairs))
    return len(rows)
