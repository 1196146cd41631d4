"""What an earlier `svd` of the base already tells, so that a delta run need not stream the base for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint import Checkpoint
from glmspectra.errors import RequestError
from glmspectra.store import read_manifest, read_run, run_name
from glmspectra.store.schema import SCHEMA_VERSION
from glmspectra.store.vectors import read_vectors
from glmspectra.sweep.delta_rows import Bases


@dataclass(frozen=True)
class KnownBase:
    """norms: (weight, part) -> ||W||_F. folder: of the run; vectors: how many singular vectors a matrix it keeps."""

    folder: Path | None = None
    norms: dict[tuple[str, str], float] = field(default_factory=dict)
    vectors: int = 0

    @property
    def stamp(self) -> dict[str, Any]:
        """What of it changes the numbers of a delta run."""
        return {"norms": bool(self.norms), "vectors": self.vectors}

    def leading(self, name: str, part: str, k: int) -> Bases | None:
        """At most k leading singular vectors of W on both sides, float64, where they were kept."""
        if self.folder is None or not self.vectors:
            return None
        try:
            left, right = read_vectors(self.folder, name)[part]
        except (RequestError, KeyError):
            return None  # kept of other matrices only
        return Bases(torch.from_numpy(left[:, :k]).double(), torch.from_numpy(right[:, :k]).double())


def known_base(root: Path, base: Checkpoint | None) -> KnownBase:
    """Look for the base's own run under root (`param_matrix`); an empty answer where it was not measured."""
    if base is None:
        return KnownBase()
    folder = Path(root) / run_name(base.name, base.fingerprint)
    if not (folder / "manifest.json").is_file():
        return KnownBase()
    manifest = read_manifest(folder)
    asked = manifest["requests"].get("weight/spectrum")
    if manifest["schema"] != SCHEMA_VERSION or asked is None or not asked.get("done"):
        return KnownBase()
    rows = read_run(folder).matrices
    rows = rows[(rows["quantity"] == "weight") & rows["frobenius_norm"].notna()]
    matrices = zip(rows["name"].astype(str), rows["part"].astype(str), strict=True)
    norms = dict(zip(matrices, rows["frobenius_norm"].astype(float), strict=True))
    return KnownBase(folder, norms, int(asked.get("vectors") or 0))
