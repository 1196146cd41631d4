"""What `values` and `svd` share: open, select, sweep, draw, and say what came out."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glmspectra.cli.console import finish, stderr
from glmspectra.errors import GlmspectraError

if TYPE_CHECKING:
    from glmspectra.store import Run
    from glmspectra.sweep import SweepOptions, SweepResult

TABLES_FOLDER, REPORTS_FOLDER = "param_matrix", "reports"


def measure(
    model: Path | None,
    out: Path | None,
    options: "SweepOptions",
    *,
    layers: str,
    matrices: str | None,
    include: Sequence[str],
    exclude: Sequence[str],
    report: bool,
    export_jsonl: bool,
    as_json: bool,
    summary_columns: Mapping[str, str],
) -> None:
    """Measure a selection, draw the report and print the result.

    Tables go to OUT/param_matrix/<run>/, the report to OUT/reports/<run>/; OUT is the current folder unless
    told. Under torchrun all but process 0 are silent. Raises typer.Exit(1) where a matrix holds NaN or Inf.
    """
    try:
        result, folder = _sweep(model, out, options, layers, matrices, include, exclude, export_jsonl)
    except GlmspectraError as error:
        if int(os.environ.get("RANK", "0")) > 0:  # process 0 says it
            raise typer.Exit(error.exit_status) from error
        raise
    if result.first:
        _tell(result, folder, out, options, report, export_jsonl, as_json, summary_columns)
    if result.nonfinite:
        raise typer.Exit(1)


def _sweep(
    model: Path | None,
    out: Path | None,
    options: "SweepOptions",
    layers: str,
    matrices: str | None,
    include: Sequence[str],
    exclude: Sequence[str],
    export_jsonl: bool,
) -> tuple["SweepResult", Path]:
    from glmspectra.checkpoint import open_checkpoint, select
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.store import RunStore, check_jsonl
    from glmspectra.sweep import source_of, sweep

    with open_checkpoint(choose_model(model)) as checkpoint:
        records = select(checkpoint, layers, matrices, include, exclude)
        if export_jsonl:
            pairs = {(record.layer, record.matrix) for record in records if record.layer is not None}
            check_jsonl(pairs, "this selection")
        if checkpoint.form == "adapter" and not options.quiet:
            stderr.print(
                f"{checkpoint.name} is an adapter: its factors are measured one by one; `glmspectra delta` gives the "
                "spectra of the change that they make together.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        store = RunStore.of((out or Path()) / TABLES_FOLDER, source_of(checkpoint))
        return sweep(checkpoint, records, options, store), store.folder


def _tell(
    result: "SweepResult",
    folder: Path,
    out: Path | None,
    options: "SweepOptions",
    report: bool,
    export_jsonl: bool,
    as_json: bool,
    summary_columns: Mapping[str, str],
) -> None:
    from glmspectra import store

    run = store.read_run(folder)
    index = exported = None
    if export_jsonl:
        exported = store.export_jsonl(run)
    if report:
        from glmspectra.figures import write_overview

        index = _draw(folder, (out or Path()) / REPORTS_FOLDER / folder.name, options.quiet)
        write_overview(index.parent.parent)
    facts: dict[str, Any] = {
        "run": folder.name,
        "tables": str(folder),
        "report": str(index) if index else None,
        "jsonl": str(exported) if exported else None,
        "matrices": result.matrices,
        "measured": result.measured,
        "reused": result.matrices - result.measured,
        "left_out": len({name for asked in run.manifest["requests"].values() for name in asked["left_out"]}),
        "nonfinite": result.nonfinite,
        "seconds": round(result.seconds, 3),
        "device": result.device,
        "processes": result.processes,
    }
    if not as_json:
        from glmspectra.cli.console import stdout

        stdout.print(summary_table(run, summary_columns))
    finish(facts, _lines(facts, result), as_json)


def _draw(run_folder: Path, out: Path, quiet: bool) -> Path:
    from glmspectra.figures import write_report

    if quiet:
        return write_report(run_folder, out)
    with stderr.status("drawing the report ...") as status:
        return write_report(run_folder, out, progress=lambda words: status.update(f"drawing {words} ..."))


def _lines(facts: dict[str, Any], result: "SweepResult") -> list[str]:
    reused = f", {facts['reused']} of them finished before" if facts["reused"] else ""
    if facts["measured"] == 0:
        reused = ", finished before"
    lines = [f"{_count(facts['matrices'])}{reused}, in {result.seconds:.1f} s on {result.device}."]
    if result.nonfinite:
        shown = ", ".join(result.nonfinite[:5]) + (" ..." if len(result.nonfinite) > 5 else "")
        lines.append(f"{len(result.nonfinite)} of them hold NaN or Inf and have no spectrum: {shown}")
    if facts["left_out"]:
        lines.append(
            f"{_count(facts['left_out'])} of earlier selections kept on disk, and back in the tables once asked for."
        )
    lines.append(f"tables: {facts['tables']}")
    if facts["jsonl"]:
        lines.append(f"jsonl:  {facts['jsonl']}")
    if facts["report"]:
        lines.append(f"report: {facts['report']}")
    return lines


def _count(matrices: int) -> str:
    return f"{matrices} matrix" if matrices == 1 else f"{matrices} matrices"


def summary_table(run: "Run", columns: Mapping[str, str]) -> Any:
    """A rich table with one row a matrix type (and part): the median over the layers.

    columns: column of `matrices` -> its heading; columns that were not measured are left out.
    """
    from rich import box
    from rich.table import Table

    weights = run.matrices[run.matrices["quantity"] == "weight"]
    shown = [column for column in columns if weights[column].notna().any()]
    title = f"{run.name}: medians over the layers"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("matrix", overflow="fold")  # a long name is broken in a narrow window, a number never cut
    table.add_column("layers", justify="right", no_wrap=True)
    for column in shown:
        table.add_column(columns[column], justify="right", min_width=6, no_wrap=True)
    for (matrix, part), group in weights.groupby(["matrix", "part"], sort=False):
        medians = group[shown].median()
        if medians.notna().any():  # parts that only the other command measured have nothing to show here
            name = matrix if part == "whole" else f"  {part}"
            table.add_row(name, str(len(group)), *(f"{median:.4g}" for median in medians))
    return table
