"""What was measured of one matrix, and the part file that holds it until the tables are merged.

A part file is a NumPy archive (`.npz`): numbers at full precision, a checksum for each member, and nothing in
it that could run on reading. Its `record` member is the JSON of everything that is not an array.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glmspectra.errors import StoreError
from glmspectra.files import write_atomically
from glmspectra.json_files import parse_json
from glmspectra.store.schema import IDENTITY, KINDS, MATRICES, MEASURED, QUANTITIES, STATUSES

_IDENTITY = frozenset(column.name for column in IDENTITY)
_WHOLE_NUMBERS = frozenset(column.name for column in MATRICES if column.type == pa.int64())
_REQUIRED = frozenset(column.name for column in IDENTITY if not column.nullable)


@dataclass(frozen=True)
class Measurement:
    """One kind of measurement of one matrix: a row for each of its parts, 'whole' first.

    rows: one dict a part with the identity columns and those columns of `matrices` that `kind` may fill.
    singular_values: part -> (sigma, error_bound), float64 of equal length, sigma descending (kind
    'spectrum'). histograms: part -> (edges of length bins + 1, counts of length bins) (kind 'values').
    position: index of the matrix in its checkpoint's depth order; rows of the tables are sorted by it.
    """

    kind: str
    quantity: str
    step: int | None
    name: str
    position: int
    rows: list[dict[str, Any]]
    singular_values: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    histograms: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.quantity not in QUANTITIES:
            raise StoreError(
                f"{self.name}: kind {self.kind!r} of quantity {self.quantity!r} has no place in the tables."
            )
        allowed = _IDENTITY | MEASURED[self.kind]
        for row in self.rows:
            unknown, missing = row.keys() - allowed, _REQUIRED - row.keys()
            if unknown or missing:
                raise StoreError(
                    f"{self.name}, part {row.get('part')}: the row has columns that kind {self.kind!r} does not know "
                    f"({', '.join(sorted(unknown)) or 'none'}) or lacks some ({', '.join(sorted(missing)) or 'none'}); "
                    "the list stands in glmspectra/store/schema.py."
                )
            if row["status"] not in STATUSES:
                raise StoreError(f"{self.name}: status {row['status']!r} is not one of {', '.join(STATUSES)}.")


def part_file_name(name: str, quantity: str, step: int | None, kind: str, stamp: str) -> str:
    """The name of a matrix' part file: readable, and unique by a hash of what the readable half lost."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-80:].lstrip(".")
    identity = hashlib.sha256(json.dumps([name, quantity, step]).encode()).hexdigest()[:10]
    return f"{readable}-{identity}.{kind}-{stamp}.npz"


def write_part(path: Path, measurement: Measurement, stamp: str) -> None:
    """Write one part file atomically. Raises StoreError where the file system refuses."""
    record = {
        "stamp": stamp,
        "kind": measurement.kind,
        "quantity": measurement.quantity,
        "step": measurement.step,
        "name": measurement.name,
        "position": measurement.position,
        "rows": [{column: _plain(column, value) for column, value in row.items()} for row in measurement.rows],
    }
    arrays: dict[str, np.ndarray] = {"record": np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)}
    for part, (sigma, bound) in measurement.singular_values.items():
        arrays[f"sigma/{part}"] = np.asarray(sigma, dtype=np.float64)
        arrays[f"error_bound/{part}"] = np.asarray(bound, dtype=np.float64)
    for part, (edges, counts) in measurement.histograms.items():
        arrays[f"edges/{part}"] = np.asarray(edges, dtype=np.float64)
        arrays[f"counts/{part}"] = np.asarray(counts, dtype=np.int64)
    write_atomically(path, lambda file: np.savez(file, **arrays), sweep=False)  # type: ignore[arg-type]


def read_part(path: Path, stamp: str) -> Measurement | None:
    """Read one part file; None (measure it, then) where there is none, or a damaged one, or of another stamp."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {member: archive[member] for member in archive.files}
        record = parse_json(arrays.pop("record").tobytes(), str(path), StoreError, allow_nan=True)
        if record.pop("stamp") != stamp:
            return None
        parts = [row["part"] for row in record["rows"]]
        return Measurement(
            **record,
            singular_values={
                part: (arrays[f"sigma/{part}"], arrays[f"error_bound/{part}"])
                for part in parts
                if f"sigma/{part}" in arrays
            },
            histograms={
                part: (arrays[f"edges/{part}"], arrays[f"counts/{part}"]) for part in parts if f"edges/{part}" in arrays
            },
        )
    except Exception:  # damaged bytes make NumPy's and zipfile's readers fail in any way
        return None


def _plain(column: str, value: Any) -> Any:
    """The value as JSON can hold it (floats survive exactly: repr round-trips).

    A whole number that is not known may come as NaN; its column knows only null.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if column in _WHOLE_NUMBERS and isinstance(value, float):
        return None if math.isnan(value) else int(value)
    return value
