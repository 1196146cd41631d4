"""`glmspectra svd`: spectra per depth."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.cli.selection_options import (
    Exclude,
    Fresh,
    Include,
    Layers,
    Matrices,
    NoReport,
    OutRoot,
    SplitHeads,
    SplitParts,
    SvgFiles,
    split_of,
)

# Columns of the summary at the end.
SUMMARY = ("spectral_norm", "stable_rank", "effective_rank", "energy_rank_90", "mp_spikes", "alpha")


def svd(
    model: Model = None,
    out: OutRoot = None,
    layers: Layers = "all",
    matrices: Matrices = None,
    include: Include = None,
    exclude: Exclude = None,
    split: SplitParts = False,
    heads: SplitHeads = False,
    method: Annotated[str, typer.Option("--method", help="exact, or topk for the largest only.")] = "exact",
    top_k: Annotated[int, typer.Option("--top-k", help="How many singular values topk gives.")] = 64,
    rtol: Annotated[float, typer.Option("--rtol", help="Relative error a singular value may have.")] = 1e-4,
    vectors: Annotated[int, typer.Option("--vectors", help="Keep this many singular vectors a matrix.")] = 0,
    values: Annotated[bool, typer.Option(help="Take value distributions in the same read.")] = True,
    export_jsonl: Annotated[bool, typer.Option("--export-jsonl", help="Write singular_value.jsonl too.")] = False,
    fresh: Fresh = False,
    no_report: NoReport = False,
    svg: SvgFiles = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Spectra per depth: every singular value with an error bound, ranks, bulk edge, heavy tail; with a report.

    Interrupted (after the matrix at hand), the same command goes on where it stopped; under torchrun several processes
    share the work.

    Value distributions come from the same read of a matrix, since they take about a tenth of the time of its spectrum
    on a CPU; --no-values leaves them.
    """
    from glmspectra.cli.measuring import measure
    from glmspectra.sweep import SweepOptions

    chosen = layers != "all" or matrices or include or exclude  # ranks are shared out over a whole model
    options = SweepOptions(
        values=values,
        spectrum=True,
        split=split_of(split, heads),
        method=method,
        top_k=top_k,
        rtol=rtol,
        vectors=vectors,
        device=device,
        fresh=fresh,
        quiet=quiet,
    )
    measure(
        model,
        out,
        options,
        layers=layers,
        matrices=matrices,
        include=include or (),
        exclude=exclude or (),
        report=not no_report,
        svg=svg,
        export_jsonl=export_jsonl,
        as_json=as_json,
        summary_columns=SUMMARY,
        following=None if chosen or method != "exact" else _following(model, out),
    )


def _following(model: Path | None, out: Path | None) -> str:
    """The command that takes the tables on from here."""
    import shlex

    options = {"--model": model, "--out": out}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["glmspectra", "suggest-rank", *given])
