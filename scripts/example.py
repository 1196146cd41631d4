"""Write param_matrix/example/ and reports/example/: tables and page of the embedded model, to be opened as they lie.

    python scripts/example.py

The run is that of `glmspectra svd --layers all --export-jsonl`; beside its tables lies matrices.csv, the same rows as
text. Both folders are one level deeper than a user's runs, so that no command takes them for one.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TABLES, PAGE = ROOT / "param_matrix" / "example", ROOT / "reports" / "example"
KEPT = ("manifest.json", "*.parquet", "*.jsonl")  # what is read; not the part files that the tables are merged from


def measure(work: Path) -> Path:
    """Measure the embedded model into `work`; the folder of its tables."""
    from glmspectra.cli.main import main

    line = ["svd", "--layers", "all", "--export-jsonl", "--device", "cpu", "--no-report", "--quiet"]
    try:
        main([*line, "--model", "nano", "--out", str(work)])
    except SystemExit as leaving:
        if leaving.code:
            raise
    return next(work.glob("param_matrix/*/manifest.json")).parent


def keep(run: Path, tables: Path) -> Path:
    """Copy the tables of a run to `tables`, without the path of this machine, and with the matrices as text."""
    from glmspectra.store import read_run

    kept = tables / run.name
    kept.mkdir(parents=True)
    for pattern in KEPT:
        for path in run.glob(pattern):
            shutil.copyfile(path, kept / path.name)
    manifest = json.loads((kept / "manifest.json").read_text(encoding="utf-8"))
    manifest["checkpoint"]["path"] = "nano"
    (kept / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    matrices = read_run(kept).matrices.dropna(axis="columns", how="all").drop(columns="seconds")
    one_value = [column for column in matrices if not isinstance(matrices[column].iloc[0], list | np.ndarray)]
    matrices[one_value].to_csv(kept / "matrices.csv", index=False, float_format="%.6g")
    return kept


def write(tables: Path, page: Path) -> None:
    """Measure anew, and replace what lies in both folders."""
    from glmspectra.figures import write_report

    for folder in (tables, page):
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        kept = keep(measure(Path(work)), tables)
    write_report(kept, page / kept.name)


if __name__ == "__main__":
    write(TABLES, PAGE)
    print(TABLES, PAGE, sep="\n")
