"""What every key of the three files means: as lines for a terminal, as a page, and as JSON Schemas for editors."""

import json
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from glmspectra.language import text
from glmspectra.tuning.settings.files import FILES, SCHEMA_KEY, allowed_for
from glmspectra.tuning.settings.models import ADALORA_KEYS, FinetuneArgs, LoraArgs
from glmspectra.tuning.settings.train_args import GROUPS, TrainArgs, statuses

MODELS: dict[str, type[BaseModel]] = {"finetune": FinetuneArgs, "lora": LoraArgs, "train": TrainArgs}


def known_keys() -> dict[str, list[str]]:
    """The keys of each file, by section."""
    return {name: [info.alias or key for key, info in model.model_fields.items()] for name, model in MODELS.items()}


def explain_keys(language: str | None = None) -> list[dict[str, str]]:
    """Every key of the three files: file, group, key, status (done, refused, no effect), meaning, takes, default.

    Groups are named in `language`, by default the one in use; meanings are reference text, which is English.
    """
    table = []
    for name, model in MODELS.items():
        group = ""
        for key, info in model.model_fields.items():
            group = _group(name, key, group)
            default = text("keys-required") if info.is_required() else text("keys-default", value=_default(info))
            named = text(f"keys-group-{group}", language)
            row = {"file": FILES[name], "group": named, "key": info.alias or key}
            row["status"] = statuses()[key] if name == "train" else "done"
            table.append(row | {"meaning": str(info.description), "takes": allowed_for(info), "default": default})
    return table


def keys_as_lines() -> list[str]:
    """The keys that do something, by file and group: key, default and meaning in a line; then those that do not."""
    table = explain_keys()
    lines: list[str] = []
    for row in (row for row in table if row["status"] == "done"):
        heading = text("keys-heading", file=row["file"], group=row["group"])
        if heading not in lines:
            lines += ["", heading] if lines else [heading]
        lines.append("  " + text("keys-line", **{name: row[name] for name in ("key", "default", "meaning", "takes")}))
    lines += ["", text("keys-others")]
    hubs = text(f"keys-group-{GROUPS['push_to_hub']}")
    for status in ("refused", "no effect"):
        reasons: dict[str, list[str]] = {}
        for row in table:
            if row["status"] == status and row["group"] != hubs:
                reasons.setdefault(row["meaning"], []).append(row["key"])
        message = f"keys-{status.replace(' ', '-')}"
        lines += ["  " + text(message, keys=", ".join(keys), why=why) for why, keys in reasons.items()]
    return lines


def trainer_keys_page() -> str:
    """The page docs/trainer_keys.md: what becomes of each argument of `transformers.TrainingArguments`."""
    rows = [row for row in explain_keys("en") if row["file"] == FILES["train"]]
    counts = {status: sum(row["status"] == status for row in rows) for status in ("done", "refused", "no effect")}
    lines = [
        "# Arguments of the Trainer",
        "",
        "`train_args.json` knows every argument of `transformers.TrainingArguments` (5.17 to 5.24). Each is **done** "
        "as transformers says, **refused** (another value than the one named is a fault: it would change nothing, or "
        "something else than it says), or has **no effect** (accepted with a note). Of "
        f"{len(rows)}: {counts['done']} done, {counts['refused']} refused, {counts['no effect']} without effect. "
        "The page is written by `python scripts/trainer_keys.py` from the code that checks the settings.",
    ]
    group = ""
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            lines += ["", f"## {group}", "", "| key | here | meaning | takes |", "|---|---|---|---|"]
        cells = (f"`{row['key']}`", row["status"], row["meaning"], row["takes"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def json_schema(section: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one file, by which editors complete and check keys."""
    schema = MODELS[section].model_json_schema()
    properties: dict[str, Any] = {SCHEMA_KEY: {"type": "string"}}
    for name, info in MODELS[section].model_fields.items():
        key = info.alias or name
        entry = {key: value for key, value in schema["properties"][key].items() if key not in _INTERNAL}
        if section == "train" and statuses()[name] == "refused":
            also = cast(dict[str, Any], info.json_schema_extra)["also"]
            entry = {"enum": [info.default, *also], "deprecated": True, "default": info.default}
        entry["description"] = f"{info.description} Takes {allowed_for(info)}."
        properties[key] = entry
    whole = {SCHEMA_KEY: "https://json-schema.org/draft/2020-12/schema", "title": FILES[section]}
    return whole | schema | {"title": FILES[section], "properties": properties}


_INTERNAL = ("allowed", "status", "also", "title")


def _group(section: str, key: str, before: str) -> str:
    if section == "train":
        return GROUPS.get(key, before)
    if section == "lora":
        alias = LoraArgs.model_fields[key].alias or key
        return "adalora" if alias in ADALORA_KEYS else "ranks" if alias.startswith("ranks_") else "adapter"
    return next((name for first, name in _FINETUNE_GROUPS if first == key), before)


_FINETUNE_GROUPS = (
    ("dataset_path", "data"),
    ("model_path", "model"),
    ("seed", "run"),
)


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    return json.dumps(value, ensure_ascii=False, default=str)
