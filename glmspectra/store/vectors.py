"""Leading singular vectors, for those who asked for them: one safetensors file a matrix under the run's `vectors/`.

Tensors `<part>/left` (rows, K) and `<part>/right` (cols, K), float32 columns in the order of the singular
values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from glmspectra.errors import RequestError, StoreError
from glmspectra.files import make_folder, write_atomically
from glmspectra.store.manifest import VECTORS, read_manifest
from glmspectra.store.measurement import part_file_name

Vectors = Mapping[str, tuple[np.ndarray, np.ndarray]]


def vectors_path(folder: Path, name: str, quantity: str, step: int | None, stamp: str) -> Path:
    """Where the vectors of one matrix lie: beside its part file in name, in a folder of their own."""
    part = part_file_name(name, quantity, step, "spectrum", stamp)
    return Path(folder) / VECTORS / part.replace(".npz", ".safetensors")


def write_vectors(path: Path, vectors: Vectors, asked: int) -> None:
    """Write part -> (left, right) atomically, and how many were asked for (a small part has fewer).

    Raises StoreError where the file system refuses.
    """
    tensors = {}
    for part, (left, right) in vectors.items():
        tensors[f"{part}/left"] = np.ascontiguousarray(left, dtype=np.float32)
        tensors[f"{part}/right"] = np.ascontiguousarray(right, dtype=np.float32)
    make_folder(path.parent)
    content = save(tensors, metadata={"vectors": str(asked)})
    write_atomically(path, lambda file: file.write(content), sweep=False)


def count_vectors(path: Path) -> int:
    """How many vectors a part were asked for when the file was written; 0 where there is no whole file."""
    try:
        with safe_open(path, framework="np") as file:
            return int(file.metadata()["vectors"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0


def read_vectors(folder: Path, name: str, quantity: str = "weight", step: int | None = None) -> dict[str, Any]:
    """Part -> (left (rows, K), right (cols, K)) of one matrix of the run in `folder`, float32.

    Raises RequestError where the run kept no vectors of it, StoreError where the file is damaged.
    """
    for asked in read_manifest(folder)["requests"].values():
        if (asked["kind"], asked["quantity"], asked["step"]) == ("spectrum", quantity, step):
            path = vectors_path(folder, name, quantity, step, asked["stamp"])
            if path.is_file():
                return _load(path)
    raise RequestError(f"{folder} keeps no singular vectors of {name}: run `glmspectra svd --vectors K` on it first.")


def _load(path: Path) -> dict[str, Any]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"{path} is damaged ({error}): delete it and run `glmspectra svd --vectors K` again."
        ) from error
    parts = [key.removesuffix("/left") for key in tensors if key.endswith("/left")]
    return {part: (tensors[f"{part}/left"], tensors[f"{part}/right"]) for part in parts}
