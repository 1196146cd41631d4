"""The same ranks for people who train with something else: plain PEFT, axolotl, LLaMA-Factory, ms-swift."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmspectra.errors import RequestError
from glmspectra.files import write_atomically, write_text
from glmspectra.json_files import write_json
from glmspectra.ranks.allocation import Allocation
from glmspectra.ranks.evidence import Evidence

EXPORTS = ("peft", "axolotl", "llama-factory", "ms-swift")
UNTRAINED = "untrained_adapter"


def export(
    trainer: str, folder: Path, arguments: Mapping[str, Any], allocation: Allocation, evidence: Evidence
) -> list[Path]:
    """Write the settings of one trainer under folder; returns the files. arguments: of `peft_patterns.lora_args`.

    Raises RequestError for a trainer that is not in EXPORTS.
    """
    if trainer == "peft":
        return [write_json(folder / "peft" / "adapter_config.json", adapter_config(arguments, evidence))]
    if trainer == "axolotl":
        return [_write_yaml(folder / "axolotl.yaml", _axolotl(arguments), "axolotl: merge into your configuration")]
    if trainer == "llama-factory":
        return _llama_factory(folder / "llama_factory", arguments, allocation, evidence)
    if trainer == "ms-swift":
        return _ms_swift(folder / "ms_swift", arguments, allocation, evidence)
    raise RequestError(f"--export {trainer}: there are {', '.join(EXPORTS)}.")


def adapter_config(arguments: Mapping[str, Any], evidence: Evidence) -> dict[str, Any]:
    """An adapter_config.json: `peft.LoraConfig.from_pretrained(folder)` gives the configuration."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": evidence.base_name,
        "bias": "none",
        "lora_dropout": 0.05,
        "inference_mode": False,
        **arguments,
    }


def _axolotl(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Axolotl takes patterns as lora_rank_pattern and lora_alpha_pattern (2026 and later) and a whole lora_alpha."""
    settings = {
        "adapter": "lora",
        "lora_r": arguments["r"],
        "lora_alpha": round(arguments["lora_alpha"]),
        "lora_target_modules": arguments["target_modules"],
        "lora_rank_pattern": arguments["rank_pattern"],
        "lora_alpha_pattern": arguments["alpha_pattern"],
    }
    return {**settings, "peft_use_rslora": True} if arguments.get("use_rslora") else settings


def _llama_factory(
    folder: Path, arguments: Mapping[str, Any], allocation: Allocation, evidence: Evidence
) -> list[Path]:
    """LLaMA-Factory's settings take no patterns, but it goes on from an adapter it is given."""
    adapter = folder / UNTRAINED
    settings = {
        "finetuning_type": "lora",
        "adapter_name_or_path": str(adapter),
        "create_new_adapter": False,
        "lora_target": sorted({target.matrix for target in allocation.targets if allocation.ranks[target.name]}),
    }
    yaml = _write_yaml(folder / "llama_factory.yaml", settings, "LLaMA-Factory: merge into your configuration")
    return [*_untrained(adapter, arguments, allocation, evidence), yaml]


def _ms_swift(folder: Path, arguments: Mapping[str, Any], allocation: Allocation, evidence: Evidence) -> list[Path]:
    """An adapter for ms-swift, which takes no patterns either (its rank_pattern is always none).

    Its `--adapters` reads an adapter's weights without an optimizer, and goes on from them with its ranks.
    """
    adapter = folder / UNTRAINED
    words = [
        "# ms-swift: these arguments beside your own; no --lora_rank, --lora_alpha or --target_modules.",
        f'swift sft --tuner_type lora --adapters {shlex.quote(str(adapter))} "$@"',
    ]
    script = write_text(folder / "ms_swift.sh", "\n".join(words) + "\n")
    return [*_untrained(adapter, arguments, allocation, evidence), script]


def _untrained(
    adapter: Path, arguments: Mapping[str, Any], allocation: Allocation, evidence: Evidence
) -> tuple[Path, Path]:
    """An adapter before its first step with the suggested ranks; returns its two files.

    A is as PEFT starts it (uniform in +-1/sqrt(cols)), B zero.
    """
    import torch
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for target in allocation.targets:
        rank = allocation.ranks[target.name]
        if rank:
            bound = 1 / math.sqrt(target.cols)
            a = torch.empty(rank, target.cols).uniform_(-bound, bound, generator=generator)
            tensors[f"base_model.model.{target.module}.lora_A.weight"] = a
            tensors[f"base_model.model.{target.module}.lora_B.weight"] = torch.zeros(target.rows, rank)
    config = write_json(adapter / "adapter_config.json", adapter_config(arguments, evidence))
    content = save(tensors, metadata={"format": "pt"})
    write_atomically(adapter / "adapter_model.safetensors", lambda file: file.write(content))
    return config, adapter / "adapter_model.safetensors"


def _write_yaml(path: Path, settings: Mapping[str, Any], heading: str) -> Path:
    """YAML by way of JSON values, which YAML contains: no escaping to get wrong."""
    lines = [f"# {heading}."]
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
            lines += [f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return write_text(path, "\n".join(lines) + "\n")
