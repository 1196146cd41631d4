"""`glmspectra suggest-rank`: ranks for every matrix under a budget, as files `train` takes."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmspectra.cli.console import finish, stderr
from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.cli.selection_options import NoReport, OutRoot
from glmspectra.cli.train import ArgsFolder

if TYPE_CHECKING:
    from glmspectra.checkpoint import Checkpoint
    from glmspectra.ranks.outcome import RankRequest
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
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=2,
            help="Train a pilot of this many steps first, by the settings in --args, at three times the mean rank.",
            show_default=False,
        ),
    ] = None,
    pilot_seeds: Annotated[
        int, typer.Option("--pilot-seeds", min=1, help="Train this many pilots and average them.")
    ] = 1,
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
            help="Effective scale of every matrix: alpha is scale times rank. Absent: as lora_args.json in --args has "
            "it, or 2.",
            show_default=False,
        ),
    ] = None,
    rslora: Annotated[
        bool,
        typer.Option(
            "--rslora", help="For rsLoRA: alpha is scale times sqrt(rank). Absent: as use_rslora in --args says."
        ),
    ] = False,
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
    if list_criteria:
        _list(as_json)
        return
    from glmspectra.cli.libraries import hush
    from glmspectra.errors import RequestError
    from glmspectra.ranks import Limits
    from glmspectra.ranks.outcome import RankRequest, suggest_ranks
    from glmspectra.ranks.peft_form import scale_of

    if pilot is not None or gradients is not None:
        hush()
    if pilot_seeds > 1 and pilot is None:
        raise RequestError("--pilot-seeds counts pilots, and none is asked for: give --pilot STEPS too.")
    if step is not None and not delta:
        raise RequestError("--step says which checkpoint-N of --delta is taken: give --delta too.")
    root = out or Path()
    own_scale, own_rslora = scale_of(args)
    request = RankRequest(
        criterion,
        budget,
        targets,
        Limits(min_rank, max_rank, multiple_of),
        step,
        scale if scale is not None else own_scale,
        rslora or own_rslora,
        [kind.strip() for kind in export.split(",") if kind.strip()],
    )
    more = _More(quantized, gradients, args, targets)
    path, base = _base(model, bool(delta) and pilot is None, more, root, device, quiet)
    places = list(delta or [])
    if pilot is not None and base is not None:
        places += _pilots(path, base, request, pilot, pilot_seeds, args, root, device, quiet)
    deltas = [_delta_run(path, place, root, device, quiet) for place in places]
    outcome = suggest_ranks(base, deltas, request)
    tables = base.folder if base is not None else deltas[0].folder
    files = outcome.write(ranks or root / RANKS_FILE, tables, request)
    index = None
    if not no_report:
        from glmspectra.figures import write_overview, write_report

        index = write_report(tables, root / "reports" / tables.name)
        write_overview(root / "reports")
    said = outcome.lines()
    said += [
        f"ranks:  {files['ranks_file']} (glmspectra train --ranks {files['ranks_file']})",
        f"table:  {files['table']}",
    ]
    said += [f"export: {name}" for name in files["exports"]]
    said += [f"report: {index}"] if index else []
    if not as_json and not quiet:
        _print_table(outcome.suggestions)
    finish(outcome.facts() | files | {"report": str(index) if index else None}, said, as_json)


def _list(as_json: bool) -> None:
    from glmspectra.ranks import CRITERIA

    found = {name: {"kind": c.kind, "needs": c.needs, "source": c.source} for name, c in CRITERIA.items()}
    said = [f"{name} ({c['kind']}, from {c['needs'] or 'nothing'}): {c['source']}" for name, c in found.items()]
    finish(found, said, as_json)


@dataclass(frozen=True)
class _More:
    """What is to be measured of the base before ranks are told."""

    quantized: str | None
    gradients: int | None
    args: Path
    targets: str | None


def _base(
    model: Path | None, has_delta: bool, more: _More, root: Path, device: str, quiet: bool
) -> "tuple[Path, Run | None]":
    """The model's path and its tables; None where it is not measured and a delta is there instead."""
    from glmspectra.checkpoint import open_checkpoint
    from glmspectra.checkpoint.selection import left_out_sentence
    from glmspectra.cli.console import note
    from glmspectra.cli.measuring import TABLES_FOLDER
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError
    from glmspectra.store import RunStore, read_run
    from glmspectra.sweep import source_of

    path = choose_model(model)
    with open_checkpoint(path) as checkpoint:
        note(left_out_sentence(checkpoint), quiet)
        store = RunStore.of(root / TABLES_FOLDER, source_of(checkpoint))
        _measure_more(checkpoint, path, store, more, device, quiet)
    base = read_run(store.folder) if (store.folder / "manifest.json").is_file() else None
    if base is not None and not (base.matrices["quantity"] == "weight").any():
        base = None
    if base is None and not has_delta:
        raise RequestError(
            f"{path} is not measured yet (no {store.folder}): run `glmspectra svd --layers all"
            f"{f' --model {path}' if model else ''}{f' --out {root}' if root != Path() else ''}` first, or name an "
            "adapter with --delta."
        )
    return path, base


def _pilots(
    model: Path,
    base: "Run",
    request: "RankRequest",
    steps: int,
    seeds: int,
    args: Path,
    root: Path,
    device: str,
    quiet: bool,
) -> list[Path]:
    """Train the pilots under root/runs/pilots; their folders. Finished ones of the same kind are not run again.

    Of the same kind: same base, steps, budget, targets and settings files, by the folder's name.
    """
    from glmspectra.loop import run_pilots
    from glmspectra.ranks.outcome import evidence_and_budget

    evidence, budget = evidence_and_budget(base, [], replace(request, criterion=None, step=None))
    settings = [path.read_text(encoding="utf-8") for path in sorted(args.glob("*_args.json"))]
    facts = [steps, budget.parameters, [target.name for target in evidence.targets], settings]
    kind = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    out = root / "runs" / "pilots" / f"{base.folder.name}-{steps}-steps-{kind}"
    return run_pilots(out, model, args, evidence, budget, steps, seeds, device=device, quiet=quiet)


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
        from glmspectra.tuning.settings.load import load_settings

        settings = load_settings(more.args, [f"finetune.model_path={json.dumps(str(path))}"])
        measure_gradients(settings, checkpoint, select(checkpoint, "all", more.targets), more.gradients, store, device)


def _delta_run(model: Path, place: Path, root: Path, device: str, quiet: bool) -> "Run":
    from glmspectra.cli.measuring import TABLES_FOLDER
    from glmspectra.store import read_run
    from glmspectra.sweep.delta import measure_change
    from glmspectra.sweep.delta_plan import DeltaOptions

    if (place / "manifest.json").is_file():
        return read_run(place)
    return measure_change(model, place, root / TABLES_FOLDER, DeltaOptions(device=device, quiet=quiet))[0]


def _print_table(suggestions: dict) -> None:
    from rich.table import Table

    from glmspectra.ranks.report import summary_rows

    table = Table(title="criteria at the same budget", title_justify="left")
    for name in ("criterion", "kind", "parameters", "elsewhere than uniform"):
        table.add_column(name, justify="left" if name in ("criterion", "kind") else "right")
    for name, kind, parameters, moved in summary_rows(suggestions):
        table.add_row(name, kind, f"{parameters:,}", f"{moved:.0%}")
    stderr.print(table)
