"""Rewrites a checkpoint folder between the ChatGLM2 and the Glm format, tensor by tensor, without holding the model."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GlmConfig

from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.conversion import chatglm_config, correspondences, glm_config
from glmspectra.chatglm2.tokenization import VOCAB_FILE
from glmspectra.chatglm2.tokenizer_json import (
    CONFIG_FILE,
    TEMPLATE_PREFIX,
    fast_config,
    slow_config,
    write_fast_tokenizer,
)
from glmspectra.checkpoint import Checkpoint, open_checkpoint
from glmspectra.checkpoint.foreign import read_by_library
from glmspectra.checkpoint.writing.folder import Tensors, Written, write_checkpoint
from glmspectra.checkpoint.writing.shards import SHARD_BYTES, Planned
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import write_text
from glmspectra.json_files import read_object, write_json

TEMPLATE_FILE = "chat_template.jinja"  # where there is one, it is taken before that of tokenizer_config.json

# Files beside the weights that mean the same in both formats.
ALIKE = ("generation_config.json", "tokenizer.model", "tokenizer_config.json", TEMPLATE_FILE, "MODEL_LICENSE")

UNREADABLE = "its configuration cannot be read"

# Where the rows of a tensor come from: names in the source, and which rows of them (None: all).
Rows = tuple[tuple[str, slice | None], ...]


def convert_folder(
    source: Path,
    out: Path,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write the checkpoint folder `source` into `out` in the other format: ChatGLM2 to Glm, Glm to ChatGLM2.

    Values and types stay bit for bit; each shard is read back and compared. The tokenizer's files are copied as they
    are, without the request for remote code.

    Args:
        source: a folder of safetensors or .bin shards whose config.json says `chatglm` or `glm`.
        out: a folder that is empty or does not exist yet; it appears under its name when all is written.
        shard_bytes: most bytes of one file.
        on_bytes: told of progress, in bytes written.

    Raises:
        RequestError: `out` holds something, another process writes it, or the checkpoint is quantized or of neither
            format.
        ConfigError: the configuration has no counterpart in the other format.
        CheckpointError: a tensor is missing, or was not written as it was read.
    """
    if out.resolve() == source.resolve():
        raise RequestError(f"{out} is the checkpoint itself: name another folder.")
    with open_checkpoint(source) as checkpoint:
        quantized = [record for record in checkpoint.tensors.values() if record.quantization]
        if quantized:
            raise RequestError(
                f"{source} is quantized ({quantized[0].name} is {quantized[0].quantization}), and only plain weights "
                "convert exactly: take the unquantized checkpoint."
            )
        config, origins = _plan(checkpoint, source)
        request = {"source": checkpoint.fingerprint, "to": config.model_type}
        tensors = _tensors(checkpoint, origins)
        return write_checkpoint(
            out,
            tensors,
            shard_bytes,
            lambda folder: _write_others(checkpoint, config, folder),
            "convert",
            request,
            on_bytes,
        )


def _plan(checkpoint: Checkpoint, source: Path) -> tuple[Any, dict[str, Rows]]:
    """The configuration of the other format, and for each of its tensors where its rows come from."""
    model_type = checkpoint.config.get("model_type")
    if model_type == "chatglm":
        with read_by_library(source, UNREADABLE):
            here = ChatGLMConfig.from_dict(dict(checkpoint.config))
        origins: dict[str, Rows] = {}
        for item in correspondences(here):
            start = 0
            for name, rows in zip(item.glm_names, item.rows or (0,), strict=True):
                origins[name] = ((item.name, slice(start, start + rows) if item.rows else None),)
                start += rows
        with read_by_library(source, UNREADABLE):
            there: Any = glm_config(here)
        there.architectures = ["GlmForCausalLM"]
    elif model_type == "glm":
        with read_by_library(source, UNREADABLE):
            there = chatglm_config(GlmConfig.from_dict(dict(checkpoint.config)))
        there.architectures = ["ChatGLMForConditionalGeneration"]
        origins = {item.name: tuple((name, None) for name in item.glm_names) for item in correspondences(there)}
        if checkpoint.config.get("tie_word_embeddings"):
            origins["transformer.output_layer.weight"] = (("model.embed_tokens.weight", None),)
    else:
        raise RequestError(
            f"{source} says model_type {str(model_type)[:80]!r}: only chatglm and glm convert into each other."
        )
    missing = sorted({name for parts in origins.values() for name, _ in parts} - checkpoint.tensors.keys())
    if missing:
        raise CheckpointError(f"{source} lacks {missing[0]} and {len(missing) - 1} more tensors of its configuration.")
    return there, origins


def _tensors(checkpoint: Checkpoint, origins: Mapping[str, Rows]) -> Tensors:
    """What is to be written, and how it is read and put together."""

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
    return Tensors(planned, read, release, checkpoint.check_unchanged)


def _write_others(checkpoint: Checkpoint, config: Any, folder: Path) -> list[str]:
    config.save_pretrained(folder)
    found = [name for name in ALIKE if (checkpoint.folder / name).is_file()]
    for name in found:
        _copy(checkpoint.folder / name, folder / name)
    return sorted({*found, *_write_tokenizer(checkpoint.folder, config.model_type, folder)})


def _write_tokenizer(source: Path, model_type: str, folder: Path) -> list[str]:
    """What the tokenizer needs in the other format: tokenizer.json for Glm, ChatGLM2's own class on the way back.

    A tokenizer that has further tokens (ChatGLM3's roles) or is another one stays as it was copied.
    """
    if not (source / VOCAB_FILE).is_file():
        return []
    path = source / CONFIG_FILE
    known = read_object(path) if path.is_file() else {}
    if model_type != "glm":
        if known.get("tokenizer_class") != fast_config()["tokenizer_class"]:
            return []
        write_json(folder / CONFIG_FILE, slow_config())
        _rewrite_template(folder, lambda text: text.removeprefix(TEMPLATE_PREFIX))
        return [CONFIG_FILE]
    if known.get("added_tokens_decoder") or known.get("additional_special_tokens"):
        return []
    try:
        written = write_fast_tokenizer(source / VOCAB_FILE, folder)
    except RequestError:
        return []
    _rewrite_template(folder, lambda text: TEMPLATE_PREFIX + text)
    return written


def _rewrite_template(folder: Path, change: Callable[[str], str]) -> None:
    """Put `[gMASK] sop` before a copied chat template, or take it off: ChatGLM2's own tokenizer adds it by itself."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        write_text(path, change(path.read_text(encoding="utf-8")))


def _copy(source: Path, target: Path) -> None:
    if source.suffix != ".json":
        shutil.copyfile(source, target)
        return
    values = read_object(source)
    values.pop("auto_map", None)
    write_json(target, values)
