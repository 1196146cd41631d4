"""The settings of a training run: three JSON files, checked as a whole before anything heavy is loaded.

    settings = load_settings(Path("args_file"), overrides=["lora.r=8"], ranks_file=None)
    settings.finetune.max_length, settings.lora.r, settings.train.learning_rate, settings.method
    settings.training_arguments()      # transformers.TrainingArguments
    settings.save(folder)              # three files again, which load_settings takes

`finetune_args.json` says what is trained on what, `lora_args.json` the adapter, `train_args.json` holds arguments
of the Trainer. The keys are those of the original study, and more.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from glmspectra.errors import ConfigError, RequestError
from glmspectra.json_files import write_json
from glmspectra.language import text
from glmspectra.tuning.settings.checks import check_combinations, check_train_keys, join_shared_keys
from glmspectra.tuning.settings.explain import MODELS, known_keys
from glmspectra.tuning.settings.files import (
    FILES,
    Faults,
    Section,
    apply_override,
    build,
    read_sections,
)
from glmspectra.tuning.settings.models import ADALORA_KEYS, LORA_ONLY_KEYS, FinetuneArgs, LoraArgs, Method
from glmspectra.tuning.settings.old_names import OLD_NAMES, translate
from glmspectra.tuning.settings.ranks import apply_ranks, read_ranks
from glmspectra.tuning.settings.train_args import TrainArgs


class Settings(BaseModel):
    """All settings of a run. `notes` are lines for the user: what was translated, set aside or decided."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    finetune: FinetuneArgs
    lora: LoraArgs
    train: TrainArgs
    notes: list[str] = []

    @property
    def method(self) -> Method:
        if self.finetune.method is not None:
            return self.finetune.method
        return "qlora" if self.finetune.load_in_4bit else "lora"

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in 4 bits."""
        return self.method.startswith("q")

    @property
    def adaptive(self) -> bool:
        """Whether ranks change in training (AdaLoRA)."""
        return self.method.endswith("adalora")

    @property
    def target_r(self) -> int:
        """AdaLoRA: mean rank at the end of the schedule."""
        return self.lora.target_r if self.lora.target_r is not None else self.lora.r

    @property
    def init_r(self) -> int:
        """AdaLoRA: largest start rank. The authors start half above the target (arXiv 2303.10512, section 4)."""
        if self.lora.init_r is not None:
            return self.lora.init_r
        return max([-(-self.target_r * 3 // 2), *self.lora.start_ranks.values()])

    @property
    def final_adapter(self) -> Path:
        """Where the adapter goes at the end."""
        given = self.finetune.final_model_path
        return Path(given) if given else Path(self.train.output_dir) / "final_adapter"

    @property
    def resume(self) -> bool | str | None:
        """Where to go on from; `resume_from_checkpoint` of train_args.json is taken too."""
        return self.finetune.resume_from_checkpoint

    def check_base(self, name: str, fingerprint: str) -> None:
        """Stop when ranks were measured on another checkpoint than the one that is trained.

        Raises:
            ConfigError: the fingerprints differ.
        """
        base = self.lora.ranks_base
        if base and base.get("fingerprint") != fingerprint:
            raise ConfigError(
                f"the ranks were measured on {base.get('name')} (fingerprint {base.get('fingerprint')}), but the model "
                f"is {name} (fingerprint {fingerprint}); run suggest-rank on this model, or set lora.ranks_base to "
                "null to use them all the same."
            )

    def training_arguments(self, **more: Any) -> Any:
        """`transformers.TrainingArguments` from what was given; `more` wins over the files.

        Raises:
            ConfigError: the Trainer refuses the arguments; its own sentence is quoted.
        """
        import dataclasses

        from transformers import TrainingArguments

        known = {item.name for item in dataclasses.fields(TrainingArguments)}
        values = {
            "output_dir": self.train.output_dir,
            "logging_steps": self.train.logging_steps,
            **self.train.given(),
        }
        if not self.finetune.packing and "train_sampling_strategy" not in values:
            values["train_sampling_strategy"] = "group_by_length"
        values |= {
            "seed": self.finetune.seed,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            **more,
        }
        values.pop("resume_from_checkpoint", None)
        for key in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            modern = key.replace("gradient", "activation")
            if key in values and modern in known:
                values[modern] = values.pop(key)
        newer = [key for key in values if key not in known]
        if newer:
            raise ConfigError(
                f"{FILES['train']}: {', '.join(newer)}: the installed transformers does not know this; take "
                "transformers 5.24, or leave it out."
            )
        try:
            return TrainingArguments(**values)
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            raise ConfigError(f"{FILES['train']}: the Trainer refuses these arguments: {str(error).strip()}") from error

    def as_files(self) -> dict[str, dict[str, Any]]:
        """The resolved settings as the three objects; keys of other methods are left out."""
        finetune = self.finetune.model_dump(by_alias=True) | {
            "method": self.method,
            "load_in_4bit": self.quantized,
        }
        lora = self.lora.model_dump(by_alias=True)
        for key in LORA_ONLY_KEYS if self.adaptive else ADALORA_KEYS:
            lora.pop(key)
        if self.adaptive:
            lora |= {"init_r": self.init_r, "target_r": self.target_r}
        train = {
            "output_dir": self.train.output_dir,
            "logging_steps": self.train.logging_steps,
            **self.train.given(),
        }
        return {"finetune": finetune, "lora": lora, "train": dict(sorted(train.items()))}

    def save(self, folder: Path) -> None:
        """Write the three files into `folder`; `load_settings(folder)` gives these settings again."""
        for name, values in self.as_files().items():
            write_json(folder / FILES[name], values)

    def describe(self) -> list[str]:
        """The resolved settings as lines to print."""
        lines = []
        for name, values in self.as_files().items():
            lines.append(FILES[name])
            lines += [f"  {key}: {_short(value)}" for key, value in values.items()]
        return lines


def _short(value: Any) -> str:
    """A value as JSON; of a long list or object the beginning and the number of entries."""
    shown = json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict | list) and len(shown) > 200:
        return text("settings-long", beginning=shown[:160], count=len(value))
    return shown


def load_settings(
    args_folder: Path | str = Path("args_file"),
    overrides: list[str] | None = None,
    ranks_file: Path | None = None,
) -> Settings:
    """Read the three files, apply `--ranks` and then `--set` (the last word), and check everything.

    Raises:
        ConfigError: any fault; all faults of the three files are gathered in one message, a line each. Also when ranks
            were measured on another checkpoint than `model_path`.
    """
    folder = Path(args_folder)
    faults = Faults()
    notes: list[str] = []
    sections = read_sections(folder, faults)
    keys = known_keys()
    options: dict[str, Section] = {name: Section(name) for name in FILES}
    for override in overrides or []:
        apply_override(override, options, {**keys, "train": [*keys["train"], *OLD_NAMES]}, faults)
    for section in (sections["train"], options["train"]):
        translate(section, notes, faults)
    _method_by_option(sections["finetune"], options["finetune"], notes)
    _take_ranks(folder, sections, options, ranks_file)
    for name, option in options.items():
        for key, value in option.values.items():
            sections[name].put(key, value, option.sources[key])
    join_shared_keys(sections, faults)
    built: dict[str, Any] = {}
    wrong: set[str] = set()
    for name, model in MODELS.items():
        others = {other: keys[other] for other in keys if other != name}
        built[name], bad = build(model, sections[name], faults, others)
        wrong |= bad
    check_train_keys(built["train"], sections["train"], wrong, notes, faults)
    check_combinations(built["finetune"], built["lora"], built["train"], sections, wrong, faults)
    faults.raise_any(str(folder))
    settings = Settings(finetune=built["finetune"], lora=built["lora"], train=built["train"], notes=notes)
    _check_base_of_ranks(settings)
    if "learning_rate" not in options["train"].values and _rate_of_nano(settings):
        source = sections["train"].source("learning_rate")
        settings.notes.append(text("settings-rate-of-nano", source=source, rate=f"{settings.train.learning_rate:g}"))
    from glmspectra.checkpoint.selection import beside_sentence  # once nothing is wrong: it loads numpy

    if (beside := beside_sentence(Path(settings.finetune.model_path))) is not None:
        settings.notes.append(beside)
    return settings


HIGH_RATE = 5e-3  # what nano of a million parameters learns at; others are commonly tuned at 1e-5 to 1e-3


def _rate_of_nano(settings: Settings) -> bool:
    """Whether the presets' rate for the embedded model is about to train another one."""
    from glmspectra.embedded import EMBEDDED_MODEL, EMBEDDED_NAME

    path = settings.finetune.model_path
    embedded = path == EMBEDDED_NAME or Path(path).expanduser().resolve() == EMBEDDED_MODEL
    return not embedded and settings.train.learning_rate >= HIGH_RATE


def _check_base_of_ranks(settings: Settings) -> None:
    """Stop when the ranks are of another checkpoint than model_path; a path that is not there is found out later."""
    if settings.lora.ranks_base is None:
        return
    from glmspectra.checkpoint import open_checkpoint
    from glmspectra.embedded import locate_model

    try:
        path = locate_model(settings.finetune.model_path)
    except RequestError:
        return
    with open_checkpoint(path) as checkpoint:
        settings.check_base(checkpoint.name, checkpoint.fingerprint)


def _take_ranks(
    folder: Path, sections: dict[str, Section], options: dict[str, Section], ranks_file: Path | None
) -> None:
    """Apply the ranks file that `--ranks` or the key `ranks_file` names; the resolved settings hold what it said.

    A path in lora_args.json is looked for beside that file first.
    """
    named = [part["lora"].drop("ranks_file") for part in (sections, options) if "ranks_file" in part["lora"].values]
    path = ranks_file if ranks_file is not None else (named[-1] if named else None)
    if not path:
        return
    if ranks_file is None and (folder / path).exists():
        path = folder / path
    method = {**sections["finetune"].values, **options["finetune"].values}.get("method")
    adaptive = isinstance(method, str) and method.endswith("adalora")
    apply_ranks(read_ranks(Path(path)), f"ranks {path}", adaptive, sections["lora"])


def _method_by_option(file: Section, option: Section, notes: list[str]) -> None:
    """`--set method=...` alone is to be enough: a load_in_4bit of the file that contradicts it gives way."""
    for mine, other in (("method", "load_in_4bit"), ("load_in_4bit", "method")):
        if mine in option.values and other not in option.values and file.values.get(other) is not None:
            value = option.values[mine]
            four_bit = value.startswith("q") if isinstance(value, str) else bool(value)
            theirs = file.values[other]
            agrees = four_bit == (theirs.startswith("q") if isinstance(theirs, str) else theirs)
            if not agrees:
                notes.append(
                    text("settings-gives-way", source=file.source(other), key=other, other=option.source(mine))
                )
                file.drop(other)
