"""`glmspectra suggest-rank`: ranks for every matrix under a budget, as files `train` takes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmspectra.cli.console import finish, stderr
from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.cli.selection_options import NoReport, OutRoot
from glmspectra.cli.train import ArgsFolder

if TYPE_CHECKING:
    from glmspectra.checkpoint import Checkpoint
    from glmspectra.ranks import Budget, Evidence, Limits, Stability
    from glmspectra.store import Run, RunStore

RANKS_FILE = Path("args_file/ranks.json")


def suggest_rank(
    model: Model = None,
    delta: Annotated[
        list[Path] | None,
        typer.Option(
            "--delta",
            help="What an earlier training changed: an adapter, a run, a tuned model, or a run of `glmspectra delta`; "
            "may be repeated, pilots of several seeds are averaged.",
            show_default=False,
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            "--criterion",
            help="How ranks are told (see --list); type:NAME pools NAME over layers, mixture:NAME=0.7,NAME=0.3 mixes. "
            "Absent: delta-threshold with --delta, else effective-rank.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="like:r=12 (as uniform r = 12 on the same matrices), params:8M, bytes:32MiB, share:0.1% (of targets). "
            "Absent: like:r=12@query_key_value.",
            show_default=False,
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", help="Kinds of matrices, joined by commas. Absent: the four of the layers.", show_default=False
        ),
    ] = None,
    min_rank: Annotated[int, typer.Option("--min-rank", help="No matrix gets less; at 0 it may get none.")] = 0,
    max_rank: Annotated[int | None, typer.Option("--max-rank", help="No matrix gets more.", show_default=False)] = None,
    multiple_of: Annotated[int, typer.Option("--multiple-of", help="Every rank is a multiple of this.")] = 1,
    step: Annotated[
        int | None, typer.Option("--step", help="Which checkpoint-N of --delta; absent: the last.", show_default=False)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            help="Effective scale of every matrix: alpha is scale times rank. Absent: lora_alpha / r of --args, or 2.",
            show_default=False,
        ),
    ] = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="For rsLoRA: alpha is scale times sqrt(rank).")] = False,
    quantized: Annotated[
        str | None,
        typer.Option(
            "--quantized", help="Measure W - Q(W) first: nf4, fp4, int8 or int4; for quantisation.", show_default=False
        ),
    ] = None,
    gradients: Annotated[
        int | None,
        typer.Option(
            "--gradients",
            min=1,
            help="Measure the loss gradient over this many batches of the training data first; for gradient.",
            show_default=False,
        ),
    ] = None,
    args: ArgsFolder = Path("args_file"),
    export: Annotated[
        str, typer.Option("--export", help="Settings for others beside the file: peft, axolotl, llama-factory.")
    ] = "peft,axolotl",
    ranks: Annotated[
        Path | None,
        typer.Option("--ranks", help="The file to write. Absent: OUT/args_file/ranks.json.", show_default=False),
    ] = None,
    list_criteria: Annotated[
        bool, typer.Option("--list", help="List the criteria with their sources and stop.")
    ] = False,
    out: OutRoot = None,
    no_report: NoReport = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ranks for every matrix under one budget, from the tables of `svd` and, better, from what a pilot
    changed.

    Writes the file that `train --ranks` takes, a table of all criteria side by side, a budget curve and a
    report.
    """
    from glmspectra import ranks as ranks_package
    from glmspectra.ranks import report

    if list_criteria:
        found = {
            name: {"kind": c.kind, "needs": c.needs, "source": c.source} for name, c in ranks_package.CRITERIA.items()
        }
        finish(
            found,
            [f"{name} ({c['kind']}, from {c['needs'] or 'nothing'}): {c['source']}" for name, c in found.items()],
            as_json,
        )
        return
    root = out or Path()
    exports = [kind.strip() for kind in export.split(",") if kind.strip()]
    more = _More(quantized, gradients, args, targets)
    base, deltas, tables = _tables(model, delta or [], more, root, device, quiet)
    evidence = ranks_package.gather(base, deltas, targets, step)
    limits = ranks_package.Limits(min_rank, max_rank, multiple_of)
    asked = ranks_package.parse_budget(budget or ranks_package.default_budget(evidence), evidence)
    chosen = criterion or ranks_package.default_criterion(evidence)
    suggestions = ranks_package.suggest_all(evidence, chosen, asked, limits)
    curve = ranks_package.budget_curve(evidence, chosen, asked, limits)
    stabilities = _stabilities(base, deltas, evidence, chosen, asked, limits, step)
    path = ranks or root / RANKS_FILE
    kept_scale = scale if scale is not None else _scale_of(args)
    files = report.write_suggestion(path, tables, suggestions, evidence, curve, kept_scale, rslora, exports)
    index = None
    if not no_report:
        from glmspectra.figures import write_report

        index = write_report(tables, root / "reports" / tables.name)
    facts = report.facts(suggestions, evidence, curve, stabilities) | files | {"report": str(index) if index else None}
    said = report.lines(suggestions, evidence, curve, stabilities)
    said += [
        f"ranks:  {files['ranks_file']} (glmspectra train --ranks {files['ranks_file']})",
        f"table:  {files['table']}",
    ]
    said += [f"export: {name}" for name in files["exports"]]
    said += [f"report: {index}"] if index else []
    if not as_json and not quiet:
        _print_table(suggestions)
    finish(facts, said, as_json)


@dataclass(frozen=True)
class _More:
    """What is to be measured of the base before ranks are told."""

    quantized: str | None
    gradients: int | None
    args: Path
    targets: str | None


def _tables(
    model: Path | None, deltas: list[Path], more: _More, root: Path, device: str, quiet: bool
) -> "tuple[Run | None, list[Run], Path]":
    """The base's tables where they are, those of each delta (measured now where they are not), and the folder to
    write to.
    """
    from glmspectra.checkpoint import open_checkpoint
    from glmspectra.cli.measuring import TABLES_FOLDER
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError
    from glmspectra.store import RunStore, read_run
    from glmspectra.sweep import source_of

    tables = root / TABLES_FOLDER
    path = choose_model(model)
    with open_checkpoint(path) as checkpoint:
        store = RunStore.of(tables, source_of(checkpoint))
        _measure_more(checkpoint, path, store, more, device, quiet)
    measured = (store.folder / "manifest.json").is_file()
    base = read_run(store.folder) if measured else None
    if base is not None and not (base.matrices["quantity"] == "weight").any():
        base = None
    if base is None and not deltas:
        raise RequestError(
            f"{path} is not measured yet (no {store.folder}): run `glmspectra svd --layers all --model {path}` first, "
            "or name an adapter with --delta."
        )
    runs = [_delta_run(path, place, root, device, quiet) for place in deltas]
    return base, runs, store.folder if base is not None else runs[0].folder


def _measure_more(
    checkpoint: "Checkpoint", path: Path, store: "RunStore", more: _More, device: str, quiet: bool
) -> None:
    """The error of quantisation and the loss gradient of the targets, where they are asked for."""
    from glmspectra.checkpoint import select

    if more.quantized is not None:
        from glmspectra.sweep.quantization import sweep_quantization_error

        records = select(checkpoint, "all", more.targets)
        sweep_quantization_error(checkpoint, records, more.quantized, store, device=device, quiet=quiet)
    if more.gradients is not None:
        from glmspectra.loop.gradients import measure_gradients
        from glmspectra.tuning.settings import load_settings

        settings = load_settings(more.args, [f"finetune.model_path={json.dumps(str(path))}"])
        measure_gradients(settings, checkpoint, select(checkpoint, "all", more.targets), more.gradients, store, device)


def _scale_of(args: Path) -> float:
    """lora_alpha / r (rsLoRA: over its root) of the user's lora_args.json; the original study's 2 without one."""
    from glmspectra.ranks.peft_form import DEFAULT_SCALE

    path = args / "lora_args.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = float(found["r"]), float(found["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_SCALE  # `train` says what is wrong with the file; ranks do not depend on it
    if rank <= 0 or alpha <= 0:
        return DEFAULT_SCALE
    return alpha / rank**0.5 if found.get("use_rslora") else alpha / rank


def _delta_run(model: Path, place: Path, root: Path, device: str, quiet: bool) -> "Run":
    from glmspectra.cli.delta import measure_changes
    from glmspectra.store import read_run

    if (place / "manifest.json").is_file():
        return read_run(place)
    return measure_changes(model, place, root, device=device, quiet=quiet)[0]


def _stabilities(
    base: "Run | None",
    deltas: "list[Run]",
    evidence: "Evidence",
    criterion: str,
    budget: "Budget",
    limits: "Limits",
    step: int | None,
) -> "dict[str, Stability]":
    """Between pilots where there are several; between the steps of the first one where it has several."""
    from glmspectra.ranks import between_runs, between_steps

    if not criterion.startswith("delta"):
        return {}
    found = {}
    if len(deltas) > 1:
        found["pilots"] = between_runs(base, deltas, evidence, criterion, budget, limits)
    if deltas and step is None and deltas[0].matrices["step"].nunique() > 1:
        found["steps of a pilot"] = between_steps(base, deltas[0], evidence, criterion, budget, limits)
    return found


def _print_table(suggestions: dict) -> None:
    from rich.table import Table

    from glmspectra.ranks.report import summary_rows

    table = Table(title="criteria at the same budget", title_justify="left")
    for name in ("criterion", "kind", "parameters", "elsewhere than uniform"):
        table.add_column(name, justify="left" if name in ("criterion", "kind") else "right")
    for name, kind, parameters, moved in summary_rows(suggestions):
        table.add_row(name, kind, f"{parameters:,}", f"{moved:.0%}")
    stderr.print(table)
