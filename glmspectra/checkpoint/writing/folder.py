"""Writes a checkpoint folder: verified shards, their index, and the files beside them; whole or not at all.

Used by `convert` in both its uses and by `merge`. The folder is built beside its final place and renamed when
everything in it was read back. Killed at any moment, or out of disk, the same request goes on after the last shard that
was verified.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.writing.shards import INDEX, Planned, plan_shards, shard_names, verify_shard, write_shard
from glmspectra.errors import CheckpointError
from glmspectra.files import atomic_folder, check_target, exclusive
from glmspectra.json_files import read_object, write_json

PROGRESS = "conversion.json"  # the request and its verified shards; it goes when the folder has its name


@dataclass(frozen=True)
class Written:
    """What stands in a checkpoint folder that was written.

    Attributes:
        out: The folder.
        shards: Name of a file of weights -> its bytes.
        copied: Other files, by name.
        resumed: How many of the shards an earlier, interrupted call wrote.
    """

    out: Path
    shards: dict[str, int]
    copied: list[str] = field(default_factory=list)
    resumed: int = 0


@dataclass(frozen=True)
class Tensors:
    """The tensors to write, in their order, and how each is read.

    Attributes:
        planned: Name, shape, dtype of each.
        read: Gives a tensor by name; called once for each that is written.
        release: Called with the name after its bytes are written.
        check: Raises CheckpointError where the files that `read` reads changed since they were opened.
    """

    planned: Sequence[Planned]
    read: Callable[[str], torch.Tensor]
    release: Callable[[str], None]
    check: Callable[[], None] = lambda: None


def write_checkpoint(
    out: Path,
    tensors: Tensors,
    shard_bytes: int,
    write_others: Callable[[Path], list[str]],
    doing: str,
    request: Mapping[str, Any] | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write a checkpoint into the folder `out`, which must be empty or not there.

    Args:
        out: The folder; a symbolic link to an empty one will do.
        tensors: What to write.
        shard_bytes: A file of weights holds no more, unless one tensor alone does.
        write_others: Writes configuration, tokenizer and the like into the folder it is given; their names.
        doing: The command, for a second process that wants the same folder.
        request: What decides the content, as JSON can hold it. An interrupted call of the same request is taken up;
            None: none is.
        on_bytes: Called with the number of bytes just written, or found written.

    Raises:
        RequestError: `out` holds something, or another process writes it.
        CheckpointError: A tensor cannot be read, or was not written as it is, or its file changed meanwhile.
        StoreError: The file system refuses; shards that are finished are kept.
    """
    shards = plan_shards(tensors.planned, shard_bytes)
    names = shard_names(len(shards))
    asked = {**request, "shard_bytes": shard_bytes} if request is not None else None
    with exclusive(out, doing, beside=True):
        if asked is not None and (written := _finished_but_for_progress(out, asked, names)):
            return written
        check_target(out, "--out")
        with atomic_folder(out, resume=asked is not None) as staging:
            done = _begin(staging, asked)
            resumed = len(done)
            for name, shard in zip(names, shards, strict=True):
                if name in done:
                    on_bytes(sum(tensor.nbytes for tensor in shard))
                    continue
                checksums = write_shard(staging / name, shard, tensors.read, tensors.release, on_bytes)
                verify_shard(staging / name, shard, checksums)
                tensors.check()
                done[name] = (staging / name).stat().st_size
                if asked is not None:
                    write_json(staging / PROGRESS, asked | {"done": done})
            if len(shards) > 1:
                _write_index(staging, names, shards)
            copied = write_others(staging)
            tensors.check()
            if asked is not None:
                write_json(staging / PROGRESS, asked | {"done": done, "copied": copied, "resumed": resumed})
            check_target(out, "--out")  # it may have been filled meanwhile
        (out / PROGRESS).unlink(missing_ok=True)
    return Written(out, done, copied, resumed)


def _begin(staging: Path, asked: Mapping[str, Any] | None) -> dict[str, int]:
    """The verified shards that the same request left in the unfinished folder; anything else there is removed."""
    done: dict[str, int] = {}
    if asked is not None:
        found = _read_progress(staging)
        if found is not None and {key: found.get(key) for key in asked} == asked:
            done = {
                name: size
                for name, size in found["done"].items()
                if (staging / name).is_file() and (staging / name).stat().st_size == size
            }
    for path in staging.iterdir():
        if path.name not in done:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if asked is not None:
        write_json(staging / PROGRESS, dict(asked) | {"done": done})
    return done


def _read_progress(folder: Path) -> dict[str, Any] | None:
    """The note of an interrupted call; None where there is none that can be trusted."""
    try:
        found = read_object(folder / PROGRESS)
    except CheckpointError:
        return None
    done = found.get("done")
    sound = isinstance(done, dict) and all(Path(name).name == name and type(n) is int for name, n in done.items())
    return found if sound else None


def _finished_but_for_progress(out: Path, asked: Mapping[str, Any], names: Sequence[str]) -> Written | None:
    """The folder that was killed after it took its name and before its note was removed."""
    found = _read_progress(out)
    if found is None or {key: found.get(key) for key in asked} != asked or set(found["done"]) != set(names):
        return None
    (out / PROGRESS).unlink()
    return Written(out, found["done"], list(found.get("copied") or []), len(names))


def _write_index(folder: Path, names: Sequence[str], shards: Sequence[Sequence[Planned]]) -> None:
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
