"""The three tables of a run, merged from its part files, and how they are read back."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glmspectra.errors import StoreError
from glmspectra.files import explain, write_atomically
from glmspectra.store.manifest import MANIFEST, PARTS, read_manifest
from glmspectra.store.measurement import Measurement, part_file_name, read_part
from glmspectra.store.schema import HISTOGRAMS, MATRICES, QUANTITIES, SCHEMA_VERSION, SINGULAR_VALUES, TABLES

if TYPE_CHECKING:
    import pandas as pd

_KEY_COLUMNS = ("quantity", "step", "name", "layer", "matrix", "part")


# What a notebook shows of each matrix type, as far as it was measured.
_SHOWN = ("std", "spectral_norm", "stable_rank", "effective_rank", "energy_rank_90", "mp_spikes", "alpha")


@dataclass(frozen=True, repr=False)
class Run:
    """The tables of one run as pandas data frames, columns as in `store.schema`.

    `step` and `layer` are Int64 (nullable); other integer columns are int64, or float64 with NaN where some
    rows were not measured. complete is False while matrices that were asked for are missing.
    """

    folder: Path
    manifest: dict[str, Any]
    matrices: "pd.DataFrame"
    singular_values: "pd.DataFrame"
    histograms: "pd.DataFrame"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def complete(self) -> bool:
        return bool(self.manifest["complete"])

    def __repr__(self) -> str:
        measured = ", ".join(f"{count} of {name}" for name, count in self.matrices["quantity"].value_counts().items())
        return f"<Run {self.name}: rows of matrices: {measured or 'none'}{'' if self.complete else '; not complete'}>"

    def _repr_html_(self) -> str:
        """Medians over the layers by matrix type, for Jupyter."""
        shown = [name for name in _SHOWN if self.matrices[name].notna().any()]
        groups = self.matrices.groupby(["quantity", "matrix", "part"], sort=False)
        medians = groups[shown].median().assign(rows=groups.size())
        return f"<p>{escape(repr(self))}</p>{medians.to_html(float_format=lambda number: f'{number:.4g}')}"


@dataclass(frozen=True)
class Collected:
    """The merged tables by name, the finished names by request key, and the names of matrices with NaN or Inf."""

    tables: dict[str, pa.Table]
    done: dict[str, list[str]]
    nonfinite: list[str]


def collect(folder: Path, manifest: Mapping[str, Any]) -> Collected:
    """Merge the part files of every request of `manifest` into the three tables.

    Rows stand in the order quantity, step, depth, part: the same whatever the order of measuring was. What
    `values` and `svd` found of one part of one matrix is one row.
    """
    done: dict[str, list[str]] = {}
    found: dict[tuple[Any, ...], list[Measurement]] = defaultdict(list)
    for key, asked in sorted(manifest["requests"].items()):
        done[key] = []
        for name in asked["names"]:
            file = part_file_name(name, asked["quantity"], asked["step"], asked["kind"], asked["stamp"])
            measurement = read_part(Path(folder) / PARTS / file, asked["stamp"])
            if measurement is not None:
                done[key].append(name)
                found[_order(measurement)].append(measurement)
    rows, singular_values, histograms, nonfinite = [], [], [], []
    for order in sorted(found):
        for row in _join(found[order]):
            rows.append(row)
            part = row["part"]
            for measurement in found[order]:
                if part in measurement.singular_values:
                    singular_values.append(_singular_values(row, *measurement.singular_values[part]))
                if part in measurement.histograms:
                    histograms.append(_histogram(row, *measurement.histograms[part]))
        if any(row["status"] == "nonfinite" for measurement in found[order] for row in measurement.rows):
            nonfinite.append(found[order][0].name)
    tables = {
        "matrices": pa.Table.from_pylist(rows, schema=MATRICES),
        "singular_values": _concatenate(singular_values, SINGULAR_VALUES),
        "histograms": _concatenate(histograms, HISTOGRAMS),
    }
    return Collected(tables, done, list(dict.fromkeys(nonfinite)))


def write_tables(folder: Path, collected: Collected) -> dict[str, dict[str, Any]]:
    """Write each table atomically; return its file, bytes and rows by its name, as the manifest keeps them."""
    written = {}
    for name, table in collected.tables.items():
        path = Path(folder) / f"{name}.parquet"
        write_atomically(path, partial(pq.write_table, table, compression="zstd"))
        written[name] = {"file": path.name, "bytes": path.stat().st_size, "rows": table.num_rows}
    return written


def read_run(folder: Path) -> Run:
    """Read the tables of the run in `folder`.

    Of a run that was interrupted, what is finished so far is read from the part files. Raises StoreError
    where there is no run, or nothing of it is finished, or a table cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest["schema"] != SCHEMA_VERSION:
        raise StoreError(
            f"{folder / MANIFEST} has schema {manifest['schema']}, this version reads {SCHEMA_VERSION}: measure again "
            "with the command that made it (`glmspectra svd`, `values` or `delta`)."
        )
    if manifest["complete"]:
        tables = {name: _read_table(folder / f"{name}.parquet", schema) for name, schema in TABLES.items()}
    else:
        tables = collect(folder, manifest).tables
    if not tables["matrices"].num_rows:
        raise StoreError(
            f"no matrix of the run {folder} is finished yet: run `glmspectra svd` or `glmspectra values` again."
        )
    frames = {name: _to_pandas(table) for name, table in tables.items()}
    for name in ("singular_values", "histograms"):
        frames[name] = _with_checkpoint(frames[name], frames["matrices"])
    return Run(folder, manifest, **frames)


def list_runs(root: Path) -> list[Path]:
    """The run folders under `root` (`param_matrix`), the one written last at the end; none, an empty list."""
    manifests = Path(root).glob(f"*/{MANIFEST}")
    return [path.parent for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path.parent.name))]


def _order(measurement: Measurement) -> tuple[Any, ...]:
    step = -1 if measurement.step is None else measurement.step
    return QUANTITIES.index(measurement.quantity), step, measurement.position, measurement.name


def _join(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """One row a part from the measurements (of different kinds) of one matrix: seconds add up, a bad status wins."""
    joined: dict[str, dict[str, Any]] = {}
    for measurement in measurements:
        for row in measurement.rows:
            before = joined.get(row["part"], {})
            merged = {**before, **{column: value for column, value in row.items() if value is not None}}
            if before:
                merged["seconds"] = (before.get("seconds") or 0.0) + (row.get("seconds") or 0.0)
                merged["status"] = next((s for s in (before["status"], row["status"]) if s != "ok"), "ok")
            joined[row["part"]] = merged
    return list(joined.values())


def _key_arrays(row: Mapping[str, Any], length: int, schema: pa.Schema) -> dict[str, pa.Array]:
    return {
        column: pa.repeat(pa.scalar(row.get(column), type=schema.field(column).type), length) for column in _KEY_COLUMNS
    }


def _singular_values(row: Mapping[str, Any], sigma: np.ndarray, bound: np.ndarray) -> pa.Table:
    columns = _key_arrays(row, len(sigma), SINGULAR_VALUES)
    columns |= {
        "index": pa.array(np.arange(len(sigma))),
        "sigma": pa.array(sigma),
        "error_bound": pa.array(bound),
    }
    return pa.table(columns, schema=SINGULAR_VALUES)


def _histogram(row: Mapping[str, Any], edges: np.ndarray, counts: np.ndarray) -> pa.Table:
    columns = _key_arrays(row, len(counts), HISTOGRAMS)
    columns |= {"bin_left": pa.array(edges[:-1]), "bin_right": pa.array(edges[1:]), "count": pa.array(counts)}
    return pa.table(columns, schema=HISTOGRAMS)


def _concatenate(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks() if tables else schema.empty_table()


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        with path.open("rb") as file:  # pyarrow opens no path that is not UTF-8
            # `read_table` would import pyarrow.dataset, a third of a second
            return _checked(pq.ParquetFile(file).read(), schema)
    except (pa.ArrowException, ValueError, OverflowError, KeyError, FileNotFoundError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise StoreError(
            f"{path} is missing or damaged ({reason}): delete it and run the same `glmspectra svd` or "
            "`glmspectra values` command again, which merges it anew from the finished matrices."
        ) from error
    except OSError as error:
        raise explain(error, path, "be read") from error


def _checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in the types of the schema; columns that may be null may be absent, as in tables of before them.

    Raises:
        ValueError: A column is missing, of another type, holds null where it must not, or a row stands twice.
    """
    for field in schema:
        at = table.schema.get_field_index(field.name)
        if at < 0 and field.nullable:
            continue
        if at < 0 or (not field.nullable and table.column(at).null_count):
            raise ValueError(f"the column {field.name} {'is missing' if at < 0 else 'holds null'}")
        if table.schema.field(at).type != field.type:
            table = table.set_column(at, field, table.column(at).cast(field.type))
    if schema is MATRICES and table.group_by(list(_KEY_COLUMNS)).aggregate([]).num_rows != table.num_rows:
        raise ValueError("a row stands twice")
    return table


def _with_checkpoint(rows: "pd.DataFrame", matrices: "pd.DataFrame") -> "pd.DataFrame":
    """`rows` with the checkpoint of their matrix as first column, so that tables of two models can be concatenated."""
    import pandas as pd

    names = matrices["checkpoint"].unique()
    if len(names) == 1:
        of_rows = pd.Categorical.from_codes([0] * len(rows), categories=names)
    else:
        keys = ["quantity", "step", "name", "part"]
        of_rows = pd.Categorical(rows[keys].merge(matrices[[*keys, "checkpoint"]], how="left", on=keys)["checkpoint"])
    rows.insert(0, "checkpoint", of_rows)
    return rows


def _to_pandas(table: pa.Table) -> "pd.DataFrame":
    import pandas as pd

    frame = table.to_pandas()
    for column in ("step", "layer"):
        frame[column] = frame[column].astype(pd.Int64Dtype())
    return frame
