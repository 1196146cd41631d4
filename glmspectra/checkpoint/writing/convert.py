"""Rewrites a checkpoint as sharded safetensors with an index, without holding the model.

The new folder is built beside its final place, under a name ending in `.partial`, and renamed when everything
in it was read back and compared: at its final name it is complete or not there. Interrupted, the same call
goes on after the last shard that was verified.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.locate import INDEXES, NOT_WEIGHTS, SUFFIXES
from glmspectra.checkpoint.reader import Checkpoint
from glmspectra.checkpoint.writing.shards import Planned, plan_shards, verify_shard, write_shard
from glmspectra.errors import CheckpointError, RequestError

INDEX = "model.safetensors.index.json"
PLAN = "conversion.json"  # in the partial folder only
FLOATING = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    The folder, its shards (name -> bytes), other files copied, shards kept from before.
    """

    out: Path
    shards: dict[str, int]
    copied: list[str] = field(default_factory=list)
    resumed: int = 0


def convert(
    checkpoint: Checkpoint,
    out: Path,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Conversion:
    """Rewrite an opened checkpoint into the folder `out`.

    Args:
        checkpoint: of form `safetensors` or `bin`.
        out: a folder that does not exist yet, or is empty.
        dtype: None writes every tensor as stored, bit for bit, quantised ones in their packed form;
            `float16`, `bfloat16` or `float32` dequantises, and casts every floating point tensor.
        shard_bytes: a shard holds no more, unless one tensor alone does.
        on_bytes: is told of progress, in bytes written.

    Raises:
        RequestError: `out` holds something, another conversion is under way there, or the form cannot be
            converted.
        CheckpointError: a tensor cannot be read, or was not written as it is, or the disk refuses.
    """
    _check_request(checkpoint, out, dtype)
    read, release, planned = _sources(checkpoint, dtype)
    shards = plan_shards(planned, shard_bytes)
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    partial = out.with_name(out.name + ".partial")
    try:
        done = _begin(partial, checkpoint, dtype, shard_bytes)
        resumed = len(done)
        for name, tensors in zip(names, shards, strict=True):
            if name in done:
                on_bytes(sum(tensor.nbytes for tensor in tensors))
                continue
            write_shard(partial / name, tensors, read, release, on_bytes)
            verify_shard(partial / name, tensors, read, release)
            done[name] = (partial / name).stat().st_size
            _write_plan(partial, checkpoint, dtype, shard_bytes, done)
        copied = _copy_others(checkpoint, partial, dtype)
        if len(shards) > 1:
            weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            total = sum(tensor.nbytes for tensor in planned)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (partial / PLAN).unlink()
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or partial} cannot be written ({error.strerror}): make room and run the same again; "
            f"finished shards are kept in {partial}."
        ) from error
    return Conversion(out, done, copied, resumed)


def _check_request(checkpoint: Checkpoint, out: Path, dtype: str | None) -> None:
    if checkpoint.form not in ("safetensors", "bin"):
        raise RequestError(f"{checkpoint.path} is of form {checkpoint.form}; only safetensors and .bin are converted.")
    if dtype is not None and dtype not in FLOATING:
        raise RequestError(f"--dtype {dtype} is none of {', '.join(FLOATING)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is there and not empty: name another folder, or remove it.")
    if out.resolve() == checkpoint.folder.resolve():
        raise RequestError(f"{out} is the checkpoint itself: name another folder.")


def _sources(
    checkpoint: Checkpoint, dtype: str | None
) -> tuple[Callable[[str], torch.Tensor], Callable[[str], None], list[Planned]]:
    """How tensors are read and released, and what is to be written, in depth order."""
    if dtype is None:
        order = {name: i for i, name in enumerate(checkpoint.tensors)}
        planned = [
            Planned(name, entry.shape, getattr(torch, entry.dtype), entry.nbytes)
            for name, entry in sorted(checkpoint.stored.items(), key=lambda item: order.get(item[0], len(order)))
        ]
        return checkpoint.read_stored, checkpoint.release, planned
    wanted = FLOATING[dtype]

    def read(name: str) -> torch.Tensor:
        tensor = checkpoint.read(name)
        return tensor.to(wanted) if checkpoint.tensors[name].floating else tensor

    planned = []
    for record in checkpoint.tensors.values():
        target = wanted if record.floating else getattr(torch, record.dtype)
        planned.append(Planned(record.name, record.shape, target, _count(record.shape) * target.itemsize))
    return read, checkpoint.release, planned


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _plan(checkpoint: Checkpoint, dtype: str | None, shard_bytes: int) -> dict[str, Any]:
    return {"source": checkpoint.fingerprint, "dtype": dtype, "shard_bytes": shard_bytes}


def _begin(partial: Path, checkpoint: Checkpoint, dtype: str | None, shard_bytes: int) -> dict[str, int]:
    """Make the partial folder, or take up the one that the same conversion left.

    Its verified shards by name.
    """
    plan = partial / PLAN
    if partial.exists() and not plan.is_file():
        raise RequestError(f"{partial} is there and was not left by a conversion: remove it, or name another folder.")
    partial.mkdir(parents=True, exist_ok=True)
    done: dict[str, int] = {}
    if plan.is_file():
        try:
            found = json.loads(plan.read_text(encoding="utf-8"))
            done = found.pop("done")
        except (ValueError, KeyError, AttributeError):
            found, done = None, {}
        if found != _plan(checkpoint, dtype, shard_bytes):
            done = {}  # another source or another request: nothing of it is used
        done = {n: size for n, size in done.items() if (partial / n).is_file() and (partial / n).stat().st_size == size}
        for path in partial.iterdir():
            if path.name != PLAN and path.name not in done:
                path.unlink()
    _write_plan(partial, checkpoint, dtype, shard_bytes, done)
    return done


def _write_plan(
    partial: Path, checkpoint: Checkpoint, dtype: str | None, shard_bytes: int, done: dict[str, int]
) -> None:
    new = partial / (PLAN + ".new")
    new.write_text(json.dumps(_plan(checkpoint, dtype, shard_bytes) | {"done": done}), encoding="utf-8")
    os.replace(new, partial / PLAN)


def _copy_others(checkpoint: Checkpoint, partial: Path, dtype: str | None) -> list[str]:
    """Copy configuration, tokenizer and other files that are no weights; config.json states a new dtype."""
    weights = {index for index, _ in INDEXES} | set(checkpoint.file_sizes)
    copied = []
    for path in sorted(checkpoint.folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name in weights or path.name == PLAN:
            continue
        if path.suffix in SUFFIXES or NOT_WEIGHTS.match(path.name):
            continue  # another form of the same weights, or a trainer's state
        shutil.copyfile(path, partial / path.name)
        copied.append(path.name)
    config = partial / "config.json"
    if dtype is not None and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        for key in ("quantization_config", "quantization_bit"):
            content.pop(key, None)
        content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return copied
