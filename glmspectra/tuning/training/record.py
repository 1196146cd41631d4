"""`run.json`: what a run folder belongs to, so that no run goes on as another one.

The settings themselves lie beside it in `resolved_args/`. The record adds what they do not say: the content of the base
and of the data, the types that "auto" came to, the number of processes, the versions, and the result once it is there.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from glmspectra import __version__
from glmspectra.embedded import locate_model
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import write_text
from glmspectra.json_files import read_model, read_object
from glmspectra.tuning.settings.files import FILES, shown

if TYPE_CHECKING:
    from datasets import Dataset

    from glmspectra.tuning.settings.load import Settings
    from glmspectra.tuning.training.inputs import Inputs

RECORD_FILE = "run.json"
SETTINGS_FOLDER = "resolved_args"

# Settings that change no number of the trained adapter: where things lie (their content is compared), what is written
# or shown and when, and how the same is computed in other memory.
HARMLESS = {
    "finetune.cache_dir", "finetune.columns", "finetune.dataset_path", "finetune.eval_samples",
    "finetune.eval_samples_max_new_tokens", "finetune.final_model_path", "finetune.model_path",
    "finetune.on_bad_data", "lora.ranks_base", "train.dataloader_num_workers",
    "train.dataloader_persistent_workers", "train.dataloader_pin_memory", "train.dataloader_prefetch_factor",
    "train.disable_tqdm", "train.gradient_checkpointing", "train.gradient_checkpointing_kwargs", "train.log_level",
    "train.log_on_each_node", "train.logging_first_step", "train.logging_steps", "train.logging_strategy",
    "train.report_to", "train.run_name", "train.save_steps", "train.save_strategy",
    "train.save_total_limit",
}  # fmt: skip
# How a command is given, which is not compared.
OF_THE_COMMAND = {"finetune.resume_from_checkpoint", "train.output_dir"}
# Settings that decide only what is evaluated, which decides what is trained where the best checkpoint is kept.
OF_EVALUATION = {
    "finetune.valid_fraction", "finetune.valid_path", "train.eval_delay", "train.eval_steps", "train.eval_strategy",
    "train.per_device_eval_batch_size", "valid data",
}  # fmt: skip


class RunRecord(BaseModel):
    """One run folder.

    Attributes:
        base: fingerprint of the base's files (None: a format that has none).
        data: split -> hash of its token ids and labels.
        precision: types of weights and products, autocast.
        finished: the result, None until then.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    glmspectra_run: Literal[1] = 1
    began: str
    base: str | None
    data: dict[str, str]
    precision: str
    processes: int
    versions: dict[str, str]
    finished: dict[str, Any] | None = None

    @classmethod
    def of(cls, inputs: Inputs, processes: int) -> RunRecord:
        """The record of a run that begins now with these inputs."""
        data = inputs.data
        splits = {"train": data.train} | ({"valid": data.valid} if data.valid is not None else {})
        precision = inputs.precision
        return cls(
            began=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            base=_fingerprint_of_base(inputs.settings),
            data={name: fingerprint_of_rows(rows) for name, rows in splits.items()},
            precision=f"{precision.weights}, {precision.compute}, autocast {precision.autocast}".replace("torch.", ""),
            processes=processes,
            versions=_versions(),
        )

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The record in a folder, None where there is none. Raises RequestError when it cannot be read."""
        path = folder / RECORD_FILE
        return read_model(path, cls, RequestError) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Put the record into a run folder, whole or not at all."""
        write_text(folder / RECORD_FILE, self.model_dump_json(indent=2) + "\n")

    def facts(self) -> dict[str, Any]:
        """What is compared beside the settings, by the name that a difference is given."""
        data = {f"{split} data": value for split, value in self.data.items()}
        versions = {f"version of {name}": value for name, value in self.versions.items()}
        own = {"base weights": self.base, "precision": self.precision, "processes": self.processes}
        return own | data | versions


@dataclass(frozen=True)
class Difference:
    """One thing in which a run that is asked for differs from the one in a folder.

    Attributes:
        harmless: it changes no number of what is trained.
    """

    key: str
    then: Any
    now: Any
    harmless: bool

    def __str__(self) -> str:
        if self.key.endswith((" data", " weights")):
            return f"{self.key}: another content"
        return f"{self.key}: {shown(self.now)}, was {shown(self.then)}"


def differences(settings: Settings, now: RunRecord, folder: Path) -> list[Difference]:
    """How the run that is asked for differs from the one that `folder` belongs to.

    Raises:
        RequestError: The record or the settings in `folder` cannot be read.
    """
    before = RunRecord.read(folder)
    found = _settings_differences(settings, folder / SETTINGS_FOLDER)
    if before is not None:
        facts, earlier = now.facts(), before.facts()
        for key in facts.keys() | earlier.keys():
            if facts.get(key) != earlier.get(key):
                found.append(Difference(key, earlier.get(key), facts.get(key), key.startswith("version of ")))
    keeps_best = bool(settings.train.load_best_model_at_end or settings.finetune.early_stopping_patience)
    found = [
        Difference(item.key, item.then, item.now, not keeps_best) if item.key in OF_EVALUATION else item
        for item in found
    ]
    return sorted(found, key=lambda item: (item.harmless, item.key))


def _settings_differences(settings: Settings, folder: Path) -> list[Difference]:
    """Keys of the three files that differ; a key that one of the two does not name has its default there."""
    models = {"finetune": settings.finetune, "lora": settings.lora, "train": settings.train}
    found = []
    for section, values in settings.as_files().items():
        path = folder / FILES[section]
        earlier = read_object(path, RequestError) if path.is_file() else {}
        fields = type(models[section]).model_fields
        defaults = {info.alias or name: info.default for name, info in fields.items()}
        for key in values.keys() | earlier.keys():
            then, now = (side.get(key, defaults.get(key)) for side in (earlier, values))
            name = f"{section}.{key}"
            if then != now and name not in OF_THE_COMMAND:
                found.append(Difference(name, then, now, name in HARMLESS))
    return found


def fingerprint_of_rows(rows: Dataset) -> str:
    """A hash of the token ids and labels of all rows, in their order: 32 hex digits."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(1000):
        for name in ("input_ids", "labels"):
            column = batch[name].combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _fingerprint_of_base(settings: Settings) -> str | None:
    from glmspectra.checkpoint import open_checkpoint

    try:
        with open_checkpoint(locate_model(settings.finetune.model_path)) as checkpoint:
            return checkpoint.fingerprint
    except CheckpointError:
        return None  # transformers loads a format that is not measured here; its path is compared


def _versions() -> dict[str, str]:
    import peft
    import torch
    import transformers

    found = {"glmspectra": __version__, "torch": torch.__version__, "peft": peft.__version__}
    return found | {"transformers": transformers.__version__}
