"""`glmspectra suggest-rank`: ranks for every matrix under a budget, as files `train` takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmspectra.cli.console import finish, note
from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.cli.selection_options import NoReport, OutRoot
from glmspectra.cli.train import ArgsFolder, settings_options
from glmspectra.language import text

if TYPE_CHECKING:
    from glmspectra.ranks import Allocation

RANKS_FILE = Path("args_file/ranks.json")


def suggest_rank(
    model: Model = None,
    delta: Annotated[
        list[Path] | None,
        typer.Option(
            "--delta",
            metavar="<path>",
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
            help="Train a pilot of this many steps first, by the settings in --args, at three times the mean rank; "
            "without --criterion the loss of the pilot cut to each allocation on held-out rows chooses one.",
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
            help="The criterion (see --list); type:NAME pools NAME over layers, mixture:NAME=0.7,NAME=0.3 mixes. "
            "Absent: chosen by a test with --pilot, delta-threshold with --delta, else effective-rank.",
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
            "--targets", help="Matrix types, joined by commas. Absent: the four of the layers.", show_default=False
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
            "--quantized", help="Measure W - Q(W) first: nf4, fp4, int8 or int4; for quantization.", show_default=False
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
        str,
        typer.Option("--export", help="Settings for others beside the file: peft, axolotl, llama-factory, ms-swift."),
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
    """Ranks for every matrix under one budget, from the tables of `svd` and, better, from what a pilot changed.

    Writes the file that `train --ranks` takes, a table of all criteria side by side, a budget curve and a
    report.
    """
    if list_criteria:
        _list(as_json)
        return
    from glmspectra.cli.libraries import hush
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError
    from glmspectra.files import must_be_there

    for change in delta or ():
        must_be_there(change)
    from glmspectra.loop.suggestion import Sources, suggest_for_model
    from glmspectra.ranks import Limits
    from glmspectra.ranks.peft_patterns import scale_of
    from glmspectra.ranks.report import facts, lines, write_suggestion
    from glmspectra.ranks.request import RankRequest

    if pilot is not None or gradients is not None:
        hush()
    if pilot_seeds > 1 and pilot is None:
        raise RequestError("--pilot-seeds counts pilots, and none is asked for: give --pilot STEPS too.")
    if step is not None and not delta:
        raise RequestError("--step says which checkpoint-N of --delta is taken: give --delta too.")
    if pilot is not None:  # a fault in the settings is said before anything is measured
        from glmspectra.tuning.settings.at_hand import check_at_hand
        from glmspectra.tuning.settings.load import load_settings

        settings = load_settings(args, settings_options(choose_model(model), None, None, None, None))
        for line in settings.notes:
            note(line, quiet)
        check_at_hand(settings)
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
        [trainer.strip() for trainer in export.split(",") if trainer.strip()],
    )
    sources = Sources(
        choose_model(model), root, delta or (), pilot, pilot_seeds, args, quantized, gradients, device, quiet
    )
    found = suggest_for_model(sources, request)
    note(found.left_out, quiet)
    files = write_suggestion(found.suggestion, ranks or root / RANKS_FILE, found.tables, request)
    index = None if no_report else _report(root, found.tables)
    said = [*(found.portfolio.lines() if found.portfolio else []), *lines(found.suggestion)]
    said += [text("ranks-file", path=files["ranks_file"]), text("ranks-table", path=files["table"])]
    said += [text("ranks-export", path=name) for name in files["exports"]]
    said += [text("terminal-report", path=index)] if index else []
    if not as_json and not quiet:
        _print_table(found.suggestion.allocations)
    more = {"portfolio": found.portfolio.as_dict() if found.portfolio else None, "report": index}
    finish(facts(found.suggestion) | files | more, said, as_json)


def _report(root: Path, tables: Path) -> str:
    from glmspectra.figures import write_overview, write_report

    index = write_report(tables, root / "reports" / tables.name)
    write_overview(root / "reports")
    return str(index)


def _list(as_json: bool) -> None:
    from glmspectra.ranks import CRITERIA

    found = {name: {"kind": c.answer, "needs": c.needs, "source": c.source} for name, c in CRITERIA.items()}
    said = [
        text(
            "ranks-criterion" if entry.needs else "ranks-criterion-control",
            name=name,
            answer=text(f"ranks-answer-{entry.answer}"),
            source=entry.source,
            **({"needs": entry.needs} if entry.needs else {}),
        )
        for name, entry in CRITERIA.items()
    ]
    finish(found, said, as_json)


def _print_table(allocations: "dict[str, Allocation]") -> None:
    from rich.table import Table

    from glmspectra.cli.drawing import stderr
    from glmspectra.ranks.report import summary_rows

    table = Table(title=text("ranks-title"), title_justify="left")
    for head, side in (("criterion", "left"), ("answer", "left"), ("parameters", "right"), ("moved", "right")):
        table.add_column(text(f"ranks-head-{head}"), justify=side)  # type: ignore[arg-type]
    for name, answer, parameters, moved in summary_rows(allocations):
        table.add_row(name, text(f"ranks-answer-{answer}"), f"{parameters:,}", f"{moved:.0%}")
    stderr.print(table)
