"""Base and adapter into one checkpoint, in the base's original precision, one tensor in memory at a time.

Never into a 4-bit base: quantizing the sum again throws away about as much as the adapter holds. A base that is stored
quantized is dequantized first, and the merged checkpoint is in half precision. What was written is read back and held
against base and adapter before the folder takes its name.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.adapter.adapter import Adapter, open_adapter
from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.layout import EMBEDDING, BaseLayout
from glmspectra.checkpoint.formats.reparametrized import REFUSED_PARTS, REMADE
from glmspectra.checkpoint.formats.settings import BESIDE, STATED
from glmspectra.checkpoint.names import OUTPUT, parse_name
from glmspectra.checkpoint.reader import Checkpoint, open_checkpoint
from glmspectra.checkpoint.selection import unread_sentence
from glmspectra.checkpoint.writing.agreement import INPUTS, Agreement, agreement, same_bits
from glmspectra.checkpoint.writing.casting import cast
from glmspectra.checkpoint.writing.folder import Tensors, write_checkpoint
from glmspectra.checkpoint.writing.shards import SHARD_BYTES, Planned
from glmspectra.device import dtype_name
from glmspectra.embedded import locate_model
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import check_target
from glmspectra.language import both, listed, text

NOT_COPIED = (".safetensors", ".bin", ".gguf", ".index.json", ".pt", ".pth", ".h5", ".msgpack")
VOCABULARY_KEYS = ("vocab_size", "padded_vocab_size")
UNMOVED = 1e-6  # of a weight's norm: what float32 makes of a change that is none
Progress = Callable[[int, int], None]


@dataclass
class Merged:
    """What a merge did.

    Attributes:
        out, base, adapter: The three folders.
        peft_method: The adapter's method.
        changed: Matrices that factors were added to. whole: Tensors that were replaced or partly replaced.
        untied: Tensors that were tied to another one and now stand on their own.
        dtype: Of the changed weights as written.
        dequantized: Weights of the base that were stored quantized.
        lost: Name and share of the weight whose change lost most to rounding in dtype, |stored - exact|_F / |change|_F.
        moved: Of the weight that factors change most, |change|_F / |merged|_F.
        checked: Name and relative error of the changed tensor that is farthest from base and adapter on random inputs.
        vocabulary: Rows of the embedding before and after, where the adapter extended it.
        notes: What is said of modules that have no factors, and of files that are not read.
        nbytes, files: What was written.
    """

    out: str
    base: str
    adapter: str
    peft_method: str
    changed: int = 0
    whole: int = 0
    untied: list[str] = field(default_factory=list)
    dtype: str = ""
    dequantized: int = 0
    lost: tuple[str, float] = ("", 0.0)
    moved: float = 0.0
    checked: tuple[str, float] = ("", 0.0)
    vocabulary: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    nbytes: int = 0
    files: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same as a dictionary for JSON."""
        return {"kind" if name == "peft_method" else name: value for name, value in asdict(self).items()}

    def lines(self) -> list[str]:
        """What a person is told."""
        matrices = both("terminal-matrices", count=self.changed)
        lines = [
            text(
                "merge-done-dequantized" if self.dequantized else "merge-done",
                method=self.peft_method,
                matrices=matrices,
                base=Path(self.base).name,
            ),
            text(
                "merge-written",
                path=self.out,
                size=f"{self.nbytes / 2**20:,.1f}",
                dtype=self.dtype,
                files=both("inspect-files", count=len(self.files)),
            ),
            self._rounding(),
            text("merge-checked", inputs=INPUTS, apart=f"{self.checked[1]:.1e}"),
        ]
        if self.whole:
            lines.append(text("merge-whole", count=self.whole))
        elif self.changed and self.moved < UNMOVED:
            lines.append(text("adapter-zero", path=self.adapter))
        if self.untied:
            lines.append(text("merge-untied", names=listed(self.untied)))
        lines += self.notes
        if self.vocabulary:
            lines.append(text("merge-vocabulary", now=self.vocabulary[1], before=self.vocabulary[0]))
        return lines

    def _rounding(self) -> str:
        values = {"dtype": self.dtype, "share": f"{self.lost[1]:.2%}"}
        return (
            text("merge-rounding-of", **values, name=self.lost[0]) if self.lost[0] else text("merge-rounding", **values)
        )


def merge(
    base: str | Path,
    adapter: str | Path,
    out: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Merged:
    """Write base + adapter to the folder `out`, whole or not at all, and check it.

    Args:
        base: A model's folder or file, or "nano".
        adapter: A PEFT adapter's folder; every method that `open_adapter` reads.
        out: The new folder.
        dtype: Of the floating-point tensors that are written; None keeps each as it is stored (quantized ones become
            the configuration's type, float16 without one).
        shard_bytes: Largest file, in bytes; a larger tensor has a file of its own.
        progress: Called with (done, all) after each tensor.

    Raises:
        RequestError: base or adapter is not there, or `out` is.
        CheckpointError: The adapter is of another base, either cannot be read, or the result is not base + adapter.
    """
    located = locate_model(base)
    folder = located if located.is_dir() else located.parent
    if out.resolve() == folder.resolve():
        raise RequestError(f"--out {out} is the base model's own folder; name another.")
    check_target(out, "--out")  # said before anything is read
    opened = open_adapter(Path(adapter))
    with open_checkpoint(located) as checkpoint:
        if checkpoint.format == "gguf":
            raise RequestError(
                f"{located}: a GGUF file holds quantized weights under other names; merge into the folder it was made "
                "from, or load and save it by transformers first."
            )
        work = _Merge(checkpoint, opened, dtype, Merged(str(out), str(located), str(adapter), opened.peft_method))
        if unread := unread_sentence(checkpoint):
            work.report.notes.append(unread)
        work.write(out, shard_bytes, lambda staging: _copy_rest(folder, Path(adapter), staging, work), progress)
    return work.report


class _Merge:
    """One merge: which tensors are written, and what each is."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, dtype: torch.dtype | None, report: Merged):
        self.checkpoint, self.dtype, self.report = checkpoint, dtype, report
        found = adapter.changes(BaseLayout.of(checkpoint))
        self.changes = dict(found.tensors)
        for name, source in found.untied.items():
            self.changes.setdefault(name, TensorChange(name, source, str(adapter.path)))
        report.untied = sorted(found.untied)
        report.vocabulary = _vocabulary(checkpoint, self.changes)
        report.changed = sum(len(change.all_factors) for change in self.changes.values())
        report.notes = found.notes
        report.whole = sum(
            change.replaced is not None or change.rows is not None or change.added is not None
            for change in self.changes.values()
        )
        for name, change in self.changes.items():
            _check_shape(checkpoint, name, change, report.vocabulary)
        self.planned = [self._planned(name) for name in (*checkpoint.tensors, *self._new())]

    def _new(self) -> list[str]:
        return [name for name in self.changes if name not in self.checkpoint.tensors]

    def _source(self, name: str) -> str:
        return self.changes[name].source if name in self.changes else name

    def _planned(self, name: str) -> Planned:
        record = self.checkpoint.tensors[self._source(name)]
        config = self.checkpoint.config
        stored = getattr(torch, record.dtype)
        if record.quantization in REMADE:
            raise CheckpointError(f"{name}: {REFUSED_PARTS.format(record.quantization)}")
        if record.quantization:
            stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float16"))
            self.report.dequantized += 1
        target = self.dtype if self.dtype is not None and record.floating else stored
        change = self.changes.get(name)
        shape = tuple(change.replaced.shape) if change is not None and change.replaced is not None else record.shape
        count = 1
        for size in shape:
            count *= size
        return Planned(name, tuple(shape), target, count * target.itemsize)

    def write(
        self, out: Path, shard_bytes: int, others: Callable[[Path], list[str]], progress: Progress | None
    ) -> None:
        """All tensors into shards of at most `shard_bytes`, checked before the folder has its name."""
        types = {planned.name: planned.dtype for planned in self.planned}
        done = 0

        def release(name: str) -> None:
            nonlocal done
            self.checkpoint.release(self._source(name))
            done += 1
            if progress is not None:
                progress(done, len(self.planned))

        def finish(staging: Path) -> list[str]:
            names = others(staging)
            self.check(staging)
            return names

        tensors = Tensors(self.planned, partial(self._result, types), release, self.checkpoint.check_unchanged)
        written = write_checkpoint(out, tensors, shard_bytes, finish, "merge")
        self.report.files = sorted(written.shards)
        self.report.nbytes = sum(planned.nbytes for planned in self.planned)

    def _result(self, types: Mapping[str, torch.dtype], name: str) -> torch.Tensor:
        stored = self.checkpoint.read(self._source(name))
        change = self.changes.get(name)
        if change is None:
            return cast(stored, types[name], name)
        exact = change.merged(stored)
        if not torch.isfinite(exact).all():
            raise CheckpointError(
                f"{name}: base and adapter together give values that are not finite; the adapter is broken."
            )
        result = cast(exact, types[name], name)
        if change.all_factors:
            before = stored if change.replaced is None else change.replaced
            size = float(torch.linalg.vector_norm(exact - before.float()))
            norm = float(torch.linalg.vector_norm(exact))
            self.report.moved = max(self.report.moved, size / norm if norm > 0 else 0.0)
            lost = float(torch.linalg.vector_norm(result.float() - exact)) / size if size > 0 else 0.0
            self.report.lost = max(self.report.lost, (name, lost), key=lambda item: item[1])
            self.report.dtype = dtype_name(types[name])
        return result

    def check(self, folder: Path) -> None:
        """Read the written folder back and compare it with base and adapter.

        What the adapter leaves alone is the base's to the bit, and every changed layer gives on random inputs what base
        and adapter give. The second is computed as the layer computes it, by the factors; the merged weight is not
        made again.

        Raises:
            CheckpointError: A tensor is not what it should be.
        """
        generator = torch.Generator().manual_seed(0)
        with open_checkpoint(folder) as written:
            if written.tensors.keys() != {planned.name for planned in self.planned}:
                raise CheckpointError(f"{folder}: does not hold the tensors that were written: check the disk.")
            for planned in self.planned:
                found, source = written.read(planned.name), self._source(planned.name)
                stored = self.checkpoint.read(source)
                change = self.changes.get(planned.name)
                if change is None:
                    same = same_bits(found, stored.to(planned.dtype))
                    found_apart = Agreement(0.0 if same else 1.0, same)
                else:
                    found_apart = agreement(change, found, stored, generator)
                    checked = (planned.name, found_apart.error)
                    self.report.checked = max(self.report.checked, checked, key=lambda item: item[1])
                if not found_apart.holds:
                    raise CheckpointError(
                        f"{planned.name}: what was written is not base and adapter together ({found_apart.error:.1e} "
                        "apart on random inputs, relative, beyond what rounding does); nothing is kept. Check the "
                        "disk, and report it if it happens again."
                    )
                written.release(planned.name)
                self.checkpoint.release(source)


def _vocabulary(checkpoint: Checkpoint, changes: Mapping[str, TensorChange]) -> tuple[int, int] | None:
    """Rows of the embedding before and after, where the adapter extended it; the output layer must follow.

    Raises:
        CheckpointError: Embedding and output layer differ afterwards.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for name in {*checkpoint.tensors, *changes}:
        if not EMBEDDING.search(name) and parse_name(name).zone != OUTPUT:
            continue
        change = changes.get(name)
        before = checkpoint.tensors[change.source if change is not None else name].shape
        after = change.replaced.shape if change is not None and change.replaced is not None else before
        if len(before) and len(after):
            sizes[name] = (int(before[0]), int(after[0]))
    grown = {name: size for name, size in sizes.items() if size[0] != size[1]}
    if not grown:
        return None
    name, (old, new) = next(iter(grown.items()))
    for other, size in sizes.items():
        if size[0] == old and size[1] != new:
            raise CheckpointError(
                f"the adapter extends {name} from {old} to {new} tokens and leaves {other} at {size[1]}: such a "
                "model cannot be loaded. Train both (modules_to_save), or tie them."
            )
    if not any(config.get(key) == old for config in _configs(checkpoint.config) for key in VOCABULARY_KEYS):
        raise CheckpointError(
            f"the adapter extends {name} from {old} to {new} tokens, and no key of config.json says {old}."
        )
    return old, new


def _check_shape(checkpoint: Checkpoint, name: str, change: TensorChange, vocabulary: tuple[int, int] | None) -> None:
    if change.replaced is None:
        return
    before, after = checkpoint.tensors[change.source].shape, tuple(change.replaced.shape)
    if before != after and (vocabulary is None or (before[0], after[0]) != vocabulary or before[1:] != after[1:]):
        raise CheckpointError(
            f"{change.origin}: holds {name} with shape {list(after)}, the base with {list(before)}; was it trained on "
            "this base?"
        )


def _configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [config, *(value for value in config.values() if isinstance(value, dict))]


def _copy_rest(source: Path, adapter: Path, target: Path, work: _Merge) -> list[str]:
    """Configuration (without what says that the base was quantized), tokenizer and the like; their names."""
    report = work.report
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "config.json" and not path.name.endswith(NOT_COPIED):
            if path.suffix == ".py" or path.name == "trainer_state.json" or path.name in BESIDE:
                continue  # the original's code, the base's own training, and that its weights were quantized
            shutil.copyfile(path, target / path.name)
    if report.vocabulary:
        for path in sorted(adapter.iterdir()):  # the tokenizer that was extended with the vocabulary
            if path.is_file() and re.match(r"(tokenizer|special_tokens|added_tokens|vocab|merges)", path.name):
                shutil.copyfile(path, target / path.name)
    config: dict[str, Any] = copy.deepcopy(work.checkpoint.config)
    config.pop("auto_map", None)
    if "quantization_bit" in config:
        config["quantization_bit"] = 0
    if report.dtype:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = report.dtype
    for inner in _configs(config):
        for key in STATED:
            inner.pop(key, None)
        if report.untied and (inner is config or "tie_word_embeddings" in inner):
            inner["tie_word_embeddings"] = False
        for key in VOCABULARY_KEYS if report.vocabulary else ():
            if report.vocabulary and inner.get(key) == report.vocabulary[0]:
                inner[key] = report.vocabulary[1]
    (target / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return sorted(path.name for path in target.iterdir() if not path.name.endswith(NOT_COPIED))
