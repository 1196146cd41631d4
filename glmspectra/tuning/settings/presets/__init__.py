"""The presets and the sample data that the package carries: what `glmspectra init` writes.

They stand here once; `args_file/` and `data/` at the top of the repository are what `init` wrote there.
"""

import shutil
from pathlib import Path

from glmspectra.errors import RequestError

PRESETS = Path(__file__).parent


def write_presets(folder: Path, force: bool = False) -> tuple[list[Path], list[Path]]:
    """Copy the presets and the sample data into `folder`; returns what was written and what stood there already.

    Raises:
        RequestError: a file is there with another content and `force` is false; nothing is written then.
    """
    sources = sorted(path for path in PRESETS.rglob("*.json*") if path.is_file())
    pairs = [(source, folder / source.relative_to(PRESETS)) for source in sources]
    same = [target for source, target in pairs if target.is_file() and target.read_bytes() == source.read_bytes()]
    changed = [target for _, target in pairs if target.exists() and target not in same]
    if changed and not force:
        raise RequestError(
            f"{changed[0]}{f' and {len(changed) - 1} more files' if len(changed) > 1 else ''} would be overwritten, "
            "and nothing was written; use --force to take the presets all the same."
        )
    written = []
    for source, target in pairs:
        if target not in same:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
    return written, same
