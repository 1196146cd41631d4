"""What a run is asked for and of which checkpoint: the manifest, `param_matrix/<run>/manifest.json`."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmspectra import __version__
from glmspectra.errors import StoreError
from glmspectra.files import explain
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
        """The request's place in the manifest: a later request of the same key replaces it."""
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
    form: str = ""
    files: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_manifest(self) -> dict[str, Any]:
        facts = {"name": self.name, "path": self.path, "form": self.form, "fingerprint": self.fingerprint}
        details = {"details": dict(self.details)} if self.details else {}
        return {**facts, "files": [dict(file) for file in self.files], **details}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the run in `folder`.

    Raises StoreError where there is none or it cannot be understood.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["schema"], manifest["checkpoint"]["fingerprint"], manifest["requests"], manifest["complete"]
    except FileNotFoundError:
        raise StoreError(
            f"{folder} holds no run (there is no {MANIFEST}): measure one first with `glmspectra svd` or "
            "`glmspectra values`."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is not the manifest of a run ({error}); move it away and run the command again, "
            "finished matrices are reused."
        ) from error
    except OSError as error:
        raise explain(error, path, "be read") from error
    return manifest
