"""`glmspectra init`: the three settings files, presets and sample data, in a folder of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.console import finish
from glmspectra.cli.options import Json, Quiet


def init(
    folder: Annotated[Path, typer.Argument(help="Where args_file/ and data/ are written.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were changed.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Say what every key means, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write args_file/ (QLoRA as in the original study), its presets, and the sample data.

    Presets: args_file/lora, qlora_spectra, adalora and qlora_8gb, each three files that
    `glmspectra train --args FOLDER` takes. Then `glmspectra train` runs at once, on the embedded model.
    """
    from glmspectra.tuning.settings.presets import write_presets

    if keys:
        from glmspectra.tuning.settings.load import explain_keys

        table = explain_keys()
        finish({"keys": table}, [_line(entry) for entry in table], as_json)
        return
    written, same = write_presets(folder, force)
    lines = [] if quiet else [f"wrote {path}" for path in written]
    if same and not quiet:
        lines.append(f"{len(same)} files stood there already")
    finish({"written": [str(path) for path in written], "unchanged": [str(path) for path in same]}, lines, as_json)


def _line(entry: dict[str, str]) -> str:
    return f"{entry['file']}  {entry['key']}: {entry['meaning']} Takes {entry['takes']}; {entry['default']}."
