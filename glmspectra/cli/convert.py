"""`glmspectra convert`: .bin shards become safetensors shards, or the Glm form, without holding the model."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Json, Model, Out, Quiet, ShardSize

FORMS = ("safetensors", "glm", "chatglm")

GLM_TOKENIZER = "\ntokenizer.json puts [gMASK] sop before every text, as the model was trained to see."
OWN_TOKENIZER = (
    "\nThe tokenizer is not ChatGLM2's and was copied as it is: where AutoTokenizer puts no [gMASK] sop before a text, "
    "take its ids from glmspectra.chatglm2.ChatGLMTokenizer."
)


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
            help="float16, bfloat16 or float32: cast, and dequantise. Absent: every tensor as stored, bit for bit.",
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
    from glmspectra.checkpoint import open_checkpoint
    from glmspectra.checkpoint.selection import left_out_sentence
    from glmspectra.checkpoint.writing.convert import convert as rewrite
    from glmspectra.checkpoint.writing.shards import shard_bytes
    from glmspectra.cli.console import finish, note
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError
    from glmspectra.progress import ProgressLine

    size = shard_bytes(shard_size)
    if folder is not None and model is not None:
        raise RequestError(f"{folder} and --model {model}: name the model once.")
    if to not in FORMS:
        raise RequestError(f"--to {to}: write {', '.join(FORMS)}.")
    if to != "safetensors" and dtype is not None:
        raise RequestError(f"--to {to} keeps every value as it is: leave --dtype out, or cast by a conversion before.")
    with open_checkpoint(choose_model(folder or model)) as checkpoint:
        if dtype is not None:
            note(left_out_sentence(checkpoint), quiet)
        target = out if out is not None else Path(f"{checkpoint.name}-{to}")
        total = sum(record.nbytes for record in checkpoint.tensors.values())
        kind = checkpoint.config.get("model_type")
        if to != "safetensors" and kind != (wanted := "chatglm" if to == "glm" else "glm"):
            raise RequestError(f"--to {to} takes a checkpoint of model_type {wanted}, and {checkpoint.path} is {kind}.")
        with ProgressLine("converting", total, quiet=quiet, number=lambda count: f"{count / 1e9:.2f} GB") as progress:
            if to == "safetensors":
                done = rewrite(checkpoint, target, dtype, size, progress.advance)
            else:
                from glmspectra.chatglm2 import convert_folder

                done = convert_folder(checkpoint.folder, target, size, progress.advance)
        result = {
            "checkpoint": checkpoint.name,
            "from": str(checkpoint.path),
            "form": checkpoint.form,
            "out": str(done.out),
            "to": to,
            "dtype": dtype,
            "shards": done.shards,
            "bytes": sum(done.shards.values()),
            "copied": done.copied,
            "shards_kept_from_before": done.resumed,
        }
    kept = f", {done.resumed} of them from before" if done.resumed else ""
    tokenizer = ""
    if to == "glm":
        tokenizer = GLM_TOKENIZER if "tokenizer.json" in done.copied else OWN_TOKENIZER
    told = (
        f"{len(done.shards)} safetensors file{'s' if len(done.shards) != 1 else ''}{kept}, "
        f"{sum(done.shards.values()) / 1e9:.3f} GB, written to {done.out} and compared; "
        f"{len(done.copied)} other files copied."
    )
    finish(result, told + tokenizer, as_json)
