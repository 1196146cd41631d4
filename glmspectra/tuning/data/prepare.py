"""The way of the data through its stages, from settings to what the Trainer takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmspectra.errors import DataError
from glmspectra.tuning.data.cache import default_cache, encoded
from glmspectra.tuning.data.collate import PackedCollator, PaddingCollator
from glmspectra.tuning.data.encode import Encoder
from glmspectra.tuning.data.packing import pack_dataset
from glmspectra.tuning.data.read import read_dataset, read_file
from glmspectra.tuning.data.report import DataReport
from glmspectra.tuning.data.rows import Columns, Row
from glmspectra.tuning.data.split import drop_duplicates, split_rows, take_bad
from glmspectra.tuning.data.template import choose_template
from glmspectra.tuning.model.families import Family
from glmspectra.tuning.settings.load import Settings

VALID_FRACTION = 0.05  # of a single file, where the run evaluates and the settings do not say


@dataclass
class TrainingData:
    """What a run trains and evaluates on. `valid` is None when there is nothing to evaluate on.

    train, valid: `datasets.Dataset` with input_ids, labels, length; packed rows have position_ids and examples too.
    valid is never packed, so that its losses are of single examples; `collator` takes both.
    rows: the rows behind the examples that are used, by split, for samples and text scores.
    """

    train: Any
    valid: Any | None
    collator: PaddingCollator | PackedCollator
    report: DataReport
    rows: dict[str, list[Row]]
    encoder: Encoder


def read_rows(settings: Settings) -> tuple[dict[str, list[Row]], DataReport]:
    """Rows of train and valid, checked and split, and the report so far. No tokenizer is needed.

    Raises:
        RequestError: a path is not there.
        DataError: a file cannot be read, or rows are bad and `on_bad_data` is "error".
    """
    finetune = settings.finetune
    columns = Columns(**finetune.columns) if finetune.columns else Columns()
    report = DataReport(max_length=finetune.max_length, on_long=finetune.on_long)
    read = read_dataset(Path(finetune.dataset_path), columns)
    if finetune.valid_path is not None:
        read["valid"] = read_file(Path(finetune.valid_path), columns)
    train, bad = take_bad(read["train"])
    report.bad += bad
    valid: list[Row] = []
    if "valid" in read:
        valid, bad = take_bad(read["valid"])
        report.bad += bad
        valid, bad, report.shared_contexts = drop_duplicates(train, valid)
        report.bad += bad
        if finetune.valid_fraction is not None:
            report.notes.append("valid_fraction is set aside, since the data comes with a valid part.")
    else:
        evaluates = settings.train.eval_strategy != "no"
        fraction = finetune.valid_fraction or (VALID_FRACTION if evaluates else 0.0)
        if fraction:
            train, valid = split_rows(train, fraction, finetune.seed)
            report.notes.append(
                f"{len(valid):,} of {len(train) + len(valid):,} rows are kept for evaluation "
                f"(valid_fraction {fraction})."
            )
    report.settle(finetune.on_bad_data)
    if not train:
        raise DataError(f"{finetune.dataset_path}: no row is left to train on.")
    return {"train": train, "valid": valid}, report


def prepare_data(
    settings: Settings, tokenizer: Any, family: Family, limit: int | None = None, vocabulary: int | None = None
) -> TrainingData:
    """Read, check, tokenise (or take from the cache) and, where asked, pack.

    Args:
        limit: positions that the model has; a longer `max_length` comes down to it, with a note.
        vocabulary: rows of the model's embedding; a token beyond them is an error.

    Raises:
        RequestError, ConfigError: the settings do not go with the data or the tokenizer.
        DataError: rows are bad and `on_bad_data` is "error"; or nothing is left.
    """
    finetune = settings.finetune
    rows, report = read_rows(settings)
    max_length = finetune.max_length
    if limit is not None and limit < max_length:
        report.notes.append(f"max_length {max_length:,} comes down to {limit:,}, the positions that the model has.")
        max_length = limit
    conversations = any(not row.pair for split in rows.values() for row in split)
    template = choose_template(finetune.template, family, tokenizer, conversations)
    report.template, report.max_length = template, max_length
    encoder = Encoder(tokenizer, template, max_length, finetune.on_long)
    folder = Path(finetune.cache_dir) if finetune.cache_dir else default_cache()
    datasets: dict[str, Any] = {}
    for name, split in rows.items():
        if not split:
            continue
        made = encoded(split, encoder, folder)
        report.splits[name] = made.counts
        report.bad += made.bad_rows(split)
        rows[name] = [split[index] for index in made.dataset["row"]]
        datasets[name] = made.dataset
        if vocabulary is not None:
            check_tokens(made.dataset, vocabulary)
    report.settle(finetune.on_bad_data)
    if not len(datasets["train"]):
        raise DataError(f"{finetune.dataset_path}: no row is left to train on after tokenising.")
    padding = PaddingCollator(_pad_id(tokenizer), family.padding_side, family.position_ids)
    collator: PaddingCollator | PackedCollator = padding
    if finetune.packing:
        datasets["train"] = pack_dataset(datasets["train"], max_length)
        report.splits["train"].packed_rows = len(datasets["train"])
        collator = PackedCollator(padding.pad_token_id, one_row="flash" in finetune.attn_implementation)
    valid = datasets.get("valid")
    if valid is not None and not len(valid):
        valid = None
    return TrainingData(datasets["train"], valid, collator, report, rows, encoder)


def check_tokens(dataset: Any, vocabulary: int) -> None:
    """Stop when a token id has no row in the embedding, which on a GPU would end in a device-side assert.

    Raises:
        DataError: tokenizer and model do not belong together.
    """
    largest = max((max(ids) for ids in dataset["input_ids"]), default=0)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token {largest}, and the model's embedding has {vocabulary} rows: they do not belong "
            "together; use the tokenizer of the model's own folder."
        )


def _pad_id(tokenizer: Any) -> int:
    """The padding token, or eos where there is none: padding is masked, so any id serves."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
