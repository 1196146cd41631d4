"""Short uniform runs whose delta-W tells where training wants to go: pilots of `suggest-rank --pilot` and the loop."""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmspectra.files import write_atomically
from glmspectra.ranks import Budget, Evidence, pilot_rank
from glmspectra.ranks.peft_form import DEFAULT_SCALE, target_modules
from glmspectra.tuning.settings.load import Settings, load_settings
from glmspectra.tuning.training.checkpoints import checkpoints

ADAPTER_FILE = "adapter_config.json"


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
        train_once(args, [*overrides, *own], None, folder, device, quiet)
        folders.append(folder)
    return folders


def pilot_overrides(
    settings: Settings, model: Path, folder: Path, evidence: Evidence, rank: int, steps: int, seed: int
) -> list[str]:
    modules = [target.module for target in evidence.targets]
    values: dict[str, Any] = {
        "finetune.model_path": str(model),
        "finetune.method": "qlora" if settings.quantized else "lora",
        "finetune.seed": seed,
        "finetune.final_model_path": str(folder / "final_adapter"),
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
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def train_once(
    args: Path, overrides: Sequence[str], ranks_file: Path | None, folder: Path, device: str, quiet: bool
) -> dict[str, Any]:
    """Train into `folder` unless it is done, going on from its last whole checkpoint; facts of the run.

    A finished run is known by `result.json`, which is written last.
    """
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    resume = ["finetune.resume_from_checkpoint=true"] if checkpoints(folder) else []
    result = _train(load_settings(args, [*overrides, *resume], ranks_file), device, quiet)
    text = json.dumps(result, indent=2, default=str) + "\n"
    write_atomically(done, lambda file: file.write(text.encode()))
    return result


def _train(settings: Settings, device: str, quiet: bool) -> dict[str, Any]:
    import torch

    from glmspectra.tuning.training.run import prepare_run, train

    run = prepare_run(settings, device, quiet=quiet)
    result = train(run)
    del run  # the next model needs the memory
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result
