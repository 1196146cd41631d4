"""Which stages of a loop are finished, and with what: `loop.json` in its folder, replaced whole after each stage."""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from glmspectra.errors import RequestError, StoreError
from glmspectra.json_files import plain, read_model, write_json
from glmspectra.loop.options import LoopOptions

FILE = "loop.json"
VERSION = 1
TRAINED = ("pilots", "training", "evaluation")  # folders of a loop that its settings decide


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    finished: str
    seconds: float
    result: dict[str, Any]


class _Kept(BaseModel):
    """What `loop.json` holds."""

    model_config = ConfigDict(extra="forbid")

    glmspectra_loop: Literal[1]
    options: dict[str, Any]
    stages: dict[str, _Stage]


class LoopState:
    """results: stage -> what it found, in the order the stages were finished."""

    def __init__(self, path: Path, identity: dict[str, Any], stages: dict[str, Any]):
        self.path, self.identity, self.stages = path, identity, stages

    @classmethod
    def open(cls, options: LoopOptions, fresh: bool = False) -> "LoopState":
        """The state in options.out, or a new one. RequestError where the folder holds another loop's stages."""
        path = options.out / FILE
        identity = plain(options.identity())
        if fresh:
            for trained in TRAINED:  # they may belong to other settings; tables are checked by the store itself
                shutil.rmtree(options.out / trained, ignore_errors=True)
        if fresh or not path.is_file():
            return cls(path, identity, {})
        try:
            kept = read_model(path, _Kept, StoreError)
            theirs, stages = kept.options, {name: stage.model_dump() for name, stage in kept.stages.items()}
        except StoreError as error:
            raise StoreError(f"{str(error).rstrip('.')}: remove it, or name another folder with --out.") from error
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
        found: dict[str, Any] = self.stages[stage]["result"]
        return found

    def finish(self, stage: str, result: dict[str, Any], seconds: float) -> None:
        """Record a stage; the file on disk is whole at every moment."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.stages[stage] = {"finished": stamp, "seconds": round(seconds, 2), "result": result}
        content = {"glmspectra_loop": VERSION, "options": self.identity, "stages": self.stages}
        write_json(self.path, content)
