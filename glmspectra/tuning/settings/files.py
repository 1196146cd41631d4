"""Reading the three JSON files and `--set` overrides, and gathering every fault before one error is raised.

A fault is one line that says which file (or option), which key and what is allowed. Faults are collected rather than
raised, so that a user who mistyped three keys hears of all three at once.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from glmspectra.errors import ConfigError
from glmspectra.json_files import parse_json, read_object

SCHEMA_KEY = "$schema"
FILES = {"finetune": "finetune_args.json", "lora": "lora_args.json", "train": "train_args.json"}


@dataclass
class Section:
    """The raw keys of one file, and where each came from (the file's name, a `--set` option or a ranks file)."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return FILES[self.name]

    def put(self, key: str, value: Any, source: str) -> None:
        self.values[key] = value
        self.sources[key] = source

    def rename(self, old: str, new: str, value: Any) -> None:
        """Replace key `old` by `new`, which keeps the source of `old`."""
        source = self.sources.pop(old)
        del self.values[old]
        self.put(new, value, source)

    def drop(self, key: str) -> Any:
        self.sources.pop(key)
        return self.values.pop(key)

    def source(self, key: str) -> str:
        """Where a fault of `key` is to be looked for."""
        return self.sources.get(key, self.file)


class Faults:
    """Every fault met so far; `raise_any` turns them into one error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, source: str, sentence: str) -> None:
        self.lines.append(f"{source}: {sentence}")

    def raise_any(self, where: str) -> None:
        """Raise `ConfigError` with one line for one fault, or a heading and one line each for several."""
        if not self.lines:
            return
        if len(self.lines) == 1:
            raise ConfigError(self.lines[0])
        raise ConfigError(f"{len(self.lines)} faults in the settings of {where}:\n  " + "\n  ".join(self.lines))


def is_secret(key: str) -> bool:
    """Whether the value of a key must not be printed or saved."""
    return key.endswith(("token", "password", "secret", "api_key"))


def shown(value: Any, limit: int = 60) -> str:
    """A value as the user wrote it in JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names nearest to `word`, best first; names that only differ in case, `-` or `_` come first."""
    names = list(known)
    plain = {name: name.lower().replace("-", "_") for name in names}
    wanted = word.lower().replace("-", "_")
    same = [name for name in names if plain[name] == wanted]
    close = difflib.get_close_matches(wanted, list(plain.values()), n=count, cutoff=0.6)
    found = same + [name for name in names if plain[name] in close and name not in same]
    return sorted(found, key=lambda name: -difflib.SequenceMatcher(None, wanted, plain[name]).ratio())[:count]


def read_keys(path: Path, faults: Faults) -> dict[str, Any]:
    """The keys of one file; what is wrong with it goes to `faults`. `$schema`, which is for editors, is left out."""
    if not path.exists():
        faults.add(
            path.name,
            f"is not in the folder {path.parent}; `glmspectra init` writes the three files "
            f"({', '.join(FILES.values())}) there.",
        )
        return {}
    try:
        values = read_object(path, ConfigError)
    except ConfigError as error:
        faults.lines.append(str(error))
        return {}
    return {key: value for key, value in values.items() if key != SCHEMA_KEY}


def read_sections(folder: Path, faults: Faults) -> dict[str, Section]:
    """The three files of a folder as sections."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; `glmspectra init` writes the three settings files.")
    if not any((folder / file).exists() for file in FILES.values()):
        below = sorted(path.parent for path in folder.glob(f"*/{FILES['train']}"))
        way = f"name one that does: --args {below[0]}" if below else "`glmspectra init` writes them"
        raise ConfigError(f"{folder}: holds none of the three settings files ({', '.join(FILES.values())}); {way}.")
    sections = {}
    for name, file in FILES.items():
        section = Section(name)
        for key, value in read_keys(folder / file, faults).items():
            section.put(key, value, file)
        sections[name] = section
    return sections


def apply_override(
    text: str, sections: Mapping[str, Section], keys: Mapping[str, Iterable[str]], faults: Faults
) -> None:
    """Take one `--set section.key=value` (or `key=value`, when one section alone knows the key).

    The value is read as JSON and, where it is no JSON, as a string, so `--set lora.r=8`, `--set train.bf16=true` and
    `--set finetune.template=chat` all mean what they say. `keys` maps each section to the keys it knows.
    """
    left, equals, right = text.partition("=")
    left = left.strip()
    option = f"--set {left}"
    if not equals or not left:
        faults.add(option, "is not written as section.key=value, for example --set lora.r=8.")
        return
    try:
        value: Any = parse_json(right, option, ConfigError)
    except ConfigError as error:
        if right.strip()[:1] in ("{", "["):
            faults.lines.append(str(error))
            return
        value = right
    name, dot, key = left.partition(".")
    if not dot:
        owners = [section for section, known in keys.items() if left in set(known)]
        if len(owners) != 1:
            every = {f"{section}.{known}" for section in keys for known in keys[section]}
            ends = {full.split(".", 1)[1]: full for full in sorted(every)}
            close = [ends[end] for end in nearest(left, ends)]
            reason = "is a key of several files" if owners else "is no key of any file"
            hint = " or ".join(f"{owner}.{left}" for owner in owners) or " or ".join(close)
            faults.add(option, f"{left} {reason}{f'; write {hint}' if hint else ''}.")
            return
        name, key = owners[0], left
    name = name.removesuffix("_args")
    if name not in sections:
        faults.add(option, f"{name} is no section; write one of {', '.join(f'{s}.{key}' for s in sections)}.")
        return
    sections[name].put(key, value, option)


def allowed_for(info: FieldInfo) -> str:
    """The sentence of a field that says what it takes."""
    extra = info.json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else "see the documentation"


def build(
    model: type[BaseModel], section: Section, faults: Faults, others: Mapping[str, Iterable[str]]
) -> tuple[Any, set[str]]:
    """Validate a section into its pydantic model; every fault is added to `faults`.

    `others` maps the name of each other section to its keys: a key that belongs there is said to. Returns the model
    of the keys that are right and the names of those that are not, so that combinations can be checked all the same.
    """
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    try:
        return model.model_validate(section.values), set()
    except ValidationError as error:
        wrong: set[str] = set()
        for item in error.errors(include_url=False):
            key = str(item["loc"][0])
            if key in wrong:  # a union reports each of its arms; the user made one mistake
                continue
            wrong.add(key)
            source = section.source(key)
            if item["type"] == "extra_forbidden":
                faults.add(source, f"unknown key {key}{_hint(key, fields, section, others)}")
            elif item["type"] == "missing":
                faults.add(source, f"key {key} is missing; it takes {allowed_for(fields[key])}.")
            else:
                value = "(hidden)" if is_secret(key) else shown(section.values.get(key))
                faults.add(source, f"{key} is {value}; allowed: {allowed_for(fields[key])}.")
    right = {key: value for key, value in section.values.items() if key not in wrong}
    required = {key: "" for key, info in fields.items() if info.is_required() and key not in right}
    return model.model_validate(right | required), wrong


def _hint(key: str, fields: Mapping[str, Any], section: Section, others: Mapping[str, Iterable[str]]) -> str:
    for name, known in others.items():
        if key in set(known):
            return f"; it belongs in {FILES[name]}."
    close = nearest(key, fields)
    if close:
        return f"; did you mean {close[0]}?"
    for name, known in others.items():
        close = nearest(key, known)
        if close:
            return f"; did you mean {close[0]} of {FILES[name]}?"
    known = ", ".join(sorted(fields)) if len(fields) < 60 else "the arguments of transformers.TrainingArguments"
    return f"; {section.file} takes {known}."
