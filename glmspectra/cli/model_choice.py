"""Which model a command works on when it is told, when it is not, and when it is told "nano"."""

from pathlib import Path

from glmspectra.embedded import EMBEDDED_MODEL, EMBEDDED_NAME, locate_model
from glmspectra.errors import ConfigError
from glmspectra.json_files import read_object

SETTINGS = Path("args_file/finetune_args.json")


def choose_model(option: Path | None, settings: Path = SETTINGS) -> Path:
    """The path of the model: `option`, else `model_path` of `settings` where that file is, else the embedded model.

    "nano" is the embedded model unless a file or folder of that name is here. Raises RequestError for a path
    that is not there and ConfigError for settings that cannot be read; both say where the path came from.
    """
    if option is not None:
        return locate_model(option, "--model")
    if not settings.is_file():
        return EMBEDDED_MODEL
    try:
        found = read_object(settings, ConfigError).get("model_path", EMBEDDED_NAME)
    except ConfigError as error:
        raise ConfigError(f"{str(error).rstrip('.')}: mend it, or name a model with --model.") from error
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{settings}: model_path is {found!r}, not the path of a model: mend it, or use --model.")
    return locate_model(found, f"model_path of {settings}")
