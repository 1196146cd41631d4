"""What a run is asked for and of which checkpoint: the manifest, `param_matrix/<run>/manifest.json`."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from glmspectra import __version__
from glmspectra.errors import StoreError
from glmspectra.json_files import plain, read_object, validate
from glmspectra.store.schema import KINDS, QUANTITIES, SCHEMA_VERSION

MANIFEST = "manifest.json"
PARTS = "parts"
VECTORS = "vectors"


def run_name(checkpoint: str, fingerprint: str) -> str:
    """The folder name of a run: the checkpoint's name, made safe for any file system, and its fingerprint."""
    readable = re.sub(r"[^\w.-]+", "_", checkpoint).strip("._") or "checkpoint"
    return f"{readable[:80]}-{fingerprint}"


@dataclass(frozen=True)
class Request:
    """One kind of measurement of one quantity over a selection of matrices.

    names: the matrices in depth order. options: every option that changes a number (method, tolerance, split
    ...), as JSON can hold it; what only changes the speed (device, processes) does not belong here. vectors:
    how many leading singular vectors a part are kept beside the numbers, which they do not change.
    """

    kind: str
    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    quantity: str = "weight"
    step: int | None = None
    vectors: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.quantity not in QUANTITIES:
            raise StoreError(f"kind {self.kind!r} of quantity {self.quantity!r} has no place in the tables.")

    @classmethod
    def from_manifest(cls, asked: Mapping[str, Any]) -> "Request":
        return cls(
            asked["kind"],
            tuple(asked["names"]),
            asked["options"],
            asked["quantity"],
            asked["step"],
            asked["vectors"],
        )

    def to_manifest(self, fingerprint: str) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "quantity": self.quantity,
            "step": self.step,
            "options": dict(self.options),
            "vectors": self.vectors,
            "stamp": self.stamp(fingerprint),
            "names": list(self.names),
        }

    @property
    def key(self) -> str:
        """The request's key in the manifest: a later request of the same key replaces it."""
        quantity = self.quantity if self.step is None else f"{self.quantity}@{self.step}"
        return f"{quantity}/{self.kind}"

    def stamp(self, fingerprint: str) -> str:
        """12 hexadecimal digits that change with anything that could change a number."""
        measured = [self.kind, self.quantity, self.step, dict(self.options)]
        facts = [SCHEMA_VERSION, __version__, fingerprint, *measured]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Source:
    """Which checkpoint a run is of.

    fingerprint: of its content. files: dicts with name, size, fingerprint and, for files whose fingerprint
    only samples them, modified (nanoseconds). details: anything else worth recording.
    """

    name: str
    fingerprint: str
    path: str = ""
    format: str = ""
    files: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_manifest(self) -> dict[str, Any]:
        facts = {"name": self.name, "path": self.path, "form": self.format, "fingerprint": self.fingerprint}
        details = {"details": dict(self.details)} if self.details else {}
        found: dict[str, Any] = plain({**facts, "files": [dict(file) for file in self.files], **details})
        return found


class _Checkpoint(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = "checkpoint"
    fingerprint: str
    path: str = ""
    files: list[dict[str, Any]] = []
    details: dict[str, Any] | None = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    kind: str
    quantity: str
    step: int | None
    options: dict[str, Any]
    vectors: int
    stamp: str
    names: list[str]
    done: list[str]
    left_out: list[str]
    complete: bool


class _Table(BaseModel):
    model_config = ConfigDict(extra="allow")

    file: str
    bytes: int


class _Manifest(BaseModel):
    """What must be right in a manifest for a run to be read; `extra` keys tell of how it was made."""

    model_config = ConfigDict(extra="allow")

    schema_: int = Field(alias="schema")
    checkpoint: _Checkpoint
    requests: dict[str, _Request]
    complete: bool
    nonfinite: list[str] = []
    tables: dict[str, _Table] = {}


class _AnyManifest(BaseModel):
    """The least that a manifest of another schema must hold to be distinguished from no manifest at all."""

    model_config = ConfigDict(extra="allow")

    schema_: int = Field(alias="schema")
    checkpoint: _Checkpoint


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the run in `folder`.

    Raises:
        StoreError: There is none, or it cannot be understood.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise StoreError(
            f"{folder} holds no run (there is no {MANIFEST}): measure one first with `glmspectra svd` or "
            "`glmspectra values`."
        )
    try:
        manifest = read_object(path, StoreError)
        model = _Manifest if manifest.get("schema") == SCHEMA_VERSION else _AnyManifest
        validate(manifest, model, str(path), StoreError)
    except StoreError as error:
        raise StoreError(
            f"{str(error).rstrip('.')}; it is not the manifest of a run: move it away and run the command again, "
            "finished matrices are reused."
        ) from error
    return manifest
