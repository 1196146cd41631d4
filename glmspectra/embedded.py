"""nano, the small trained ChatGLM2 inside the package, and the one place that knows its name."""

from pathlib import Path

from glmspectra.errors import RequestError

EMBEDDED_NAME = "nano"
EMBEDDED_MODEL = Path(__file__).resolve().parent / "nano"


def locate_model(model: str | Path, origin: str = "model_path") -> Path:
    """The path that `model` means: a file or folder, or the embedded model when it says "nano" and none is here.

    Args:
        model: A path or "nano".
        origin: Where the path came from, for the message.

    Raises:
        RequestError: Nothing is there.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if str(model) == EMBEDDED_NAME:
        return EMBEDDED_MODEL
    raise RequestError(
        f"{origin} says {model}, and there is no such file or folder here; nothing is fetched from a hub, so download "
        f"the model first and give its folder, or say {EMBEDDED_NAME} for the embedded one."
    )
