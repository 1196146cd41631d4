"""Where the factors lie that an adapter began with: the one place that knows, for `merge`, `delta` and `evaluate`.

PiSSA, OLoRA, CorDA and LoRA-GA take their first product s B0 A0 out of the base, so that training's change is
s (B A - B0 A0). LoftQ on a base that is loaded quantized makes up for the error of the quantization, which the
published weights do not have; there too only what came since is the change. B0 and A0 must have been saved before the
first step (PEFT: `model.save_pretrained("initial_adapter")`).
"""

import re
from pathlib import Path

from glmspectra.checkpoint.adapter.config import BASE_REDUCED, CONFIG_FILE
from glmspectra.errors import CheckpointError, RequestError

INITIAL_FOLDER = "initial_adapter"
INITIAL_FOLDERS = (INITIAL_FOLDER, "pissa_init", "pissa_backup", "olora_init", "corda_init")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def find_start(path: Path, peft_method: str, initial: Path | str | None) -> Path | None:
    """The folder of the adapter as it was before its first step; None where it has no such start.

    Args:
        path: The adapter's folder.
        peft_method: Its method, as `AdapterConfig.peft_method` names it.
        initial: The folder, where the caller knows it; otherwise it is looked for in the adapter's own folder, beside
            the checkpoint-N that it lies in and, for a method that needs one, beside the folder itself.

    Raises:
        RequestError: `initial` holds no adapter, or the method has no start.
        CheckpointError: The method needs its start and it is not there.
    """
    needed = peft_method in BASE_REDUCED
    if initial is not None:
        if peft_method in ("adalora", "kasa", "loftq"):
            raise RequestError(f"{path}: an initial adapter has no meaning for {peft_method}; leave it out.")
        if not (Path(initial) / CONFIG_FILE).is_file():
            raise RequestError(f"{initial}: no adapter here: there is no {CONFIG_FILE}.")
        return Path(initial)
    if peft_method in ("adalora", "kasa", "loftq"):
        return None
    roots = [path, *(folder.parent for folder in (path, path.parent) if _CHECKPOINT.fullmatch(folder.name))]
    folders = [root / INITIAL_FOLDER for root in roots]
    if needed:
        folders += [root / name for root in (path, path.parent, path.parent.parent) for name in INITIAL_FOLDERS]
    found = next((folder for folder in folders if (folder / CONFIG_FILE).is_file()), None)
    if found is None and needed:
        raise CheckpointError(
            f"{path}: {peft_method} took its first factors out of the base, and without them the change is unknown; "
            f"save the adapter before training as {INITIAL_FOLDER} in this folder, or name its folder."
        )
    return found


def step_of(path: Path) -> int | None:
    """The step of checkpoint-N that the adapter's folder is or lies in."""
    for folder in (path, path.parent):
        if found := _CHECKPOINT.fullmatch(folder.name):
            return int(found[1])
    return None
