"""Which tensors of a checkpoint a command works on."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from glmspectra.checkpoint.locate import locate
from glmspectra.checkpoint.records import TensorRecord
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.language import text

if TYPE_CHECKING:
    from glmspectra.checkpoint.reader import Checkpoint

MOST_NAMED = 20  # tensors that are left out, by name, in a manifest
NORMS = re.compile(r"norm|ln_", re.IGNORECASE)  # the weights in layers that are vectors
_RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?$")


class Selectable(Protocol):
    """What `select` looks at: an opened checkpoint, or one with the names of its tied tensors added."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorRecord]: ...


def select(
    checkpoint: Selectable,
    layers: str = "all",
    matrices: str | Sequence[str] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> list[TensorRecord]:
    """The matrices to work on, in depth order.

    Args:
        checkpoint: the one that they are in.
        layers: `all`, or numbers and ranges from 0, negative ones from the end: `0-3,7,-1`. Anything but
            `all` leaves out what stands in no layer.
        matrices: None: the weights inside the layers, and matrices whose names the table of names does not
            know; `all`: embedding and output too; else names, as a sequence or joined by commas. A name is
            the short name (`query_key_value`), its last word (`gate_proj` for `mlp.experts.3.gate_proj`) or a
            glob (`*_proj`).
        include: globs on full names (`*.layers.3.*`); only what matches one of them is kept.
        exclude: globs on full names; what matches one of them is left out.

    Raises:
        RequestError: a malformed selection, or one that matches nothing, or of which one name does; the message
            lists what there is.
        CheckpointError: nothing of the selection can be read; the message says why.
    """
    candidates = [record for record in checkpoint.tensors.values() if record.is_matrix]
    if not candidates:
        raise RequestError(
            f"{checkpoint.path} holds no matrix of floating point numbers: {_what_there_is(checkpoint, [])}."
        )
    names = _names(matrices)
    for name in names or ():
        if not any(_is_named(record, name) for record in candidates):
            raise RequestError(
                f"'{name}' in --matrices is no matrix of {checkpoint.path}: {_what_there_is(checkpoint, candidates)}."
            )
    wanted_layers = parse_layers(layers, {r.layer for r in candidates if r.layer is not None})
    include, exclude = tuple(include), tuple(exclude)
    chosen = [
        record
        for record in candidates
        if (wanted_layers is None or record.layer in wanted_layers)
        and _wanted(record, names, explicit=bool(include))
        and (not include or any(fnmatchcase(record.name, glob) for glob in include))
        and not any(fnmatchcase(record.name, glob) for glob in exclude)
    ]
    if not chosen:
        asked = f"layers {layers}, matrices {','.join(names) if names else names or 'of the layers'}"
        asked += "".join(
            f", {word} {' '.join(globs)}" for word, globs in (("include", include), ("exclude", exclude)) if globs
        )
        raise RequestError(
            f"no matrix of {checkpoint.path} matches ({asked}): {_what_there_is(checkpoint, candidates)}."
        )
    if all(record.fault for record in chosen):
        raise CheckpointError(
            f"{checkpoint.path}: none of the matrices asked for can be read; {chosen[0].name}: {chosen[0].fault}."
        )
    return chosen


def left_out(checkpoint: "Checkpoint") -> dict[str, str]:
    """Tensors that may pass for weights and are no matrices here, and why; norms, biases and tables are none.

    What cannot be read but counts as a matrix is not among them: `select` gives it, and its row says so.
    """
    found: dict[str, str] = {}
    for record in checkpoint.tensors.values():
        if record.is_matrix or record.name.endswith("bias"):
            continue
        if len(record.shape) < 2:
            if record.is_recognized and record.layer is not None and not NORMS.search(record.name):
                found[record.name] = (
                    f"its shape {list(record.shape)} is no matrix's, as where a model was saved in shards"
                )
            continue
        if record.fault is not None:
            found[record.name] = record.fault
        elif 0 in record.shape:
            found[record.name] = f"its shape {list(record.shape)} holds no number"
        elif record.is_weight and not record.floating:
            found[record.name] = f"it holds {record.dtype} and no floating point numbers"
        elif record.is_weight and not record.rows:
            found[record.name] = f"its shape {list(record.shape)} is neither a matrix, experts nor a convolution"
    return found | checkpoint.beside_weights


def left_out_facts(checkpoint: "Checkpoint") -> dict[str, Any]:
    """What a manifest keeps of it: tensors that `left_out` names, by count and some by name, and files beside.

    Empty when there is nothing.
    """
    found, files = left_out(checkpoint), list(checkpoint.beside)
    tensors = {"count": len(found), "tensors": dict(list(found.items())[:MOST_NAMED])} if found else {}
    return tensors | ({"files": files[:MOST_NAMED], "file_count": len(files)} if files else {})


def left_out_sentence(checkpoint: "Checkpoint") -> str | None:
    """One line on tensors that `left_out` names and files beside those that are read; None when there is nothing."""
    return _sentence(checkpoint, left_out(checkpoint))


def unread_sentence(checkpoint: "Checkpoint") -> str | None:
    """The same for a command that takes every weight: what the files hold beside the weights, and files beside them."""
    return _sentence(checkpoint, checkpoint.beside_weights)


def _sentence(checkpoint: "Checkpoint", found: Mapping[str, str]) -> str | None:
    said = []
    if found:
        name, reason = next(iter(found.items()))
        said.append(text("checkpoint-left-out", checkpoint=checkpoint.name, count=len(found), name=name, reason=reason))
    if files := checkpoint.beside:
        said.append(files_beside(checkpoint.name, next(iter(checkpoint.file_sizes)), files))
    return " ".join(said) or None


def beside_sentence(path: Path) -> str | None:
    """One line on files of weights beside those that a model's folder is read from; None where there are none."""
    try:
        located = locate(path)
    except (CheckpointError, RequestError):
        return None  # whoever reads it says so
    files = located.beside() if path.is_dir() else []
    return files_beside(path.name, located.files[0].name, files) if files else None


def files_beside(checkpoint: str, read: str, files: Sequence[str]) -> str:
    """Of which file the weights are read, and of which others in the folder they are not."""
    return text("checkpoint-beside", checkpoint=checkpoint, count=len(files), name=files[0], read=read)


def parse_layers(text: str, existing: set[int]) -> set[int] | None:
    """Layer numbers of `0-3,7,-1` among the existing ones.

    None for `all`. RequestError when malformed or absent.
    """
    if text.strip() == "all":
        return None
    if not text.strip():
        raise RequestError("--layers is empty: write all, or numbers and ranges such as 0-3,7,-1.")
    count = max(existing, default=-1) + 1
    wanted: set[int] = set()
    for piece in text.split(","):
        found = _RANGE.match(piece.strip())
        if not found:
            raise RequestError(
                f"'{piece}' in --layers {text} is no number and no range: write all, or such as 0-3,7,-1."
            )
        first = _from_end(int(found[1]), count)
        last = first if found[2] is None else _from_end(int(found[2]), count)
        if last < first:
            raise RequestError(f"'{piece.strip()}' in --layers {text} runs backwards: write the lower layer first.")
        numbers = set(range(first, last + 1))
        if not numbers <= existing:
            there = f"layers 0 to {count - 1}" if count else "no layers"
            raise RequestError(f"'{piece.strip()}' in --layers {text} is not there: the checkpoint has {there}.")
        wanted |= numbers
    return wanted


def _from_end(number: int, count: int) -> int:
    return number + count if number < 0 else number


def _names(matrices: str | Sequence[str] | None) -> list[str] | None:
    if matrices is None:
        return None
    pieces = matrices.split(",") if isinstance(matrices, str) else list(matrices)
    names = [piece.strip() for piece in pieces if piece.strip()]
    if not names:
        raise RequestError("--matrices is empty: write all, or names joined by commas.")
    return names


def _wanted(record: TensorRecord, names: list[str] | None, explicit: bool) -> bool:
    if names is None:
        return explicit or record.is_layer_matrix or not record.is_recognized
    return any(_is_named(record, name) for name in names)


def _is_named(record: TensorRecord, name: str) -> bool:
    return name == "all" or name == record.matrix.rpartition(".")[2] or fnmatchcase(record.matrix, name)


def _what_there_is(checkpoint: Selectable, candidates: list[TensorRecord]) -> str:
    if not candidates:
        dtypes = sorted({record.dtype for record in checkpoint.tensors.values()})
        return f"its {len(checkpoint.tensors)} tensors are of {', '.join(dtypes)}, and no floating one is 2-D"
    layers = sorted({r.layer for r in candidates if r.layer is not None})
    matrices = dict.fromkeys(r.matrix for r in candidates)
    shown = list(matrices)[:24]
    more = f" and {len(matrices) - len(shown)} more" if len(matrices) > len(shown) else ""
    where = f"layers {layers[0]} to {layers[-1]}" if layers else "no layers"
    return f"there are {where} and the matrices {', '.join(shown)}{more}"
