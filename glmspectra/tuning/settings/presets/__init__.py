"""The presets and the sample data that the package carries: what `glmspectra init` writes.

They stand here once; `args_file/` and `data/` at the top of the repository are what `init` wrote there.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from glmspectra.errors import RequestError
from glmspectra.files import make_folder, write_atomically
from glmspectra.tuning.settings.explain import json_schema
from glmspectra.tuning.settings.files import FILES

PRESETS = Path(__file__).parent
SCHEMAS = Path("args_file/schema")


@dataclass(frozen=True)
class Preset:
    """Three files under args_file/.

    Attributes:
        name: For --preset.
        folder: "" for the ones that `glmspectra train` takes by itself.
        message: What it is for, by its name in the catalogue.
    """

    name: str
    folder: str
    message: str

    @property
    def path(self) -> Path:
        return Path("args_file") / self.folder

    @property
    def command(self) -> str:
        return f"glmspectra train --args {self.path}" if self.folder else "glmspectra train"


CHOICES = (
    Preset("qlora", "", "init-preset-qlora"),
    Preset("lora", "lora", "init-preset-lora"),
    Preset("qlora_spectra", "qlora_spectra", "init-preset-qlora-spectra"),
    Preset("adalora", "adalora", "init-preset-adalora"),
    Preset("qlora_8gb", "qlora_8gb", "init-preset-qlora-eight-gb"),
    Preset("study", "study", "init-preset-study"),
)


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises RequestError when there is none."""
    found = next((preset for preset in CHOICES if preset.name == name), None)
    if found is None:
        raise RequestError(f"--preset {name}: write one of {', '.join(preset.name for preset in CHOICES)}.")
    return found


def preset_files(preset: Preset | None = None) -> dict[Path, bytes]:
    """What `init` writes: the content of each file by its path; of one preset, or of all."""
    folders = [choice.path for choice in CHOICES] if preset is None else [preset.path]
    sources = [path for folder in [*folders, Path("data")] for path in sorted((PRESETS / folder).glob("*.json*"))]
    found = {source.relative_to(PRESETS): source.read_bytes() for source in sources}
    for section in FILES:
        text = json.dumps(json_schema(section), ensure_ascii=False, indent=1) + "\n"
        found[SCHEMAS / schema_name(section)] = text.encode()
    return found


def schema_name(section: str) -> str:
    """The name of the JSON Schema of one of the three files."""
    return FILES[section].replace(".json", ".schema.json")


def write_presets(folder: Path, force: bool = False, preset: Preset | None = None) -> tuple[list[Path], list[Path]]:
    """Write the presets, their schemas and the sample data into `folder`.

    Args:
        folder: Where args_file/ and data/ are to stand.
        force: Replace files of another content.
        preset: The only one to write; None: all.

    Returns:
        What was written, and what stood there already.

    Raises:
        RequestError: a file is there with another content and `force` is false; nothing is written then.
    """
    files = {folder / path: content for path, content in preset_files(preset).items()}
    same = [path for path, content in files.items() if path.is_file() and path.read_bytes() == content]
    changed = [path for path in files if path.exists() and path not in same]
    if changed and not force:
        raise RequestError(
            f"{changed[0]}{f' and {len(changed) - 1} more files' if len(changed) > 1 else ''} would be overwritten, "
            "and nothing was written; use --force to take the presets all the same."
        )
    written = [path for path in files if path not in same]
    for path in written:
        make_folder(path.parent)
        content = files[path]
        write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return written, same
