"""`glmspectra delta BASE TUNED`: spectra of what training changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmspectra.cli.console import finish, note, show_table
from glmspectra.cli.options import Device, Json, Quiet
from glmspectra.cli.selection_options import Exclude, Fresh, Include, Layers, Matrices, NoReport, OutRoot, SvgFiles
from glmspectra.language import both, listed, text
from glmspectra.launch import read_launch

if TYPE_CHECKING:
    from rich.table import Table

    from glmspectra.store import Run
    from glmspectra.sweep.delta_plan import DeltaPlan


def delta(
    first: Annotated[
        Path, typer.Argument(metavar="[BASE]", help="The base model, or nano; an adapter needs none for its spectra.")
    ],
    second: Annotated[
        Path | None,
        typer.Argument(metavar="TUNED", help="An adapter, a tuned model, or a run's folder with its checkpoint-N."),
    ] = None,
    against_base: Annotated[
        bool,
        typer.Option(
            "--against-base",
            help="Stream the base too: overlap with W, intruders, spectrum of W + delta-W. Says its cost first.",
        ),
    ] = False,
    directions: Annotated[
        int, typer.Option("--directions", min=1, help="How many leading directions --against-base compares.")
    ] = 8,
    initial: Annotated[
        Path | None,
        typer.Option(
            "--initial",
            help="The adapter before its first step (PiSSA, OLoRA). Absent: initial_adapter in or beside its folder.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="Another adapter: how similar the two changes are.", show_default=False),
    ] = None,
    layers: Layers = "all",
    matrices: Matrices = None,
    include: Include = None,
    exclude: Exclude = None,
    out: OutRoot = None,
    fresh: Fresh = False,
    no_report: NoReport = False,
    svg: SvgFiles = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Spectra of what training changed: an adapter, a merged or fully tuned model, every checkpoint of a run.

    Of an adapter the exact spectra come from its small factors, with no base at hand. Two models are
    subtracted as they stream, and what rounding to half precision added is distinguished.
    """
    from glmspectra.embedded import EMBEDDED_NAME
    from glmspectra.files import must_be_there

    for path in (first, second):
        if path is not None and str(path) != EMBEDDED_NAME:
            must_be_there(path)
    from glmspectra.cli.measuring import REPORTS_FOLDER, TABLES_FOLDER, draw_page
    from glmspectra.sweep.delta import measure_change
    from glmspectra.sweep.delta_plan import DeltaOptions
    from glmspectra.sweep.delta_summary import compare_adapters, summary_of

    base, tuned = (first, second) if second is not None else (None, first)
    root = out or Path()
    options = DeltaOptions(
        against_base=against_base,
        directions=directions,
        initial=initial,
        layers=layers,
        matrices=matrices,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        device=device,
        fresh=fresh,
        quiet=quiet,
    )
    run, result = measure_change(base, tuned, root / TABLES_FOLDER, options, None if quiet else _say_cost)
    if not result.first:  # process 0 says it
        raise typer.Exit(1 if result.nonfinite else 0)
    similarity = compare_adapters(tuned, compare, initial) if compare is not None else {}
    facts: dict[str, Any] = {
        "run": run.folder.name,
        "tables": str(run.folder),
        "report": None if no_report else str(draw_page(run.folder, root / REPORTS_FOLDER, svg, quiet)),
        "matrices": result.matrices,
        "states": result.states,
        "measured": result.measured,
        "kinds": result.tuned_by,
        "nonfinite": result.nonfinite,
        "seconds": round(result.seconds, 3),
        "device": result.device,
        "notes": result.notes,
        "summary": summary_of(run),
    } | ({"similarity": similarity} if similarity else {})
    if not as_json:
        show_table(_title(run), _table(facts["summary"]))
    finish(facts, _lines(facts), as_json)
    if result.nonfinite:
        raise typer.Exit(1)


def _say_cost(plan: "DeltaPlan") -> None:
    """What streaming the base will cost, before it is paid."""
    from glmspectra.device import choose_device

    if plan.streams and read_launch().first:
        note(plan.sentence(str(choose_device(plan.options.device))))


def _title(run: "Run") -> str:
    from glmspectra.sweep.delta_summary import last_state

    rows = last_state(run)
    sentence: dict[str, Any] = {"run": run.name, "layers": both("delta-layers", count=int(rows["layer"].nunique()))}
    if rows["step"].isna().all():
        return text("delta-title", **sentence)
    return text("delta-title-step", **sentence, step=str(int(rows["step"].iloc[0])))


def _table(summary: dict[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    from glmspectra.cli.measuring import cell, heading
    from glmspectra.sweep.delta_summary import SUMMARY_COLUMNS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(text("terminal-matrix"), no_wrap=True)
    shown = [column for column in SUMMARY_COLUMNS if any(column in values for values in summary.values())]
    for column in shown:
        table.add_column(heading(column), justify="right")
    for matrix, values in summary.items():
        table.add_row(matrix, *(cell(column, values[column]) if column in values else "" for column in shown))
    return table


def _lines(facts: dict[str, Any]) -> list[str]:
    sentence = {
        "matrices": both("terminal-matrices", count=facts["matrices"]),
        "methods": listed(facts["kinds"]),
        "seconds": f"{facts['seconds']:.1f}",
        "device": facts["device"],
    }
    if facts["states"] > 1:
        lines = [text("delta-measured-states", **sentence, states=facts["states"])]
    else:
        lines = [text("delta-measured", **sentence)]
    if facts["nonfinite"]:
        shown = listed(facts["nonfinite"][:5]) + (" ..." if len(facts["nonfinite"]) > 5 else "")
        lines.append(text("delta-nonfinite", count=len(facts["nonfinite"]), names=shown))
    lines += facts["notes"]
    if "similarity" in facts:
        values = [entry["cosine"] for entry in facts["similarity"].values()]
        lines.append(text("delta-similarity", least=f"{min(values):.3f}", most=f"{max(values):.3f}"))
    return lines + [text(f"terminal-{name}", path=facts[name]) for name in ("tables", "report") if facts[name]]
