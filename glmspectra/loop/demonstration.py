"""The settings of `glmspectra demo`: the sample data on the embedded model, in minutes on two cores."""

from pathlib import Path
from typing import Any

from glmspectra.json_files import read_object, write_json
from glmspectra.tuning.settings.presets import write_presets


def write_demo_settings(out: Path) -> Path:
    """Write the presets and the sample data into `out` and fit them to nano; the folder of the three files.

    Nano is a thousand times smaller than ChatGLM2-6B and learns at rates that would ruin the large one. The rate is the
    one with the lowest losses of both arms on the rows not trained on, out of 1e-3 to 2e-2: at 2 epochs of rank 2, 4.3
    (1e-3), 2.7 to 3.0 (3e-3), 2.2 (5e-3), 1.6 to 1.7 (1e-2); of rank 8 at 6 epochs 0.63 (5e-3) and 0.54 to 0.57 (1e-2).
    At 10 epochs 0.47 to 0.48 (1e-2), with the same verdict and two thirds more training.
    """
    folder = out / "args_file"
    write_presets(out, force=True)
    changes: dict[str, dict[str, Any]] = {
        "finetune_args.json": {"dataset_path": str(out / "data"), "method": "lora", "load_in_4bit": False},
        "lora_args.json": {"lora_dropout": 0.0},
        "train_args.json": {
            "learning_rate": 1e-2,
            "num_train_epochs": 6,
            "per_device_eval_batch_size": 16,
            "save_steps": 120,
            "eval_steps": 60,
        },
    }
    for name, values in changes.items():
        path = folder / name
        write_json(path, read_object(path) | values)
    return folder
