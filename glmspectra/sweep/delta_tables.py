"""What the report draws of a delta run beyond the three tables: `delta.parquet` and `similarity.parquet`
beside them.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glmspectra.files import write_atomically
from glmspectra.store import Run

if TYPE_CHECKING:
    import pandas as pd

DELTA_COLUMNS = (
    "allotted_rank",
    "rank",
    "share_of_rank_in_use",
    "relative_frobenius",
    "noise_floor",
    "effective_rank_above_floor",
    "share_unchanged",
    "intruders",
    "amplification",
    "overlap_left",
    "overlap_right",
)


def delta_table(run: Run) -> "pd.DataFrame":
    """One row for each changed weight and step: name, layer, matrix, step and DELTA_COLUMNS."""
    rows = run.matrices[run.matrices["quantity"] == "delta"]
    return rows[["name", "layer", "matrix", "step", *DELTA_COLUMNS]].reset_index(drop=True)


def similarity_table(run: Run) -> "pd.DataFrame":
    """Long form of phi(i, j) between the i leading directions of Delta and the j leading ones of W (Hu et al.
    2021, eq. 4), at the last step: name, layer, matrix, side ('left', 'right'), i, j (from 1), similarity.
    Empty without --against-base.
    """
    import pandas as pd

    rows = run.matrices[run.matrices["quantity"] == "delta"]
    if rows["step"].notna().any():
        rows = rows[rows["step"] == rows["step"].max()]
    pieces = []
    for row in rows[rows["similarity_left"].notna()].itertuples():
        for side, values in (("left", row.similarity_left), ("right", row.similarity_right)):
            k = round(len(values) ** 0.5)
            i, j = np.divmod(np.arange(k * k), k)
            pieces.append(
                pd.DataFrame(
                    {
                        "name": row.name,
                        "layer": row.layer,
                        "matrix": row.matrix,
                        "side": side,
                        "i": i + 1,
                        "j": j + 1,
                        "similarity": np.asarray(values, dtype=float),
                    }
                )
            )
    columns = ["name", "layer", "matrix", "side", "i", "j", "similarity"]
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=columns)


def write_delta_tables(run: Run) -> list[Path]:
    """Write both beside the run's tables; the second only where there is something in it."""
    written = []
    for name, table in (("delta", delta_table(run)), ("similarity", similarity_table(run))):
        path = run.folder / f"{name}.parquet"
        if len(table):
            write_atomically(path, partial(table.to_parquet, index=False))
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written
