"""The settings of `glmspectra demo`: the sample data on the embedded model, in minutes on two cores."""

import json
from pathlib import Path
from typing import Any

from glmspectra.tuning.presets import write_presets


def write_demo_settings(out: Path) -> Path:
    """Write the presets and the sample data into `out` and fit them to nano; the folder of the three files.

    Nano is a thousand times smaller than ChatGLM2-6B and learns at rates that would ruin the large one.
    """
    folder = out / "args_file"
    write_presets(out, force=True)
    changes: dict[str, dict[str, Any]] = {
        "finetune_args.json": {"dataset_path": str(out / "data"), "method": "lora", "load_in_4bit": False},
        "lora_args.json": {"lora_dropout": 0.0},
        "train_args.json": {
            "learning_rate": 5e-3,
            "num_train_epochs": 2,
            "per_device_eval_batch_size": 16,
            "save_steps": 40,
            "eval_steps": 40,
        },
    }
    for name, values in changes.items():
        path = folder / name
        kept = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(kept | values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return folder
