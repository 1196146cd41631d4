"""What `values` and `svd` share: open, select, sweep, draw, and say what came out."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glmspectra.cli.console import finish, note, show_table
from glmspectra.errors import GlmspectraError
from glmspectra.language import both, current, text
from glmspectra.launch import read_launch

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
    svg: bool = False,
    export_jsonl: bool,
    as_json: bool,
    summary_columns: Sequence[str],
    following: str | None = None,
) -> None:
    """Measure a selection, draw the report and print the result.

    Tables go to OUT/param_matrix/<run>/, the report to OUT/reports/<run>/; OUT is the current folder unless
    told. Under torchrun all but process 0 are silent. Raises typer.Exit(1) where a matrix holds NaN or Inf.

    following: the command that takes the tables of a whole model on, said at the end where nothing went wrong.
    """
    try:
        result, folder = _sweep(model, out, options, layers, matrices, include, exclude, export_jsonl)
    except GlmspectraError as error:
        if not read_launch().first:  # process 0 says it
            raise typer.Exit(error.exit_status) from error
        raise
    if result.first:
        _tell(result, folder, out, options, report, svg, export_jsonl, as_json, summary_columns, following)
    if result.nonfinite or result.unreadable:
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
    from glmspectra.checkpoint.selection import left_out_sentence
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.store import RunStore, check_jsonl
    from glmspectra.sweep import source_of, sweep

    with open_checkpoint(choose_model(model)) as checkpoint:
        records = select(checkpoint, layers, matrices, include, exclude)
        if export_jsonl:
            pairs = {(record.layer, record.matrix) for record in records if record.layer is not None}
            check_jsonl(pairs, "this selection")
        note(left_out_sentence(checkpoint), options.quiet)
        if checkpoint.format == "adapter":
            note(text("checkpoint-is-adapter", name=checkpoint.name), options.quiet)
        store = RunStore.of((out or Path()) / TABLES_FOLDER, source_of(checkpoint))
        return sweep(checkpoint, records, options, store), store.folder


def _tell(
    result: "SweepResult",
    folder: Path,
    out: Path | None,
    options: "SweepOptions",
    report: bool,
    svg: bool,
    export_jsonl: bool,
    as_json: bool,
    summary_columns: Sequence[str],
    following: str | None,
) -> None:
    from glmspectra import store

    run = store.read_run(folder)
    index = exported = None
    if export_jsonl:
        exported = store.export_jsonl(run)
    if report:
        index = draw_page(folder, (out or Path()) / REPORTS_FOLDER, svg, options.quiet)
    facts: dict[str, Any] = {
        "run": folder.name,
        "tables": str(folder),
        "report": str(index) if index else None,
        "jsonl": str(exported) if exported else None,
        "matrices": result.matrices,
        "measured": result.measured,
        "reused": result.matrices - result.measured,
        "left_out": len({name for asked in run.manifest["requests"].values() for name in asked["left_out"]}),
        "not_measured": run.manifest["checkpoint"].get("details", {}).get("left_out", {"count": 0, "tensors": {}}),
        "nonfinite": result.nonfinite,
        "unreadable": result.unreadable,
        "seconds": round(result.seconds, 3),
        "device": result.device,
        "processes": result.processes,
        "device_memory": _device_memory(result.device) if result.measured else None,
    }
    if following and not (result.nonfinite or result.unreadable or run.manifest["checkpoint"]["form"] == "adapter"):
        facts["next"] = following
    if not as_json:
        show_table(text("terminal-medians", run=run.name), summary_table(run, summary_columns))
    finish(facts, _lines(facts, result), as_json)


def _device_memory(device: str) -> int | None:
    """The most bytes that this process had in use on its CUDA device; None on a CPU."""
    if device == "cpu":
        return None
    import torch

    return torch.cuda.max_memory_allocated(torch.device(device))


def draw_page(run_folder: Path, reports: Path, svg: bool = False, quiet: bool = False) -> Path:
    """The page of a stored run into `reports`, and the overview there, where they do not stand yet; the page's path."""
    from glmspectra.figures.standing import stands

    out = reports / run_folder.name
    index, overview = out / "index.html", reports / "index.html"
    if not svg and stands(index, run_folder.iterdir()) and stands(overview, reports.glob("*/index.html")):
        return index
    from glmspectra.figures import write_overview, write_report

    if quiet:
        index = write_report(run_folder, out, svg=svg)
    else:
        from glmspectra.cli.drawing import stderr

        with stderr.status(text("terminal-drawing")):
            index = write_report(run_folder, out, svg=svg)
    if svg:
        note_language_of_figures(quiet)
    write_overview(reports)
    return index


def note_language_of_figures(quiet: bool) -> None:
    """Say so where SVG files are in English for want of a font that holds Chinese."""
    from glmspectra.figures.svg.words import missing_font

    note(missing_font(), quiet)


def _lines(facts: dict[str, Any], result: "SweepResult") -> list[str]:
    matrices, reused = both("terminal-matrices", count=facts["matrices"]), facts["reused"]
    how = "-none" if facts["measured"] == 0 else "-some" if reused else ""
    took = {"matrices": matrices, "reused": reused, "seconds": f"{result.seconds:.1f}", "device": result.device}
    lines = [text(f"terminal-measured{how}", **took)]
    if result.nonfinite:
        shown = ", ".join(result.nonfinite[:5]) + (" ..." if len(result.nonfinite) > 5 else "")
        lines.append(text("terminal-nonfinite", count=len(result.nonfinite), names=shown))
    if result.unreadable:
        name, reason = next(iter(result.unreadable.items()))
        lines.append(text("terminal-unreadable", count=len(result.unreadable), name=name, reason=reason))
    if facts["left_out"]:
        lines.append(text("terminal-left-out", matrices=both("terminal-matrices", count=facts["left_out"])))
    for name in ("tables", "jsonl", "report"):
        if facts[name]:
            lines.append(text(f"terminal-{name}", path=facts[name]))
    if "next" in facts:
        lines.append(text("terminal-next", command=facts["next"]))
    return lines


def summary_table(run: "Run", columns: Sequence[str]) -> Any:
    """A rich table with one row a matrix type (and part): the median over the layers.

    columns: of `matrices`; those that were not measured are left out.
    """
    from rich import box
    from rich.table import Table

    weights = run.matrices[run.matrices["quantity"] == "weight"]
    shown = [column for column in columns if weights[column].notna().any()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # A long name is broken in a narrow window, a number never cut.
    table.add_column(text("terminal-matrix"), overflow="fold")
    table.add_column(text("terminal-layers"), justify="right", no_wrap=True)
    for column in shown:
        table.add_column(heading(column), justify="right", min_width=6, no_wrap=True)
    for (matrix, part), group in weights.groupby(["matrix", "part"], sort=False):
        medians = group[shown].median()
        if medians.notna().any():  # parts that only the other command measured have nothing to show here
            name = matrix if part == "whole" else f"  {part}"
            table.add_row(name, str(len(group)), *(cell(column, medians[column]) for column in shown))
    return table


def cell(name: str, value: float) -> str:
    """A number of a column; a share in percent."""
    from glmspectra.store.columns import column

    return f"{100 * value:.4g} %" if column(name).share else f"{value:.4g}"


def heading(name: str) -> str:
    """A column's short label, a word a line: heads are high and narrow, so that names of matrices are not broken."""
    from glmspectra.store.columns import column

    return "\n".join(textwrap.wrap(column(name).head(current()), 9))
