"""What settings name and this machine lacks, said before the libraries that would find it missing are loaded."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from glmspectra.embedded import locate_model
from glmspectra.errors import ConfigError
from glmspectra.files import must_be_there

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings

# Tracker -> packages of which it needs one. The Trainer's own check has the last word on these and on all others.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    **{
        name: (name,)
        for name in ("swanlab", "wandb", "trackio", "mlflow", "comet_ml", "clearml", "codecarbon", "dvclive", "neptune")
    },
}
IDLE_FSDP = (
    "train_args.json: fsdp is given and would do nothing here: it shards over GPUs under a launcher "
    "(torchrun --nproc-per-node 8 -m glmspectra train ...); leave fsdp out, or start the run so."
)


def check_at_hand(settings: "Settings", trains: bool = True) -> None:
    """Refuse a model, data, a tracker or a launcher that settings name and that is not here.

    Args:
        settings: Checked in themselves.
        trains: Whether the Trainer will run; an evaluation has no tracker and no launcher.

    Raises:
        RequestError: A path is not there.
        ConfigError: A tracker is not installed, or fsdp has nothing to shard over.
    """
    locate_model(settings.finetune.model_path)
    for source in settings.finetune.sources:
        refuse_missing_data(Path(source.path))
    for source in settings.finetune.valid_sources:
        refuse_missing_data(Path(source.path), "valid_path")
    if not trains:
        return
    given = settings.train.given()
    asked = given.get("report_to") or []
    for tracker in [asked] if isinstance(asked, str) else asked:
        packages = TRACKERS.get(tracker, ())
        if packages and not any(map(find_spec, packages)):
            raise ConfigError(
                f"train_args.json: report_to {tracker} cannot be used: {packages[0]} is not installed; "
                f"pip install {packages[0]}, or leave it out."
            )
    if given.get("fsdp") and os.environ.get("WORLD_SIZE", "1") == "1":
        raise ConfigError(IDLE_FSDP)


def refuse_missing_data(path: Path, key: str = "dataset_path") -> None:
    """Raises RequestError where nothing is."""
    must_be_there(path, key, "file or folder")
