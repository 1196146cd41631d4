"""Which stages of a loop are finished, and with what: `loop.json` in its folder, replaced whole after each stage."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from glmspectra.errors import RequestError, StoreError
from glmspectra.files import make_folder, write_atomically
from glmspectra.loop.options import LoopOptions

FILE = "loop.json"
FORM = 1
TRAINED = ("pilots", "training", "evaluation")  # folders of a loop that its settings decide


class LoopState:
    """results: stage -> what it found, in the order the stages were finished."""

    def __init__(self, path: Path, identity: dict[str, Any], stages: dict[str, Any]):
        self.path, self.identity, self.stages = path, identity, stages

    @classmethod
    def open(cls, options: LoopOptions, fresh: bool = False) -> "LoopState":
        """The state in options.out, or a new one. RequestError where the folder holds another loop's stages."""
        path = options.out / FILE
        identity = options.identity()
        if fresh:
            for trained in TRAINED:  # they may belong to other settings; tables are checked by the store itself
                shutil.rmtree(options.out / trained, ignore_errors=True)
        if fresh or not path.is_file():
            return cls(path, identity, {})
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            theirs, stages = kept["options"], kept["stages"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}): remove it, or name another folder with --out."
            ) from error
        differing = [key for key in identity if theirs.get(key) != identity[key]]
        if differing:
            key = differing[0]
            raise RequestError(
                f"{options.out} holds a loop with another {key} ({theirs.get(key)!r}, now {identity[key]!r}): name "
                "another folder with --out, or begin anew with --fresh."
            )
        return cls(path, identity, stages)

    def finished(self, stage: str) -> bool:
        return stage in self.stages

    def result(self, stage: str) -> dict[str, Any]:
        return self.stages[stage]["result"]

    def finish(self, stage: str, result: dict[str, Any], seconds: float) -> None:
        """Record a stage; the file on disk is whole at every moment."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.stages[stage] = {"finished": stamp, "seconds": round(seconds, 2), "result": result}
        content = {"glmspectra_loop": FORM, "options": self.identity, "stages": self.stages}
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
        make_folder(self.path.parent)
        write_atomically(self.path, lambda file: file.write(text.encode()))
