"""`glmspectra merge`: base and adapter into one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Json, Model, Quiet, ShardSize
from glmspectra.language import text


def merge(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the merged checkpoint.")],
    model: Model = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; absent: as the base.", show_default=False),
    ] = None,
    shard_size: ShardSize = 5.0,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Load both models afterwards and compare their logits; needs the memory."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Base and adapter into one checkpoint, in the base's original precision, one tensor at a time on the CPU.

    What was written is read back: each changed layer is held against base and adapter on random inputs.
    """
    from glmspectra.cli.console import finish
    from glmspectra.cli.libraries import hush
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.cli.progress_line import counting
    from glmspectra.errors import CheckpointError, RequestError
    from glmspectra.files import must_be_there

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise RequestError(f"--dtype {dtype}: write float32, bfloat16 or float16.")
    must_be_there(adapter)
    base = choose_model(model)
    hush()
    import torch  # after what can be said without it

    from glmspectra.checkpoint.writing import merge as merging
    from glmspectra.checkpoint.writing.shards import shard_bytes

    size = shard_bytes(shard_size)

    with counting(quiet) as progress:
        result = merging.merge(
            base,
            adapter,
            out,
            None if dtype is None else getattr(torch, dtype),
            size,
            None if progress is None else lambda done, count: progress(text("progress-merging"), done, count),
        )
    facts, lines = result.as_dict(), result.lines()
    if verify:
        from glmspectra.tuning.inference.merged_check import compare_logits

        compared = compare_logits(base, adapter, out)
        if fault := compared.fault(getattr(torch, result.dtype or "float32")):
            raise CheckpointError(
                f"{out}: its logits are {compared.apart:.1e} from those of base and adapter, {fault}: do not use it, "
                "and report this."
            )
        facts |= {"logits_apart": compared.apart, "logits_moved": compared.moved}
        lines.append(compared.sentence())
    finish(facts, lines, as_json)
