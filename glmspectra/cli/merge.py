"""`glmspectra merge`: base and adapter into one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Json, Model, Quiet


def merge(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the merged checkpoint.")],
    model: Model = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; absent: as the base.", show_default=False),
    ] = None,
    shard_size: Annotated[float, typer.Option("--shard-size", help="Largest file, in GiB.")] = 2.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Base and adapter into one checkpoint, in the base's original precision, one tensor at a time on the
    CPU.

    Example: glmspectra merge runs/train/final_adapter --model chatglm2-6b --out chatglm2-6b-tuned
    """
    from glmspectra.checkpoint.writing import merge as merging
    from glmspectra.cli.console import finish
    from glmspectra.cli.libraries import hush
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.cli.progress_line import counting
    from glmspectra.errors import RequestError

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise RequestError(f"--dtype {dtype}: write float32, bfloat16 or float16.")
    if shard_size <= 0:
        raise RequestError(f"--shard-size {shard_size}: write a number above 0.")
    hush()
    import torch

    with counting(quiet) as progress:
        result = merging.merge(
            choose_model(model),
            adapter,
            out,
            None if dtype is None else getattr(torch, dtype),
            int(shard_size * 2**30),
            None if progress is None else lambda done, count: progress("merging", done, count),
        )
    finish(result.as_dict(), result.lines(), as_json)
