"""Rewrites a checkpoint folder between the ChatGLM2 and the Glm form, tensor by tensor, without holding the model."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GlmConfig

from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.conversion import chatglm_config, correspondences, glm_config
from glmspectra.checkpoint import Checkpoint, open_checkpoint
from glmspectra.checkpoint.writing.shards import Planned, plan_shards, verify_shard, write_shard
from glmspectra.errors import CheckpointError, RequestError

# Files beside the weights that mean the same in both forms.
ALIKE = ("generation_config.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "MODEL_LICENSE")

# Where the rows of a tensor come from: names in the source, and which rows of them (None: all).
Rows = tuple[tuple[str, slice | None], ...]


def convert_folder(
    source: Path,
    out: Path,
    shard_bytes: int = 5 * 10**9,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write the checkpoint folder `source` into `out` in the other form: ChatGLM2 to Glm, Glm to ChatGLM2.

    Values and types stay bit for bit; each shard is read back and compared. The tokenizer's files are copied as they
    are, without the request for remote code.

    Args:
        source: a folder of safetensors or .bin shards whose config.json says `chatglm` or `glm`.
        out: a folder that does not exist yet; it appears under its name when all is written.
        shard_bytes: most bytes of one file.
        on_bytes: told of progress, in bytes written.

    Raises:
        RequestError: `out` exists, or the checkpoint is of neither form or quantised.
        ConfigError: the configuration has no counterpart in the other form.
        CheckpointError: a tensor is missing, or was not written as it was read.
    """
    if out.exists():
        raise RequestError(f"{out} is there already: name a folder that does not exist yet.")
    with open_checkpoint(source) as checkpoint:
        quantised = [record for record in checkpoint.tensors.values() if record.quantization]
        if quantised:
            raise RequestError(
                f"{source} is quantised ({quantised[0].name} is {quantised[0].quantization}), and only plain weights "
                "convert exactly: take the unquantised checkpoint."
            )
        config, origins = _plan(checkpoint, source)
        partial = out.with_name(f"{out.name}.{os.getpid()}.partial")  # of this process alone
        partial.mkdir(parents=True)
        try:
            _write_shards(checkpoint, origins, partial, shard_bytes, on_bytes)
            config.save_pretrained(partial)
            for name in ALIKE:
                if (checkpoint.folder / name).is_file():
                    _copy(checkpoint.folder / name, partial / name)
            partial.rename(out)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or out} cannot be written ({error.strerror}): make room and run the same again."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out


def _plan(checkpoint: Checkpoint, source: Path) -> tuple[Any, dict[str, Rows]]:
    """The configuration of the other form, and for each of its tensors where its rows come from."""
    kind = checkpoint.config.get("model_type")
    if kind == "chatglm":
        here = ChatGLMConfig.from_dict(dict(checkpoint.config))
        origins: dict[str, Rows] = {}
        for item in correspondences(here):
            start = 0
            for name, rows in zip(item.glm_names, item.rows or (0,), strict=True):
                origins[name] = ((item.name, slice(start, start + rows) if item.rows else None),)
                start += rows
        there: Any = glm_config(here)
        there.architectures = ["GlmForCausalLM"]
    elif kind == "glm":
        there = chatglm_config(GlmConfig.from_dict(dict(checkpoint.config)))
        there.architectures = ["ChatGLMForConditionalGeneration"]
        origins = {item.name: tuple((name, None) for name in item.glm_names) for item in correspondences(there)}
        if checkpoint.config.get("tie_word_embeddings"):
            origins["transformer.output_layer.weight"] = (("model.embed_tokens.weight", None),)
    else:
        raise RequestError(f"{source} says model_type {kind!r}: only chatglm and glm convert into each other.")
    missing = sorted({name for parts in origins.values() for name, _ in parts} - checkpoint.tensors.keys())
    if missing:
        raise CheckpointError(f"{source} lacks {missing[0]} and {len(missing) - 1} more tensors of its configuration.")
    return there, origins


def _write_shards(
    checkpoint: Checkpoint,
    origins: Mapping[str, Rows],
    folder: Path,
    shard_bytes: int,
    on_bytes: Callable[[int], None],
) -> None:
    def read(name: str) -> torch.Tensor:
        parts = [checkpoint.read(origin)[rows or slice(None)] for origin, rows in origins[name]]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)

    def release(name: str) -> None:
        for origin, _ in origins[name]:
            checkpoint.release(origin)

    planned = []
    for name, parts in origins.items():
        records = [checkpoint.tensors[origin] for origin, _ in parts]
        sizes = [
            rows.stop - rows.start if rows else record.shape[0]
            for record, (_, rows) in zip(records, parts, strict=True)
        ]
        shape = (sum(sizes), *records[0].shape[1:])
        dtype = getattr(torch, records[0].dtype)
        planned.append(Planned(name, shape, dtype, torch.Size(shape).numel() * dtype.itemsize))
    shards = plan_shards(planned, shard_bytes)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, shard, read, release, on_bytes)
        verify_shard(folder / file, shard, read, release)
        places |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in planned)}, "weight_map": places}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    if source.suffix != ".json":
        shutil.copyfile(source, target)
        return
    values = json.loads(source.read_text(encoding="utf-8"))
    values.pop("auto_map", None)
    target.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
