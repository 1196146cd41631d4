"""Finds what a training run left: every checkpoint-N and its final adapter or model, by step."""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from glmspectra.checkpoint.adapter.config import CONFIG_FILE
from glmspectra.checkpoint.adapter.lora_names import program_of
from glmspectra.checkpoint.adapter.start import INITIAL_FOLDERS
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.json_files import read_object

FINAL_ADAPTER = "final_adapter"  # where a run keeps its last state


@dataclass(frozen=True)
class TunedCheckpoint:
    """One state of a run: `path` holds an adapter or a whole model; `step` is None where no file tells it.

    An adapter is a folder, or one file in the format of a diffusion program (`lora_file`).
    """

    path: Path
    step: int | None
    is_adapter: bool


def tuned_checkpoints(path: Path | str) -> list[TunedCheckpoint]:
    """Every state that a folder holds, by ascending step, the final one last.

    A folder that is itself one state gives that. A final state whose step equals the last checkpoint's is listed once.

    Raises:
        RequestError: There is none.
    """
    path = Path(path)
    if path.is_file():
        return [TunedCheckpoint(path, None, _is_lora(path))]
    if not path.is_dir():
        raise RequestError(f"{path}: there is no such folder.")
    found = []
    for folder in path.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        state = _state_in(folder) if number and folder.is_dir() else None
        if number and state:
            found.append(TunedCheckpoint(state[0], int(number[1]), state[1]))
    found.sort(key=lambda state: state.step or 0)
    final = _state_in(path)
    if final:
        step = _last_step(path)
        own = re.fullmatch(r"checkpoint-(\d+)", path.name)
        step = int(own[1]) if step is None and own else step
        if not (found and step is not None and found[-1].step == step):
            found.append(TunedCheckpoint(final[0], step, final[1]))
    if not found:
        raise RequestError(f"{path}: holds neither an adapter ({CONFIG_FILE}), nor a model, nor checkpoint-N folders.")
    return found


def _state_in(folder: Path) -> tuple[Path, bool] | None:
    if (folder / CONFIG_FILE).is_file():
        return folder, True
    # PEFT puts an adapter that has a name into a folder of that name.
    inner = [path.parent for path in folder.glob(f"*/{CONFIG_FILE}") if _is_named_adapter(path.parent)]
    if len(inner) > 1:
        final = [path for path in inner if path.name == FINAL_ADAPTER]
        if not final:
            raise RequestError(
                f"{folder}: holds several adapters ({', '.join(p.name for p in inner)}): name one of them."
            )
        inner = final
    if inner:
        return inner[0], True
    weights = [path for ending in ("safetensors", "bin") for path in folder.glob(f"*.{ending}")]
    if weights and all(path.name.startswith("adapter_model") for path in weights):
        raise RequestError(
            f"{folder}: holds {weights[0].name} and no {CONFIG_FILE}, without which an adapter's scale is not known: "
            "copy it from where it was trained."
        )
    lora = [path for path in weights if _is_lora(path)]
    if len(lora) > 1:
        raise RequestError(f"{folder}: holds several adapters ({', '.join(p.name for p in lora)}): name one of them.")
    if lora:
        return lora[0], True
    if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.gguf")):
        return folder, False
    return None


def _is_lora(path: Path) -> bool:
    """Whether a file is LoRA in the format of a diffusion program, by its tensors' names."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return program_of(file.keys()) is not None
    except (SafetensorError, OSError):
        return False  # whoever opens it says what is wrong


def _is_named_adapter(folder: Path) -> bool:
    # A name that begins with a dot is a folder that is still being written.
    return folder.name not in INITIAL_FOLDERS and not folder.name.startswith(("checkpoint-", "."))


def _last_step(folder: Path) -> int | None:
    state = folder / "trainer_state.json"
    if not state.is_file():
        return None
    try:
        return int(read_object(state, allow_nan=True)["global_step"])
    except (ValueError, OverflowError, KeyError, TypeError) as error:
        raise CheckpointError(f"{state}: cannot be read ({error}).") from None
