"""`glmspectra values`: value distributions per depth."""

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
SUMMARY = ("std", "excess_kurtosis", "abs_max", "share_beyond_6_sigma", "normal_ks")


def values(
    model: Model = None,
    out: OutRoot = None,
    layers: Layers = "all",
    matrices: Matrices = None,
    include: Include = None,
    exclude: Exclude = None,
    split: SplitParts = False,
    heads: SplitHeads = False,
    fresh: Fresh = False,
    no_report: NoReport = False,
    svg: SvgFiles = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Value distributions per depth: moments, quantiles, outliers, distance from a normal; tables and a report.

    Interrupted, the same command goes on where it stopped. The rows join those of `svd` on the same
    checkpoint.
    """
    from glmspectra.cli.measuring import measure
    from glmspectra.sweep import SweepOptions

    options = SweepOptions(
        values=True,
        spectrum=False,
        split=split_of(split, heads),
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
        export_jsonl=False,
        as_json=as_json,
        summary_columns=SUMMARY,
    )
