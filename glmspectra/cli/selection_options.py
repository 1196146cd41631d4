"""The options by which `values` and `svd` choose matrices, each fact stated once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glmspectra.checkpoint.records import Split

OutRoot = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="The folder in which param_matrix/<run>/ and reports/<run>/ are made. Absent: the current one.",
        show_default=False,
    ),
]
Layers = Annotated[str, typer.Option("--layers", help="all, or numbers and ranges from 0: 0-3,7,-1.")]
Matrices = Annotated[
    str | None,
    typer.Option(
        "--matrices",
        help="Names such as query_key_value,dense, or all, which adds embedding and output. "
        "Absent: every matrix inside the layers.",
        show_default=False,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="<glob>",
        help="Only matrices whose full name matches this glob; may be repeated.",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="<glob>",
        help="No matrix whose full name matches this glob; may be repeated.",
        show_default=False,
    ),
]
SplitParts = Annotated[
    bool, typer.Option("--split", help="Measure q, k, v and gate, up of fused matrices beside the whole.")
]
SplitHeads = Annotated[bool, typer.Option("--heads", help="Measure each attention head too; implies --split.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what is finished.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write the tables, draw nothing.")]
SvgFiles = Annotated[bool, typer.Option("--svg", help="Draw the figures as SVG files too, beside the page.")]


def split_of(parts: bool, heads: bool) -> "Split":
    """The `split` of sweep.SweepOptions that the two switches ask for."""
    return "heads" if heads else "parts" if parts else "no"
