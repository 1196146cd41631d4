"""`glmspectra convert`: .bin shards become safetensors shards, or the Glm format, without holding the model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from glmspectra.cli.options import Json, Model, Out, Quiet, ShardSize
from glmspectra.language import text

FORMS = ("safetensors", "glm", "chatglm")


def convert(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="The model; the same as --model.", show_default=False)
    ] = None,
    model: Model = None,
    out: Out = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="safetensors: the same tensors. glm: a ChatGLM2 as GlmForCausalLM, which transformers and vLLM read "
            "without remote code. chatglm: the way back.",
        ),
    ] = "safetensors",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float16, bfloat16 or float32: cast, and dequantize. Absent: every tensor as stored, bit for bit.",
            show_default=False,
        ),
    ] = None,
    shard_size: ShardSize = 5.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite a model as sharded safetensors with an index; configuration and tokenizer are copied.

    Tensors go from file to file one at a time and are read back and compared. The new folder appears under
    its name when all is done; interrupted, the same command goes on. Without --out it is NAME-safetensors in
    this folder, or NAME-glm, NAME-chatglm.
    """
    from glmspectra.cli.console import finish, note
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError
    from glmspectra.progress import ProgressLine

    if folder is not None and model is not None:
        raise RequestError(f"{folder} and --model {model}: name the model once.")
    if to not in FORMS:
        raise RequestError(f"--to {to}: write {', '.join(FORMS)}.")
    if to != "safetensors" and dtype is not None:
        raise RequestError(f"--to {to} keeps every value as it is: leave --dtype out, or cast by a conversion before.")
    path = choose_model(folder or model)
    from glmspectra.checkpoint import open_checkpoint  # after what can be said without it
    from glmspectra.checkpoint.selection import left_out_sentence
    from glmspectra.checkpoint.writing.convert import convert as rewrite
    from glmspectra.checkpoint.writing.shards import shard_bytes

    size = shard_bytes(shard_size)
    with open_checkpoint(path) as checkpoint:
        if dtype is not None:
            note(left_out_sentence(checkpoint), quiet)
        target = out if out is not None else Path(f"{checkpoint.name}-{to}")
        total = sum(record.nbytes for record in checkpoint.tensors.values())
        model_type = checkpoint.config.get("model_type")
        if to != "safetensors" and model_type != (wanted := "chatglm" if to == "glm" else "glm"):
            raise RequestError(
                f"--to {to} takes a checkpoint of model_type {wanted}, and {checkpoint.path} is {model_type}."
            )
        with ProgressLine(
            text("progress-converting"), total, quiet=quiet, number=lambda count: f"{count / 1e9:.2f} GB"
        ) as progress:
            if to == "safetensors":
                done = rewrite(checkpoint, target, dtype, size, progress.advance)
            else:
                from glmspectra.chatglm2 import convert_folder

                done = convert_folder(checkpoint.folder, target, size, progress.advance)
        facts = {
            "checkpoint": checkpoint.name,
            "from": str(checkpoint.path),
            "form": checkpoint.format,
            "out": str(done.out),
            "to": to,
            "dtype": dtype,
            "shards": done.shards,
            "bytes": sum(done.shards.values()),
            "copied": done.copied,
            "shards_kept_from_before": done.resumed,
        }
    finish(facts, _lines(facts), as_json)


def _lines(facts: dict[str, Any]) -> list[str]:
    shards, copied, kept = facts["shards"], facts["copied"], facts["shards_kept_from_before"]
    values: dict[str, Any] = {
        "count": len(shards),
        "size": f"{sum(shards.values()) / 1e9:.3f}",
        "path": facts["out"],
        "copied": len(copied),
    }
    lines = [text("convert-done-resumed", **values, kept=kept) if kept else text("convert-done", **values)]
    if facts["to"] == "glm":
        lines.append(text("convert-glm-tokenizer" if "tokenizer.json" in copied else "convert-own-tokenizer"))
    return lines
