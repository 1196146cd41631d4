"""The three tables of a run as Arrow schemas, from the descriptions in `store.columns`.

A column that is not listed there is refused, so that a misspelt statistic cannot slip into a table unseen.
Every column but the identity of a row may be null: `values` fills the middle block, `svd` the last.
"""

from collections.abc import Iterable

import pyarrow as pa

from glmspectra.store.columns import (
    CHANGE,
    REAL,
    REALS,
    TEXT,
    VALUES,
    WHOLE,
    WHOLES,
    Column,
)
from glmspectra.store.columns import HISTOGRAMS as HISTOGRAM_COLUMNS
from glmspectra.store.columns import IDENTITY as IDENTITY_COLUMNS
from glmspectra.store.columns import SINGULAR_VALUES as SINGULAR_VALUE_COLUMNS
from glmspectra.store.columns import SPECTRUM as SPECTRUM_COLUMNS

# Raised when a column changes its meaning: runs of another schema are measured anew, never mixed in.
# 2: the noise level and edge of a fused weight are those of its parts (spectra/stacked_noise.py).
SCHEMA_VERSION = 2

KINDS = ("values", "spectrum")
QUANTITIES = ("weight", "delta", "merged", "quant_error", "gradient", "delta_adamw", "delta_tempered")
STATUSES = ("ok", "nonfinite", "unreadable")

_ARROW = {
    TEXT: pa.string(),
    WHOLE: pa.int64(),
    REAL: pa.float64(),
    WHOLES: pa.list_(pa.int64()),
    REALS: pa.list_(pa.float64()),
}


def _fields(columns: Iterable[Column]) -> list[pa.Field]:
    return [pa.field(column.name, _ARROW[column.type], nullable=not column.required) for column in columns]


IDENTITY = _fields(IDENTITY_COLUMNS)
MATRICES = pa.schema(_fields([*IDENTITY_COLUMNS, *VALUES, *SPECTRUM_COLUMNS, *CHANGE]))
SINGULAR_VALUES = pa.schema(_fields(SINGULAR_VALUE_COLUMNS))
HISTOGRAMS = pa.schema(_fields(HISTOGRAM_COLUMNS))

TABLES = {"matrices": MATRICES, "singular_values": SINGULAR_VALUES, "histograms": HISTOGRAMS}

# The columns of `matrices` that a measurement of each kind may fill.
MEASURED = {
    "values": frozenset(column.name for column in VALUES),
    "spectrum": frozenset(column.name for column in (*SPECTRUM_COLUMNS, *CHANGE)),
}
