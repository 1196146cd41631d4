"""`glmspectra init`: the three settings files, presets and sample data, in a folder of one's own."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.console import finish
from glmspectra.cli.options import Json, Quiet
from glmspectra.language import text


def init(
    folder: Annotated[Path, typer.Argument(help="Where args_file/ and data/ are written.")] = Path("."),
    preset: Annotated[
        str | None, typer.Option("--preset", help="Write this preset only; absent: all of them.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were changed.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Say what every key means, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write args_file/ (three JSON files a preset, with a schema for editors) and the sample data.

    Presets: qlora (args_file itself), lora, qlora_spectra, adalora, qlora_8gb and study. The last line printed is the
    next command, which runs at once on the embedded model.
    """
    from glmspectra.tuning.settings.explain import explain_keys, keys_as_lines
    from glmspectra.tuning.settings.presets import CHOICES, find_preset, write_presets

    if keys:
        finish({"keys": explain_keys()}, keys_as_lines(), as_json)
        return
    chosen = None if preset is None else find_preset(preset)
    written, same = write_presets(folder, force, chosen)
    following = (chosen or CHOICES[0]).command
    if folder != Path("."):
        following = f"cd {shlex.quote(str(folder))} && {following}"
    lines = [text("init-wrote", path=str(path)) for path in written]
    lines += [text("init-same", count=len(same))] if same else []
    shown = CHOICES if chosen is None else (chosen,)
    width = max(len(choice.command) for choice in shown)
    lines += ["", *(f"{choice.name:14} {choice.command:{width}}  {text(choice.message)}" for choice in shown)]
    lines += ["", text("init-rates"), text("terminal-next", command=following)]
    result = {
        "written": [str(path) for path in written],
        "unchanged": [str(path) for path in same],
        "presets": {choice.name: text(choice.message) for choice in shown},
        "next": following,
    }
    finish(result, [] if quiet else lines, as_json)
