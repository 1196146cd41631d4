"""`glmspectra loop` and `glmspectra demo`: the whole way from spectra to a tuned model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from glmspectra.cli.console import finish, note
from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.cli.train import ArgsFolder, Overrides
from glmspectra.language import both, text

Fresh = Annotated[bool, typer.Option("--fresh", help="Forget which stages are finished and go through them again.")]


def loop(
    model: Model = None,
    out: Annotated[Path, typer.Option("--out", help="The one folder of the loop.")] = Path("runs/loop"),
    args: ArgsFolder = Path("args_file"),
    criterion: Annotated[
        str | None, typer.Option("--criterion", help="As of suggest-rank; absent: delta-threshold.", show_default=False)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="As of suggest-rank; absent: its default.", show_default=False),
    ] = None,
    targets: Annotated[
        str | None, typer.Option("--targets", help="As of suggest-rank; absent: the four matrices.", show_default=False)
    ] = None,
    pilot_steps: Annotated[int, typer.Option("--pilot-steps", help="Length of a pilot.")] = 80,
    pilot_seeds: Annotated[int, typer.Option("--pilot-seeds", help="Pilots to average.")] = 1,
    control: Annotated[bool, typer.Option(help="Train uniform ranks of the same cost too, and compare.")] = True,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Answers shown side by side.")] = 5,
    overrides: Overrides = None,
    fresh: Fresh = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Spectra, a short pilot, ranks from what it changed, training with them beside uniform ranks, one report.

    Killed in any stage, the same command goes on from there.
    """
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.loop.options import LoopOptions

    options = LoopOptions(
        out=out,
        model=choose_model(model),
        args=args,
        criterion=criterion,
        budget=budget,
        targets=targets,
        pilot_steps=pilot_steps,
        pilot_seeds=pilot_seeds,
        control=control,
        samples=samples,
        overrides=tuple(overrides or ()),
        device=device,
        quiet=quiet,
    )
    _run(options, fresh, as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="The one folder of the demonstration.")] = Path("runs/demo"),
    fresh: Fresh = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole loop on the embedded model and the package's own sample data, in minutes on two cores."""
    from glmspectra.embedded import EMBEDDED_MODEL
    from glmspectra.loop.demonstration import write_demo_settings
    from glmspectra.loop.options import LoopOptions

    options = LoopOptions(
        out=out,
        model=EMBEDDED_MODEL,
        args=write_demo_settings(out),
        budget="like:r=8",
        pilot_steps=60,
        samples=3,
        device=device,
        quiet=quiet,
    )
    _run(options, fresh, as_json)


def _run(options: Any, fresh: bool, as_json: bool) -> None:
    from glmspectra.cli.libraries import hush, library_log
    from glmspectra.loop.run import run_loop
    from glmspectra.loop.story import verdict

    hush()

    def say(line: str) -> None:
        note(line, options.quiet)

    with library_log(options.out / "libraries.log"):
        results = run_loop(options, fresh, say)
    found = results["evaluate"]
    lines = [
        text(
            "loop-scores",
            name=both(f"loop-{name}"),
            loss=f"{found[name]['loss']:.4f}",
            perplexity=f"{found[name]['perplexity']:.3f}",
        )
        for name in ("base", "suggested", "uniform")
        if name in found
    ]
    lines += [verdict(results), text("ranks-file-only", path=results["suggest"]["ranks_file"])]
    lines.append(text("terminal-report", path=results["report"]["page"]))
    finish(results, lines, as_json)
