"""`glmspectra delta BASE TUNED`: spectra of what training changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmspectra.cli.console import finish, stderr, stdout
from glmspectra.cli.options import Device, Json, Quiet
from glmspectra.cli.selection_options import Exclude, Fresh, Include, Layers, Matrices, NoReport, OutRoot, SvgFiles
from glmspectra.launch import read_launch

if TYPE_CHECKING:
    from glmspectra.store import Run
    from glmspectra.sweep.delta import DeltaResult

# Columns of the tables that the terminal shows.
COLUMNS = (
    "rank",
    "allotted_rank",
    "effective_rank",
    "stable_rank",
    "spectral_norm",
    "relative_frobenius",
    "intruders",
)


def delta(
    first: Annotated[
        Path, typer.Argument(metavar="[BASE]", help="The base model; may be left out for a LoRA or AdaLoRA adapter.")
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
    subtracted as they stream, and what rounding to half precision added is told apart.
    """
    base, tuned = (first, second) if second is not None else (None, first)
    run, result = measure_changes(
        base,
        tuned,
        out or Path(),
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
    if not result.first:  # process 0 says it
        raise typer.Exit(1 if result.nonfinite else 0)
    similarity = _similarity(tuned, compare, initial) if compare is not None else {}
    index = None
    if not no_report:
        from glmspectra.cli.measuring import REPORTS_FOLDER, draw_page

        index = draw_page(run.folder, (out or Path()) / REPORTS_FOLDER, svg, quiet)
    facts: dict[str, Any] = {
        "run": run.folder.name,
        "tables": str(run.folder),
        "report": str(index) if index else None,
        "matrices": result.matrices,
        "states": result.states,
        "measured": result.measured,
        "kinds": result.kinds,
        "nonfinite": result.nonfinite,
        "seconds": round(result.seconds, 3),
        "device": result.device,
        "notes": result.notes,
        "summary": _summary(run),
    } | ({"similarity": similarity} if similarity else {})
    if not as_json:
        stdout.print(_table(run))
    finish(facts, _lines(facts), as_json)
    if result.nonfinite:
        raise typer.Exit(1)


def measure_changes(base: Path | None, tuned: Path, root: Path, **options: Any) -> "tuple[Run, DeltaResult]":
    """Measure into root/param_matrix/<run>; say the cost where W is streamed."""
    from glmspectra.cli.measuring import TABLES_FOLDER
    from glmspectra.device import choose_device
    from glmspectra.store import read_run
    from glmspectra.sweep.delta import measure_delta
    from glmspectra.sweep.delta_plan import DeltaOptions, plan_delta

    asked = DeltaOptions(**options)
    plan = plan_delta(base, tuned, asked)
    try:
        if plan.streams and not asked.quiet and read_launch().first:
            stderr.print(plan.sentence(str(choose_device(asked.device))), highlight=False, soft_wrap=True)
        result = measure_delta(plan, root / TABLES_FOLDER)
    finally:
        plan.close()
    return read_run(result.folder), result


def _similarity(tuned: Path, other: Path, initial: Path | None) -> dict[str, Any]:
    """Cosine and subspace similarity of two adapters' changes, by weight, from their last states."""
    from glmspectra.checkpoint.adapter.adapter import open_adapter
    from glmspectra.checkpoint.adapter.run_folder import tuned_checkpoints
    from glmspectra.errors import RequestError
    from glmspectra.spectra.lowrank import adapter_similarity, factor_spectrum

    states = [tuned_checkpoints(path)[-1] for path in (tuned, other)]
    if not all(state.is_adapter for state in states):
        raise RequestError("--compare takes two adapters; two full models have no factors to compare.")
    first, second = open_adapter(states[0].path, initial), open_adapter(states[1].path)
    shared = [name for name in first.names if name in set(second.names)]
    if not shared:
        raise RequestError(f"{tuned} and {other} change no weight of the same name.")
    found = {}
    for name in shared:
        one, two = first.change(name), second.change(name)
        found[name] = vars(
            adapter_similarity(
                factor_spectrum(one.left, one.right, one.scale, vectors=True),
                factor_spectrum(two.left, two.right, two.scale, vectors=True),
            )
        )
    return found


def _summary(run: "Run") -> dict[str, Any]:
    """Median over layers of each kind of matrix, at the last step."""
    rows = _last(run)
    found: dict[str, Any] = {}
    for matrix, group in rows.groupby("matrix", sort=False):
        shown = {column: float(group[column].median()) for column in COLUMNS if group[column].notna().any()}
        found[str(matrix)] = {"layers": len(group), **shown}
    return found


def _last(run: "Run") -> Any:
    rows = run.matrices[run.matrices["quantity"] == "delta"]
    return rows[rows["step"] == rows["step"].max()] if rows["step"].notna().any() else rows


def _table(run: "Run") -> Any:
    from rich import box
    from rich.table import Table

    from glmspectra.cli.measuring import heading

    rows = _last(run)
    step = "" if rows["step"].isna().all() else f" at step {int(rows['step'].iloc[0])}"
    title = f"{run.name}{step}: median over {rows['layer'].nunique()} layers"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("matrix", no_wrap=True)
    shown = [column for column in COLUMNS if rows[column].notna().any()]
    for column in shown:
        table.add_column(heading(column), justify="right")
    for matrix, values in _summary(run).items():
        table.add_row(matrix, *(f"{values[c]:.4g}" if c in values else "" for c in shown))
    return table


def _lines(facts: dict[str, Any]) -> list[str]:
    states = f" in {facts['states']} states" if facts["states"] > 1 else ""
    took = f"in {facts['seconds']:.1f} s on {facts['device']}"
    lines = [f"{facts['matrices']} matrices{states} ({', '.join(facts['kinds'])}), {took}."]
    if facts["nonfinite"]:
        shown = ", ".join(facts["nonfinite"][:5]) + (" ..." if len(facts["nonfinite"]) > 5 else "")
        lines.append(f"{len(facts['nonfinite'])} of them hold NaN or Inf, in the base or after training: {shown}")
    lines += facts["notes"]
    if "similarity" in facts:
        values = [entry["cosine"] for entry in facts["similarity"].values()]
        lines.append(f"similarity with the other adapter: cosine {min(values):.3f} to {max(values):.3f}.")
    lines.append(f"tables: {facts['tables']}")
    if facts["report"]:
        lines.append(f"report: {facts['report']}")
    return lines
