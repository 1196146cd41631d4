"""What a delta run will measure, of which states of a run, and what it costs: before anything is computed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint import Checkpoint, TensorRecord, open_checkpoint, select
from glmspectra.checkpoint.adapter.adapter import Adapter, open_adapter
from glmspectra.checkpoint.adapter.run_folder import TunedCheckpoint, tuned_checkpoints
from glmspectra.checkpoint.fingerprint import (
    FileIdentity,
    check_unchanged,
    fingerprint_file,
    fingerprint_set,
    identity_of,
)
from glmspectra.checkpoint.names import place_of
from glmspectra.checkpoint.selection import left_out_facts, left_out_sentence, parse_layers
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.progress import time_left
from glmspectra.store import Source
from glmspectra.sweep.cost import EIGENSOLVER_WEIGHT, EIGENSOLVER_WEIGHT_CUDA, spectrum_cost

LARGE_RANK = 64  # what an adapter is taken to have when its cost is told beforehand


@dataclass(frozen=True)
class DeltaOptions:
    """against_base: overlap with W, intruders and merged spectrum too. directions: how many leading ones are
    compared.

    layers, matrices, include, exclude: a selection as `checkpoint.select` takes it (of what the states
    change).
    initial: the adapter before its first step, where it does not lie in its usual place (PiSSA, OLoRA).
    """

    against_base: bool = False
    directions: int = 8
    layers: str = "all"
    matrices: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    initial: Path | None = None
    device: str = "auto"
    fresh: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Place:
    """Where a changed weight stands: its name in the base, and the identity columns.

    experts: how many matrices of rows x cols it holds, where it is a stack of experts; else 0. expert: the one that is
    meant, once they are taken one by one.
    """

    name: str
    layer: int | None
    matrix: str
    rows: int
    cols: int
    position: int
    dtype: str
    experts: int = 0
    expert: int | None = None

    @property
    def part(self) -> str:
        """The part's name in the tables."""
        return "whole" if self.expert is None else f"expert_{self.expert}"

    @property
    def matrices(self) -> list["Place"]:
        """Its matrices: itself, or each expert."""
        return [replace(self, expert=n) for n in range(self.experts)] if self.experts else [self]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols


@dataclass
class State:
    """One state of the run: an adapter, or an opened checkpoint. names: base weight name -> its name here."""

    where: TunedCheckpoint
    adapter: Adapter | None
    checkpoint: Checkpoint | None
    names: dict[str, str] = field(default_factory=dict)
    watched: dict[Path, FileIdentity] = field(default_factory=dict)  # files of the adapter when it was opened

    def check_unchanged(self, name: str) -> None:
        """See that the files of the base weight `name` are those that were opened. Raises CheckpointError."""
        check_unchanged(self.watched)
        if self.checkpoint is not None and name in self.names:
            self.checkpoint.check_unchanged(self.names[name])

    @property
    def kind(self) -> str:
        return self.adapter.kind if self.adapter is not None else "difference"

    @property
    def needs_base(self) -> bool:
        return self.adapter is None or self.adapter.kind in ("dora", "loftq")


@dataclass
class DeltaPlan:
    """What will be measured and what it costs. places: by depth. streams: whether the base's weights are
    read.
    """

    base: Checkpoint | None
    states: list[State]
    places: list[Place]
    options: DeltaOptions
    source: Source
    streams: bool
    bytes_read: int
    notes: list[str]

    def close(self) -> None:
        _close(self.base, self.states)

    def sentence(self, device: str) -> str:
        """The cost before it is paid: bytes to read, eigenproblems, and the time on this device."""
        cost = sum(cost_of(place, self.states, self.options, device) for place in self.places)
        largest = max(min(place.shape) for place in self.places)
        seconds = cost / measured_speed(device)
        return (
            f"{len(self.places)} matrices, {len(self.states)} state{'s' if len(self.states) > 1 else ''}: reads "
            f"{self.bytes_read / 1e9:.2f} GB and decomposes up to {largest} x {largest}; "
            f"about {time_left(seconds)} on {device}."
        )


def _close(base: Checkpoint | None, states: list[State]) -> None:
    for checkpoint in (base, *(state.checkpoint for state in states)):
        if checkpoint is not None:
            checkpoint.close()


def measured_speed(device: str, side: int = 768) -> float:
    """Float64 multiply-adds a second x 2, from one product of side x side on the device."""
    matrix = torch.rand(side, side, dtype=torch.float64, device=device)
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])
        seconds = time.perf_counter() - start
    return 2.0 * side**3 / max(seconds, 1e-9)


def plan_delta(base: Path | str | None, tuned: Path | str, options: DeltaOptions) -> DeltaPlan:
    """Open base and states, and find what is to be measured. Close the plan when done.

    base: a checkpoint; None where every state is an adapter that needs none, or names a base that is there.
    tuned: an adapter, a checkpoint, or a run's folder with checkpoint-N in it. Raises RequestError when the base
    is needed and absent or nothing is selected, CheckpointError when base and states do not fit.
    """
    states = [_open_state(where, options.initial) for where in tuned_checkpoints(tuned)]
    needs_base = options.against_base or any(state.needs_base for state in states)
    named = _named_base(states) if base is None and needs_base else None
    base = base if named is None else named
    if base is None and needs_base:
        kinds = sorted({state.kind for state in states if state.needs_base and state.adapter is not None})
        if any(state.adapter is None for state in states):
            what = "is a model, no adapter: what changed"
        else:
            what = f"is an adapter, of which {' and '.join(kinds) or '--against-base'}"
        _close(None, states)
        raise RequestError(
            f"{tuned} {what} cannot be told without the base weights; write glmspectra delta BASE TUNED."
        )
    opened = open_checkpoint(base) if base is not None else None
    try:
        places, notes = _places(opened, states, options)
        notes += [f"the base is {named}, which the adapter names."] if named is not None else []
    except BaseException:
        _close(opened, states)
        raise
    streams = opened is not None and needs_base
    names = {place.name for place in places}
    bytes_read = sum(r.nbytes for name, r in opened.tensors.items() if name in names) if streams and opened else 0
    for state in states:
        if state.checkpoint is not None:
            bytes_read += sum(
                state.checkpoint.tensors[state.names[p.name]].nbytes for p in places if p.name in state.names
            )
    return DeltaPlan(opened, states, places, options, _source(opened, states, tuned), streams, bytes_read, notes)


def _named_base(states: list[State]) -> Path | None:
    """The local folder or file that all adapters name as their base; None where there is no such one."""
    names = {state.adapter.base_model if state.adapter is not None else None for state in states}
    name = names.pop() if len(names) == 1 else None
    return Path(name) if name and Path(name).exists() else None


def _open_state(where: TunedCheckpoint, initial: Path | None) -> State:
    if where.is_adapter:
        watched = {path: identity_of(path) for path in where.path.glob("adapter_*") if path.is_file()}
        return State(where, open_adapter(where.path, initial), None, watched=watched)
    return State(where, None, open_checkpoint(where.path))


def _places(base: Checkpoint | None, states: list[State], options: DeltaOptions) -> tuple[list[Place], list[str]]:
    """The weights that some state changes, in depth order, and notes on what is left out; fills in the
    states' names.
    """
    notes = []
    for state in states:
        if state.adapter is not None:
            if base is None:
                state.names = {name: name for name in state.adapter.names}
            else:
                state.names = {there: here for here, there in state.adapter.base_names(base.tensors).items()}
            if state.adapter.whole:
                shown = ", ".join(state.adapter.whole[:3])
                notes.append(
                    f"{state.where.path}: also holds whole tensors, which have no factors and are left out: {shown}."
                )
    if base is None:
        return _selected_without_base(states, options), notes
    records = {record.name: record for record in _selection(base, options)}
    notes += [sentence for sentence in [left_out_sentence(base)] if sentence]
    for state in states:
        if state.checkpoint is not None:
            notes += [sentence for sentence in [left_out_sentence(state.checkpoint)] if sentence]
            names = _same_weights(base, state.checkpoint, records)
            _refuse_quantized(base, state.checkpoint, names)
            state.names = names
            if len(names) < len(records):
                notes.append(f"{state.where.path}: lacks {len(records) - len(names)} of the base's matrices.")
            if further := _without_base(state.checkpoint, base):
                notes.append(
                    f"{state.where.path}: holds {len(further)} matrices that the base {base.path} lacks, such as "
                    f"{further[0]}: they are left out; is it the right base?"
                )
    changed = {name for state in states for name in state.names}
    chosen = [
        _place(position, base.tensors[name])
        for position, name in enumerate(base.tensors)
        if name in changed and name in records
    ]
    if not chosen:
        raise RequestError(
            "the selection leaves nothing of what training changed; see --layers, --matrices, --include."
        )
    return chosen, notes


def _selection(base: Checkpoint, options: DeltaOptions) -> list[TensorRecord]:
    return select(base, options.layers, options.matrices, options.include, options.exclude)


def _place(position: int, record: TensorRecord) -> Place:
    dtype = record.quantization or record.dtype
    return Place(record.name, record.layer, record.matrix, record.rows, record.columns, position, dtype, record.experts)


def _same_weights(base: Checkpoint, tuned: Checkpoint, records: dict[str, TensorRecord]) -> dict[str, str]:
    """Base name -> tuned name: equal, or the only tuned one that ends in it or that it ends in (a prefix more
    or less).
    """
    names = {}
    for name in records:
        if name in tuned.tensors:
            names[name] = name
            continue
        fits = [other for other in tuned.tensors if other.endswith(f".{name}") or name.endswith(f".{other}")]
        if len(fits) == 1:
            names[name] = fits[0]
    if not names:
        raise CheckpointError(f"{tuned.path} and {base.path} have no matrix of one name: they are of different models.")
    return names


def _without_base(tuned: Checkpoint, base: Checkpoint) -> list[str]:
    """Matrices inside the layers of the tuned model that match none of the base's."""
    inside = {record.name: record for record in base.tensors.values() if record.is_layer_matrix}
    known = set(_same_weights(base, tuned, inside).values())
    return [record.name for record in tuned.tensors.values() if record.is_layer_matrix and record.name not in known]


def _refuse_quantized(base: Checkpoint, tuned: Checkpoint, names: dict[str, str]) -> None:
    """A difference with a quantised weight holds the error of quantisation, which is larger than most changes."""
    for name, there in names.items():
        for checkpoint, tensor in ((base, name), (tuned, there)):
            form = checkpoint.tensors[tensor].quantization
            if form:
                raise CheckpointError(
                    f"{checkpoint.path}: {tensor} is stored as {form}, and a difference would hold its error; give the "
                    "adapter itself, or checkpoints in their original precision."
                )


def _selected_without_base(states: list[State], options: DeltaOptions) -> list[Place]:
    """The same from the adapters' own names and shapes, with selection by layer, kind and globs."""
    found: dict[str, Place] = {}
    for state in states:
        assert state.adapter is not None  # checkpoints need a base
        for name in sorted(state.adapter.names, key=lambda name: place_of(name).order):
            if name not in found:
                where = place_of(name)
                rows_, cols = state.adapter.factors(name).shape
                found[name] = Place(name, where.layer, where.names[0], rows_, cols, len(found), "unknown")
    places = list(found.values())
    layers = parse_layers(options.layers, {p.layer for p in places if p.layer is not None})
    kinds = [kind.strip() for kind in (options.matrices or "").split(",") if kind.strip() and options.matrices != "all"]
    chosen = [
        place
        for place in places
        if (layers is None or place.layer in layers)
        and (not kinds or any(fnmatchcase(place.matrix, kind) for kind in kinds))
        and (not options.include or any(fnmatchcase(place.name, glob) for glob in options.include))
        and not any(fnmatchcase(place.name, glob) for glob in options.exclude)
    ]
    if not chosen:
        kinds_there = ", ".join(sorted({place.matrix for place in places}))
        raise RequestError(f"the selection leaves nothing of what the adapter changes: {kinds_there}.")
    return chosen


def cost_of(place: Place, states: list[State], options: DeltaOptions, device: str = "cpu") -> float:
    """Operations as `sweep.cost` counts them, of all its matrices."""
    return max(1, place.experts) * _cost_of_one(place, states, options, device)


def _cost_of_one(place: Place, states: list[State], options: DeltaOptions, device: str) -> float:
    solver = EIGENSOLVER_WEIGHT if device == "cpu" else EIGENSOLVER_WEIGHT_CUDA
    small, large = min(place.shape), max(place.shape)
    cost = 0.0
    eigenvectors = 2 * solver * 4 / 3 * small**3  # with vectors: about twice as long
    if options.against_base:
        cost += 2.0 * large * small**2 + eigenvectors
    for state in states:
        if place.name not in state.names:
            continue
        if state.needs_base:
            cost += spectrum_cost([place.shape], device)
            if options.against_base:
                cost += 4.0 * large * small**2 + eigenvectors
        else:
            cost += 6.0 * (large + small) * LARGE_RANK**2
            if options.against_base:
                cost += 4.0 * large * small * LARGE_RANK + 6.0 * small**3 + eigenvectors
    return cost


def _source(base: Checkpoint | None, states: list[State], tuned: Path | str) -> Source:
    """The run's identity: the content of all states. The base is told in the details, as `suggest-rank` needs
    it.
    """
    files = list(_files(states))
    path = Path(tuned).resolve()
    name = path.name if path.is_dir() else path.stem
    if name.startswith(("checkpoint-", "LoraAdapter", "final_adapter")):
        name = f"{path.parent.name}_{name}"
    details: dict[str, Any] = {
        "base": None if base is None else {"name": base.name, "fingerprint": base.fingerprint, "path": str(base.path)},
        "states": [{"path": str(s.where.path), "step": s.where.step, "kind": s.kind} for s in states],
    }
    if base is not None and (found := left_out_facts(base)):
        details["left_out"] = found
    fingerprint = fingerprint_set((file["name"], file["size"], file["fingerprint"]) for file in files)
    form = "adapter" if all(state.adapter is not None for state in states) else "difference"
    return Source(name, fingerprint, str(path), form, tuple(files), details)


def _files(states: list[State]) -> Iterator[dict[str, Any]]:
    for state in states:
        step = "final" if state.where.step is None else f"step {state.where.step}"
        if state.checkpoint is not None:
            for record in state.checkpoint.files:
                yield {"name": f"{step}: {record.name}", "size": record.size, "fingerprint": record.fingerprint}
            continue
        start = state.adapter.start_path if state.adapter is not None else None
        for word, folder in ((step, state.where.path), (f"{step}, start", start)):
            for path in sorted(folder.glob("adapter_*")) if folder is not None else ():
                if path.is_file():
                    size = path.stat().st_size
                    yield {"name": f"{word}: {path.name}", "size": size, "fingerprint": fingerprint_file(path)}
