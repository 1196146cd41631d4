"""`glmspectra squeeze`: a trained adapter cut to a smaller budget."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Json, Quiet


def squeeze(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder.")],
    budget: Annotated[
        str, typer.Option("--budget", help="As of suggest-rank: like:r=4, params:1M, bytes:4MiB, share:0.1%.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the smaller adapter.")],
    initial: Annotated[
        Path | None,
        typer.Option("--initial", help="The adapter before its first step, for PiSSA and its kin.", show_default=False),
    ] = None,
    min_rank: Annotated[int, typer.Option("--min-rank", help="No matrix gets less; at 0 it may get none.")] = 0,
    max_rank: Annotated[int | None, typer.Option("--max-rank", help="No matrix gets more.", show_default=False)] = None,
    multiple_of: Annotated[int, typer.Option("--multiple-of", help="Every rank is a multiple of this.")] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut a trained adapter to a budget: the largest singular directions of its change over all matrices.

    Exact from the factors: each matrix is the best approximation of its rank. Training at the low rank was better in
    our study; this is for who cannot train again.
    """
    from glmspectra.cli.console import finish
    from glmspectra.files import must_be_there

    must_be_there(adapter)
    from glmspectra.loop.squeeze import squeeze_adapter
    from glmspectra.ranks import Limits

    result = squeeze_adapter(adapter, out, budget, Limits(min_rank, max_rank, multiple_of), initial)
    finish(result.as_dict(), [] if quiet else result.lines(), as_json)
