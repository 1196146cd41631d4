"""The states of a run that `delta` measures: adapters and tuned checkpoints, and what each changed of one base."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from glmspectra.checkpoint import Checkpoint, TensorRecord, open_checkpoint
from glmspectra.checkpoint.adapter.adapter import Adapter, open_adapter
from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.checkpoint.adapter.lora_file import bring_to, open_lora_file
from glmspectra.checkpoint.adapter.moments import SecondMoments
from glmspectra.checkpoint.adapter.run_folder import TunedCheckpoint
from glmspectra.checkpoint.fingerprint import FileIdentity, check_unchanged, identity_of
from glmspectra.checkpoint.names import IN_LAYERS, parse_name
from glmspectra.device import dtype_name
from glmspectra.errors import CheckpointError
from glmspectra.language import listed, text


@dataclass
class State:
    """One state of a run: an adapter, or an opened checkpoint.

    Attributes:
        where: Its folder and step.
        names: Weight, by the base's name -> its name in the state.
        changes: By the base's name, what an adapter does to it; empty where no base was given.
        moments: By the adapter's name, second moments of the gradient; empty where no optimizer left any.
    """

    where: TunedCheckpoint
    adapter: Adapter | None
    checkpoint: Checkpoint | None
    names: dict[str, str] = field(default_factory=dict)
    changes: dict[str, TensorChange] = field(default_factory=dict)
    moments: dict[str, SecondMoments] = field(default_factory=dict)
    watched: dict[Path, FileIdentity] = field(default_factory=dict)  # files of the adapter when it was opened

    def check_unchanged(self, name: str) -> None:
        """See that the files of the base weight `name` are those that were opened. Raises CheckpointError."""
        check_unchanged(self.watched)
        if self.checkpoint is not None and name in self.names:
            self.checkpoint.check_unchanged(self.names[name])

    @property
    def tuned_by(self) -> str:
        """The adapter's method, or 'difference'."""
        return self.adapter.peft_method if self.adapter is not None else "difference"

    @property
    def needs_base(self) -> bool:
        """Whether some change cannot be computed without the base's weights."""
        return self.adapter is None or self.adapter.needs_base

    def needs_weight(self, name: str) -> bool:
        """Whether the change of this one weight cannot be computed without it."""
        if self.adapter is None:
            return True
        return not self.changes[name].low_rank if name in self.changes else False

    def factors(self, name: str) -> Factors | None:
        """The change of a weight as factors, as the base stores it (without a base: as the layer multiplies).

        None for a matrix that was trained as a whole.
        """
        if self.adapter is None:
            return None
        return self.changes[name].factors if self.changes else self.adapter.change(self.names[name])

    def merged(self, record: TensorRecord, weight: torch.Tensor, index: int = 0) -> torch.Tensor:
        """The tuned matrix, of the shape of `weight`, the base's (rows, columns); of a stack of experts, one of them.

        Raises:
            CheckpointError: It has another shape, or cannot be read.
        """
        if self.adapter is not None:
            change = self.changes[record.name]
            if change.replaced is not None and change.factors is None:
                whole = change.replaced[index] if record.experts else change.replaced
                return replace(change, replaced=whole.reshape(weight.shape)).merged(weight)
            if change.experts:
                return change.experts[index].merged(weight)
            return change.merged(weight)
        assert self.checkpoint is not None  # a state is one of the two
        there = self.checkpoint.tensors[self.names[record.name]]
        tuned = self.checkpoint.read_matrix(there, index)
        if tuned.shape != weight.shape or there.experts != record.experts:
            raise CheckpointError(f"{record.name}: the base has shape {record.shape}, {self.where.path} {there.shape}.")
        return tuned

    def dtype_of(self, name: str) -> str:
        """The type that the change is stored in."""
        if self.checkpoint is not None:
            record = self.checkpoint.tensors[self.names[name]]
            return record.quantization or record.dtype
        change = self.changes.get(name)
        found = self.factors(name) if change is None else next(iter(change.all_factors), None)
        tensor = found.left if found is not None else change.replaced if change is not None else None
        tensor = change.rows[1] if tensor is None and change is not None and change.rows is not None else tensor
        return "unknown" if tensor is None else dtype_name(tensor.dtype)

    def fault_of(self, name: str) -> str | None:
        """Why the tuned weight cannot be read; None where it can."""
        return self.checkpoint.tensors[self.names[name]].fault if self.checkpoint is not None else None

    def release(self, record: TensorRecord, index: int = 0) -> None:
        """Let go of what was read of a weight."""
        if self.checkpoint is not None:
            self.checkpoint.release(self.names[record.name], index if record.experts else None)


def open_state(where: TunedCheckpoint, initial: Path | None) -> State:
    """Open an adapter or a checkpoint. Raises what `open_adapter` and `open_checkpoint` raise."""
    if where.is_adapter and where.path.is_file():
        return State(where, open_lora_file(where.path), None, watched={where.path: identity_of(where.path)})
    if where.is_adapter:
        watched = {path: identity_of(path) for path in where.path.glob("adapter_*") if path.is_file()}
        return State(where, open_adapter(where.path, initial), None, watched=watched)
    return State(where, None, open_checkpoint(where.path))


def match_adapter(state: State, base: Checkpoint, aliases: dict[str, str]) -> Iterator[str]:
    """Fill in names and changes of an adapter's state on this base; yields notes on what is no matrix of it.

    aliases: gains name -> the base's tensor, for weights that the base ties to another and does not store.
    """
    assert state.adapter is not None
    layout = BaseLayout.of(base)
    if state.where.path.is_file():
        yield from bring_to(state.adapter, layout)
    found = state.adapter.changes(layout)
    left_out = []
    yield from (f"{state.where.path}: {note}" for note in found.notes)
    for name, change in found.tensors.items():
        record = base.tensors[change.source]
        shape = record.shape
        if not record.is_matrix:
            left_out.append(name)
        elif change.replaced is not None and tuple(change.replaced.shape) != tuple(shape):
            yield more_rows(name, shape[0], change.replaced.shape[0], state.where.path)
        else:
            state.names[name] = change.adapter_name or name
            state.changes[name] = change
            if change.source != name:
                aliases[name] = change.source
    if left_out:
        shown = listed(left_out[:3]) + (" ..." if len(left_out) > 3 else "")
        yield text("delta-no-matrices", path=str(state.where.path), count=len(left_out), names=shown)


def more_rows(name: str, rows: int, more: int, path: Path) -> str:
    """The note on a weight that has more rows in the tuned model, which has more tokens."""
    return text("delta-more-rows", name=name, rows=rows, more=more, path=str(path))


def alias_record(base: Checkpoint, name: str, source: str) -> TensorRecord:
    """The record of a weight that the base ties to `source`."""
    parsed = parse_name(name)
    return replace(
        base.tensors[source], name=name, layer=parsed.layer, matrix=parsed.names[0], depth_order=parsed.order,
        is_layer_matrix=False, is_recognized=parsed.recognized, fused_parts=(), head_parts=(),
    )  # fmt: skip


def record_of(name: str, shape: tuple[int, int]) -> TensorRecord:
    """The record of a weight of which only an adapter is known."""
    parsed = parse_name(name)
    return TensorRecord(
        name=name, shape=shape, dtype="unknown", nbytes=0, file="", quantization=None, layer=parsed.layer,
        matrix=parsed.names[0], depth_order=parsed.order, is_layer_matrix=parsed.zone == IN_LAYERS,
        is_recognized=parsed.recognized, floating=True, rows=shape[0], columns=shape[1],
    )  # fmt: skip
