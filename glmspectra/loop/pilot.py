"""Short uniform runs whose delta-W tells where training wants to go: pilots of `suggest-rank --pilot` and the loop."""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmspectra.ranks import Budget, Evidence, pilot_rank
from glmspectra.ranks.peft_patterns import DEFAULT_SCALE, target_modules
from glmspectra.tuning.settings.load import Settings, load_settings

ADAPTER_FOLDER = "final_adapter"  # of a pilot


def run_pilots(
    out: Path,
    model: Path,
    args: Path,
    evidence: Evidence,
    budget: Budget,
    steps: int,
    seeds: int,
    overrides: Sequence[str] = (),
    device: str = "auto",
    quiet: bool = False,
) -> list[Path]:
    """Train `seeds` pilots of `steps` steps on the evidence's targets into out/seed-N; return their folders.

    Each is uniform LoRA (on the 4-bit base where the settings have one) of three times the mean rank of the budget,
    with the settings' data and learning rate, and the settings' seed counted on. Halfway it leaves a checkpoint, so
    that the suggestion can be compared between steps. A pilot that is finished is not run again; one that was killed
    goes on.
    """
    rank = pilot_rank(budget, evidence)
    first = load_settings(args, list(overrides))
    folders = []
    for number in range(seeds):
        seed = first.finetune.seed + number
        folder = out / f"seed-{seed}"
        own = pilot_overrides(first, model, folder, evidence, rank, steps, seed)
        train_once(args, [*overrides, *own], None, device, quiet)
        folders.append(folder)
    return folders


def pilot_overrides(
    settings: Settings, model: Path, folder: Path, evidence: Evidence, rank: int, steps: int, seed: int
) -> list[str]:
    """Settings `section.key=value` of one pilot: LoRA of one rank on every target of `evidence`, for `steps` steps."""
    modules = [target.module for target in evidence.targets]
    values: dict[str, Any] = {
        "finetune.model_path": str(model),
        "finetune.method": "qlora" if settings.quantized else "lora",
        "finetune.seed": seed,
        "finetune.final_model_path": str(folder / ADAPTER_FOLDER),
        "lora.r": rank,
        "lora.lora_alpha": DEFAULT_SCALE * rank,
        "lora.use_rslora": False,  # whose rule the alpha above does not follow
        "lora.target_modules": target_modules(modules, [target.module for target in evidence.every_matrix]),
        "lora.rank_pattern": {},
        "lora.alpha_pattern": {},
        "train.output_dir": str(folder),
        "train.max_steps": steps,
        "train.save_strategy": "steps",
        "train.save_steps": max(1, steps // 2),
        "train.eval_strategy": "no",
    }
    return as_overrides(values)


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Settings as `section.key=value`, each value written as JSON."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def train_once(
    args: Path, overrides: Sequence[str], ranks_file: Path | None, device: str, quiet: bool
) -> dict[str, Any]:
    """Train as the settings say unless it is done, going on from the last whole checkpoint; facts of the run."""
    import torch

    from glmspectra.tuning.training.run import run_training

    result = run_training(load_settings(args, list(overrides), ranks_file), device, quiet=quiet)
    gc.collect()  # the next model needs the memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result
