"""Which model a command works on when it is told, when it is not, and when it is told "nano"."""

import json
from pathlib import Path

from glmspectra.errors import ConfigError, RequestError

SETTINGS = Path("args_file/finetune_args.json")
EMBEDDED_NAME = "nano"


def choose_model(option: Path | None, settings: Path = SETTINGS) -> Path:
    """The path of the model: `option`, else `model_path` of `settings` where that file is, else the embedded
    model.

    "nano" is the embedded model unless a file or folder of that name is here. Raises RequestError for a path
    that is not there and ConfigError for settings that cannot be read; both say where the path came from.
    """
    if option is not None:
        return _existing(option, "--model")
    if not settings.is_file():
        return embedded_model()
    try:
        found = json.loads(settings.read_text(encoding="utf-8")).get("model_path", EMBEDDED_NAME)
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(
            f"{settings} is not a JSON object ({error}): mend it, or name a model with --model."
        ) from error
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{settings}: model_path is {found!r}, not the path of a model: mend it, or use --model.")
    return _existing(Path(found), f"model_path of {settings}")


def embedded_model() -> Path:
    """The folder of nano, the small trained ChatGLM2 inside the package."""
    from glmspectra.checkpoint import EMBEDDED_MODEL

    return EMBEDDED_MODEL


def _existing(path: Path, origin: str) -> Path:
    path = path.expanduser()
    if path.exists():
        return path
    if str(path) == EMBEDDED_NAME:
        return embedded_model()
    raise RequestError(
        f"{origin} says {path}, and there is no such file or folder here; nothing is fetched from a hub, "
        "so download the model "
        f"first and give its folder, or say {EMBEDDED_NAME} for the embedded one."
    )
