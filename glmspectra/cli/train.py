"""`glmspectra train`: LoRA, QLoRA and AdaLoRA from three JSON files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmspectra.cli.options import Device, Json, Model, Out, Quiet

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings

LIBRARY_LOG = "libraries.log"  # in the run's folder

ArgsFolder = Annotated[Path, typer.Option("--args", help="The folder of the three JSON files.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="<key=value>",
        help="One key, as section.key=value: --set lora.r=8. May be repeated.",
        show_default=False,
    ),
]
OnBadData = Annotated[
    str | None, typer.Option("--on-bad-data", help="error or warn, for rows that cannot be used.", show_default=False)
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns", help="Other names than context and target in the data: target=answer.", show_default=False
    ),
]


def train(
    args: ArgsFolder = Path("args_file"),
    overrides: Overrides = None,
    ranks: Annotated[Path | None, typer.Option("--ranks", help="What suggest-rank wrote.", show_default=False)] = None,
    model: Model = None,
    out: Out = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            help="A checkpoint of any folder to go on from. Not needed to go on where the same command stopped.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move an earlier run in the output folder aside, and begin anew.")
    ] = False,
    allow_changed: Annotated[
        bool,
        typer.Option("--allow-changed", help="Go on although settings or data differ from when the run began."),
    ] = False,
    on_bad_data: OnBadData = None,
    columns: Columns = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show everything, run one batch, and stop.")
    ] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Try learning rates for a few steps each, say which, and stop.")
    ] = False,
    lr_steps: Annotated[int, typer.Option("--lr-steps", help="Steps a learning rate under --find-lr.")] = 30,
    report: Annotated[bool, typer.Option(help="Draw curves while training and a page at the end.")] = True,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """LoRA, QLoRA, AdaLoRA or AdaLoRA on a 4-bit base, from three JSON files to an adapter.

    A run folder belongs to one run. The same command again goes on from its last whole checkpoint, or says that the run
    is finished; with other settings or data it is refused, and says what differs.

    On several GPUs: torchrun --nproc-per-node 8 -m glmspectra train ... (or accelerate launch -m glmspectra train ...).
    On several machines, the same on each: torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint
    HOST:29500 -m glmspectra train ... with --out in a folder that all of them see.
    """
    import os

    device = only_card(device)
    from glmspectra.cli.console import finish, note
    from glmspectra.cli.libraries import hush
    from glmspectra.tuning.settings.at_hand import check_at_hand
    from glmspectra.tuning.settings.load import load_settings

    main = os.environ.get("RANK", "0") == "0"
    silent = quiet or not main
    hush()
    settings = load_settings(
        args, [*settings_options(model, out, resume, on_bad_data, columns), *(overrides or [])], ranks
    )
    for line in settings.notes:
        note(line, silent)
    check_at_hand(settings)
    if dry_run:
        result, lines = _dry_run(settings, device)
    elif find_lr:
        result, lines = _find_lr(settings, device, lr_steps, silent)
    else:
        result, lines = _train(settings, device, report, silent, overwrite, allow_changed)
    if main:
        finish(result, lines, as_json)


def only_card(device: str) -> str:
    """Make cuda:N the only card that this process sees, and "cuda" its name; to be called before torch is imported.

    The Trainer of one process always takes the first card it sees. Under a launcher each process has its own card.
    """
    import os
    import re

    found = re.fullmatch(r"cuda:(\d+)", device)
    if found is None or "LOCAL_RANK" in os.environ:
        return device
    visible = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    index = int(found[1])
    if visible and index >= len(visible):
        return device  # not there: choosing the device says so
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)
    return "cuda"


def settings_options(
    model: Path | None, out: Path | None, resume: str | None, on_bad_data: str | None, columns: str | None
) -> list[str]:
    """Options that stand for one key each, as overrides."""
    import json

    values = {
        "finetune.model_path": model,
        "train.output_dir": out,
        "finetune.on_bad_data": on_bad_data,
        "finetune.columns": columns,
    }
    found = [f"{key}={json.dumps(str(value))}" for key, value in values.items() if value is not None]
    if out is not None:  # all of the run goes there, and no adapter of another run is overwritten
        found.append("finetune.final_model_path=null")
    if resume is not None:
        found.append(f"finetune.resume_from_checkpoint={'true' if resume == 'true' else json.dumps(resume)}")
    return found


def _train(
    settings: "Settings", device: str, report: bool, silent: bool, overwrite: bool, allow_changed: bool
) -> tuple[dict[str, Any], list[str]]:
    import os
    import shlex

    from glmspectra.cli.console import note
    from glmspectra.cli.libraries import library_log
    from glmspectra.cli.measuring import note_language_of_figures
    from glmspectra.figures import write_overview, write_training_curves, write_training_report
    from glmspectra.tuning.training.run import run_training

    main = os.environ.get("RANK", "0") == "0"

    def say(line: str) -> None:
        note(line, silent)

    draw = write_training_curves if report else None
    if report:
        note_language_of_figures(silent)
    with library_log(Path(settings.train.output_dir) / LIBRARY_LOG if main else None):
        result = run_training(settings, device, draw, silent, overwrite, allow_changed, say)
    output = Path(result["output_dir"])
    finished_before = result.get("finished_before", False)
    if report and not finished_before and main:
        result["report"] = str(write_training_report([output], Path("reports") / output.name))
        write_overview(Path("reports"))
    adapter = Path(result["adapter"])
    changed = output if adapter.is_relative_to(output) else adapter
    result["next"] = shlex.join(["glmspectra", "delta", str(changed), "--against-base"])
    return result, _lines(result, output)


def _lines(result: dict[str, Any], output: Path) -> list[str]:
    from glmspectra.language import text

    sentence = {"method": result["method"], "steps": result["steps"], "loss": f"{result['train_loss']:.4f}"}
    if "eval_loss" in result:
        evaluated = {"evaluation": f"{result['eval_loss']:.4f}", "perplexity": f"{result['eval_perplexity']:.3f}"}
        lines = [text("training-done-evaluated", **sentence, **evaluated)]
    else:
        lines = [text("training-done", **sentence)]
    if "best_step" in result:
        lines.append(text("training-best", step=str(result["best_step"]), loss=f"{result['best_eval_loss']:.4f}"))
    lines.append(text("training-adapter", parameters=result["trainable_parameters"], path=str(result["adapter"])))
    if result.get("finished_before", False):
        lines.insert(0, text("training-finished-before", path=str(output)))
    if "report" in result:
        lines.append(text("training-curves", path=result["report"]))
    return [*lines, text("terminal-next", command=result["next"])]


def _find_lr(settings: "Settings", device: str, steps: int, silent: bool) -> tuple[dict[str, Any], list[str]]:
    from glmspectra.cli.libraries import library_log
    from glmspectra.tuning.training.learning_rate import find_learning_rate

    with library_log():
        found = find_learning_rate(settings, device, steps, silent)
    return found.as_dict(), found.lines()


def _dry_run(settings: "Settings", device: str) -> tuple[dict[str, Any], list[str]]:
    from glmspectra.cli.libraries import library_log
    from glmspectra.tuning.memory.dry_run import dry_run

    with library_log():
        found = dry_run(settings, device)
    return found.as_dict(), found.lines()
