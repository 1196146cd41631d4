"""The way of the data through its stages, from settings to what the Trainer takes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.errors import DataError, RequestError
from glmspectra.language import text
from glmspectra.tuning.data.cache import default_cache, encoded, writable
from glmspectra.tuning.data.collate import PackedCollator, PaddingCollator
from glmspectra.tuning.data.encode import Encoder
from glmspectra.tuning.data.packing import pack_dataset
from glmspectra.tuning.data.read import Source, find_sources
from glmspectra.tuning.data.report import DataReport
from glmspectra.tuning.data.row_store import RowStore, joined
from glmspectra.tuning.data.rows import BadRow, Columns
from glmspectra.tuning.data.split import count_duplicates, drop_duplicates, split_rows, weighted
from glmspectra.tuning.data.template import choose_template
from glmspectra.tuning.model.families import Family
from glmspectra.tuning.settings.load import Settings
from glmspectra.tuning.settings.models import DataSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    rows: dict[str, RowStore]
    encoder: Encoder


def read_rows(settings: Settings, folder: Path | None = None) -> tuple[dict[str, RowStore], DataReport]:
    """Rows of train and valid, checked and split, and the report so far. No tokenizer is needed.

    Args:
        settings: Of the run.
        folder: Where rows go that memory is not to hold; None: the system's folder for temporary files.

    Raises:
        RequestError: a path is not there.
        DataError: a file cannot be read, or rows are bad and `on_bad_data` is "error".
    """
    finetune = settings.finetune
    report = DataReport(max_length=finetune.max_length, on_long=finetune.on_long)
    parts: dict[str, list[tuple[RowStore, float]]] = {"train": [], "valid": []}
    for source in finetune.sources:
        found, notes = find_sources(Path(source.path))
        report.notes += notes
        for split, files in found.items():
            if split == "train" or finetune.valid_path is None:
                parts[split].append((_read_part(files, source, report, folder), source.weight))
    for source in finetune.valid_sources:
        path = Path(source.path)
        if not path.is_file():
            raise RequestError(f"valid_path {path}: there is no such data file.")
        parts["valid"].append((_read_part(Source([path]), source, report, folder), 1.0))
    train, valid = ([part for part, _ in parts[split]] for split in ("train", "valid"))
    if valid:
        train, valid = _apart(train, valid, report)
        if finetune.valid_fraction is not None:
            report.notes.append(text("data-fraction-aside"))
    else:
        train, valid = _split(train, settings, report)
    report.settle(finetune.on_bad_data)
    if not any(map(len, train)):
        raise DataError(f"{finetune.named_sources}: no row is left to train on.")
    report.duplicates = count_duplicates(joined(train))
    for index, (source, rows) in enumerate(zip(finetune.sources, train, strict=True)):
        if source.weight != 1:
            train[index] = weighted(rows, source.weight, finetune.seed)
            counts: dict[str, Any] = {"kept": len(train[index]), "all": len(rows)}
            report.notes.append(text("data-weighted", path=source.path, weight=f"{source.weight:g}", **counts))
    return {"train": joined(train), "valid": joined(valid)}, report


def _read_part(source: Source, settings: DataSource, report: DataReport, folder: Path | None) -> RowStore:
    """The rows of one data set that can be used; those that cannot go to the report."""
    rows = RowStore(folder=folder)
    for row in source.rows(Columns.of(settings.columns)):
        if isinstance(row, BadRow):
            report.bad.append(row)
        else:
            rows.append(replace(row, template=settings.template) if settings.template != "auto" else row)
    report.files += source.facts
    return rows


def _apart(train: list[RowStore], valid: list[RowStore], report: DataReport) -> tuple[list[RowStore], list[RowStore]]:
    """Both parts, without the rows of valid that train has too."""
    kept, bad, report.shared_contexts = drop_duplicates(joined(train), joined(valid))
    report.bad += bad
    return train, [kept]


def _split(train: list[RowStore], settings: Settings, report: DataReport) -> tuple[list[RowStore], list[RowStore]]:
    """Each data set without the share that is kept for evaluation, and those shares."""
    evaluates = settings.train.eval_strategy != "no"
    fraction = settings.finetune.valid_fraction or (VALID_FRACTION if evaluates else 0.0)
    if not fraction:
        return train, []
    whole = joined(train)
    left, kept = split_rows(whole, fraction, settings.finetune.seed)
    report.notes.append(text("data-kept-apart", kept=len(kept), all=len(whole), fraction=str(fraction)))
    if len(train) == 1:
        return [left], [kept]
    asked = set(kept.contexts)  # a context of one data set is kept from all of them
    return [part.select(at for at, context in enumerate(part.contexts) if context not in asked) for part in train], [
        kept
    ]


def prepare_data(
    settings: Settings,
    tokenizer: "PreTrainedTokenizerBase",
    family: Family,
    limit: int | None = None,
    vocabulary: int | None = None,
) -> TrainingData:
    """Read, check, tokenize (or take from the cache) and, where asked, pack.

    Args:
        settings: Of the run.
        tokenizer: The model's.
        family: The model's, which says what `template: auto` means.
        limit: positions that the model has; a longer `max_length` comes down to it, with a note.
        vocabulary: rows of the model's embedding; a token beyond them is an error.

    Raises:
        RequestError, ConfigError: the settings do not go with the data or the tokenizer.
        DataError: rows are bad and `on_bad_data` is "error"; or nothing is left.
    """
    finetune = settings.finetune
    cache = Path(finetune.cache_dir) if finetune.cache_dir else default_cache()
    rows, report = read_rows(settings, writable(cache))
    encoder = _encoder(settings, tokenizer, family, rows, report, limit)
    datasets: dict[str, Any] = {}
    used: dict[str, RowStore] = {}
    for name, split in rows.items():
        if not split:
            continue
        made = encoded(split, encoder, cache)
        report.splits[name] = made.counts
        report.bad += made.bad_rows(split)
        used[name] = split.select(made.dataset["row"])
        datasets[name] = made.dataset
        if vocabulary is not None:
            check_tokens(made.dataset, vocabulary)
    report.settle(finetune.on_bad_data)
    if not len(datasets["train"]):
        raise DataError(f"{finetune.named_sources}: no row is left to train on after tokenizing.")
    padding = PaddingCollator(_pad_id(tokenizer))
    collator: PaddingCollator | PackedCollator = padding
    if finetune.packing:
        datasets["train"] = pack_dataset(datasets["train"], encoder.max_length, writable(cache))
        report.splits["train"].packed_rows = len(datasets["train"])
        collator = PackedCollator(padding.pad_token_id, one_row="flash" in finetune.attn_implementation)
    valid = datasets.get("valid")
    if valid is not None and not len(valid):
        valid = None
    return TrainingData(datasets["train"], valid, collator, report, used, encoder)


def _encoder(
    settings: Settings,
    tokenizer: "PreTrainedTokenizerBase",
    family: Family,
    rows: dict[str, RowStore],
    report: DataReport,
    limit: int | None,
) -> Encoder:
    """The encoder of these rows; template and length are settled, and said in the report."""
    finetune = settings.finetune
    max_length = finetune.max_length
    if limit is not None and limit < max_length:
        report.notes.append(text("data-shorter", wanted=max_length, limit=limit))
        max_length = limit
    prompt_types = {one for split in rows.values() for one in split.prompt_types}
    conversations = any(not pair for pair, template, _ in prompt_types if template == "auto")
    for pair, template, _ in prompt_types:
        if template != "auto":
            choose_template(template, family, tokenizer, not pair)  # refuses what cannot be
    template = choose_template(finetune.template, family, tokenizer, conversations)
    report.template, report.max_length = template, max_length
    encoder = Encoder(tokenizer, template, max_length, finetune.on_long, finetune.separator)
    asks_chat = any(system and "chat" in (own, template if own == "auto" else "") for _, own, system in prompt_types)
    if asks_chat and not encoder.takes_system:
        report.notes.append(text("data-no-system"))
    return encoder


def check_tokens(dataset: Any, vocabulary: int) -> None:
    """Stop when a token id has no row in the embedding, which on a GPU would end in a device-side assert.

    Raises:
        DataError: tokenizer and model do not belong together.
    """
    import pyarrow.compute

    chunks = dataset.data.column("input_ids").chunks
    largest = max((pyarrow.compute.max(chunk.flatten()).as_py() or 0 for chunk in chunks), default=0)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token {largest}, and the model's embedding has {vocabulary} rows: they do not belong "
            "together; use the tokenizer of the model's own folder."
        )


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The padding token, or eos where there is none: padding is masked, so any id serves."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
