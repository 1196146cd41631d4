"""What a delta run will measure, of which states of a run, and what it costs: before anything is computed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from glmspectra.checkpoint import Checkpoint, TensorRecord, open_checkpoint, select
from glmspectra.checkpoint.adapter.run_folder import tuned_checkpoints
from glmspectra.checkpoint.names import natural_order
from glmspectra.checkpoint.selection import left_out_sentence, parse_layers
from glmspectra.embedded import locate_model
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.language import both, listed, text
from glmspectra.progress import bytes_text, time_left
from glmspectra.store import Source
from glmspectra.sweep.cost import EIGENSOLVER_WEIGHT, EIGENSOLVER_WEIGHT_CUDA, spectrum_cost
from glmspectra.sweep.delta_moments import attach_moments
from glmspectra.sweep.delta_source import source_of
from glmspectra.sweep.delta_states import State, alias_record, match_adapter, more_rows, open_state, record_of

LARGE_RANK = 64  # what an adapter is taken to have when its cost is said beforehand


@dataclass(frozen=True)
class DeltaOptions:
    """What `delta` is asked for.

    Attributes:
        against_base: Overlap with W, intruders and the spectrum of W + delta-W too.
        directions: How many leading singular directions are compared.
        layers, matrices, include, exclude: A selection as `checkpoint.select` takes it, of what the states change.
        initial: The adapter before its first step, where it does not lie in its usual folder (PiSSA, OLoRA).
        device, fresh, quiet: As for every measurement.
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


@dataclass
class DeltaPlan:
    """What will be measured and what it costs.

    Attributes:
        base: The opened base, if there is one.
        states: Adapters and checkpoints, by step.
        matrices: The changed weights, by depth; under the base's names where there is a base.
        sources: Weight -> the base's tensor to read, where the base ties it to another one.
        positions: Weight -> its position in depth order.
        source: Identity of the run.
        bytes_read: Of base and checkpoints.
        notes: Sentences for a person.
    """

    base: Checkpoint | None
    states: list[State]
    matrices: list[TensorRecord]
    options: DeltaOptions
    source: Source
    notes: list[str]
    sources: dict[str, str] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0

    def close(self) -> None:
        """Unmap the files."""
        _close(self.base, self.states)

    @property
    def streams(self) -> bool:
        """Whether the base's weights are read."""
        return any(self.reads(record.name) for record in self.matrices)

    def reads(self, name: str) -> bool:
        """Whether the base's weight of this name is read."""
        if self.base is None:
            return False
        needed = any(name in state.names and state.needs_weight(name) for state in self.states)
        return self.options.against_base or needed

    def sentence(self, device: str) -> str:
        """The cost before it is paid: bytes to read, eigenproblems, and the time on this device."""
        cost = sum(cost_of(record, self.states, self.options, device) for record in self.matrices)
        largest = max(min(record.rows, record.columns) for record in self.matrices)
        seconds = cost / measured_speed(device)
        return text(
            "delta-cost",
            matrices=both("terminal-matrices", count=len(self.matrices)),
            states=len(self.states),
            size=bytes_text(self.bytes_read),
            side=str(largest),
            time=time_left(seconds),
            device=device,
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

    Args:
        base: A checkpoint or "nano"; None where every state is an adapter that needs none, or names one that is there.
        tuned: An adapter, a checkpoint, or a run's folder with checkpoint-N in it.
        options: Selection and extent.

    Raises:
        RequestError: The base is needed and absent, or nothing is selected.
        CheckpointError: Base and states do not fit.
    """
    states = [open_state(where, options.initial) for where in tuned_checkpoints(tuned)]
    needs_base = options.against_base or any(state.needs_base for state in states)
    named = _named_base(states) if base is None and needs_base else None
    base = base if named is None else named
    if base is None and needs_base:
        _close(None, states)
        raise RequestError(_base_is_missing(tuned, states))
    opened = open_checkpoint(locate_model(base, "BASE")) if base is not None else None
    try:
        plan = DeltaPlan(opened, states, [], options, source_of(opened, states, tuned), [])
        _match(plan)
        if (last := states[-1].adapter) is not None and last.is_zero:
            plan.notes.append(text("adapter-zero", path=str(last.path)))
        plan.notes += [text("delta-named-base", path=str(named))] if named is not None else []
        for state in states:
            plan.notes += attach_moments(state, opened)
    except BaseException:
        _close(opened, states)
        raise
    for record in plan.matrices:
        if opened is not None and plan.reads(record.name):
            plan.bytes_read += record.nbytes
        for state in states:
            if state.checkpoint is not None and record.name in state.names:
                plan.bytes_read += state.checkpoint.tensors[state.names[record.name]].nbytes
    return plan


def _base_is_missing(tuned: Path | str, states: list[State]) -> str:
    methods = sorted({state.tuned_by for state in states if state.needs_base and state.adapter is not None})
    if any(state.adapter is None for state in states):
        what = "is a model, no adapter: what changed"
    else:
        what = f"is an adapter, of which {' and '.join(methods) or '--against-base'}"
    return f"{tuned} {what} cannot be computed without the base weights; write glmspectra delta BASE TUNED."


def _named_base(states: list[State]) -> Path | None:
    """The local folder or file that all adapters name as their base; None where there is no such one."""
    names = {state.adapter.base_model if state.adapter is not None else None for state in states}
    name = names.pop() if len(names) == 1 else None
    return Path(name) if name and Path(name).exists() else None


def _match(plan: DeltaPlan) -> None:
    """Fill in what some state changes, in depth order, and notes on what is left out."""
    base, states = plan.base, plan.states
    if base is None:
        for state in states:
            assert state.adapter is not None  # checkpoints need a base
            state.names = {name: name for name in state.adapter.names}
            if state.adapter.whole:
                whole = state.adapter.whole
                path = str(state.where.path)
                plan.notes.append(text("delta-whole", path=path, count=len(whole), names=listed(whole[:3])))
        plan.matrices = _selected_without_base(states, plan.options)
        plan.positions = {record.name: position for position, record in enumerate(plan.matrices)}
        return
    for checkpoint in (base, *(state.checkpoint for state in states)):
        if checkpoint is not None and (sentence := left_out_sentence(checkpoint)):
            plan.notes.append(sentence)
    for state in states:
        if state.adapter is not None:
            plan.notes += match_adapter(state, base, plan.sources)
    aliases = {name: alias_record(base, name, source) for name, source in plan.sources.items()}
    there = _Weights(base.path, {**base.tensors, **aliases})
    options = plan.options
    chosen = {r.name: r for r in select(there, options.layers, options.matrices, options.include, options.exclude)}
    for state in states:
        if state.checkpoint is not None:
            plan.notes += _match_checkpoint(state, state.checkpoint, base, chosen)
    changed = {name for state in states for name in state.names}
    if options.matrices is None and (outside := sorted(changed - chosen.keys(), key=natural_order)):
        plan.notes.append(text("delta-outside", count=len(outside), names=listed(outside[:3])))
    plan.matrices = [record for name, record in there.tensors.items() if name in changed and name in chosen]
    plan.positions = {name: position for position, name in enumerate(there.tensors)}
    if not plan.matrices:
        raise RequestError(
            "the selection leaves nothing of what training changed; see --layers, --matrices, --include."
        )


@dataclass(frozen=True)
class _Weights:
    """What `select` looks at."""

    path: Path
    tensors: dict[str, TensorRecord]


def _match_checkpoint(
    state: State, tuned: Checkpoint, base: Checkpoint, records: dict[str, TensorRecord]
) -> Iterator[str]:
    """Fill in the state's names; yields notes on what base and checkpoint do not share."""
    names = _same_weights(base, tuned, records)
    _refuse_quantized(base, tuned, names)
    state.names = {}
    for name, there in names.items():
        here, other = base.tensors[name].shape, tuned.tensors[there].shape
        if here[1:] == other[1:] and here[0] < other[0] and not base.tensors[name].is_layer_matrix:
            yield more_rows(name, here[0], other[0], state.where.path)
        else:
            state.names[name] = there
    if len(names) < len(records):
        yield text("delta-lacks", path=str(state.where.path), count=len(records) - len(names))
    if further := _without_base(tuned, base):
        values = {"path": str(state.where.path), "base": str(base.path), "name": further[0]}
        yield text("delta-further", **values, count=len(further))


def _same_weights(base: Checkpoint, tuned: Checkpoint, records: dict[str, TensorRecord]) -> dict[str, str]:
    """Base name -> tuned name.

    The two are equal, or the tuned one is the only one that ends in it or that it ends in (a prefix more or less).
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
    """A difference with a quantized weight holds the error of quantization, which is larger than most changes."""
    for name, there in names.items():
        for checkpoint, tensor in ((base, name), (tuned, there)):
            quantization = checkpoint.tensors[tensor].quantization
            if quantization:
                raise CheckpointError(
                    f"{checkpoint.path}: {tensor} is stored as {quantization}, and a difference would hold its error; "
                    "give the adapter itself, or checkpoints in their original precision."
                )


def _selected_without_base(states: list[State], options: DeltaOptions) -> list[TensorRecord]:
    """The same from the adapters' own names and shapes, with selection by layer, name and globs."""
    found: dict[str, TensorRecord] = {}
    for state in states:
        assert state.adapter is not None  # checkpoints need a base
        for name in state.adapter.names:
            if name not in found:
                found[name] = record_of(name, state.adapter.change(name).shape)
    records = sorted(found.values(), key=lambda record: record.depth_order)
    layers = parse_layers(options.layers, {r.layer for r in records if r.layer is not None})
    patterns = [
        pattern.strip()
        for pattern in (options.matrices or "").split(",")
        if pattern.strip() and options.matrices != "all"
    ]
    chosen = [
        record
        for record in records
        if (layers is None or record.layer in layers)
        and (not patterns or any(fnmatchcase(record.matrix, pattern) for pattern in patterns))
        and (not options.include or any(fnmatchcase(record.name, glob) for glob in options.include))
        and not any(fnmatchcase(record.name, glob) for glob in options.exclude)
    ]
    if not chosen:
        types_there = ", ".join(sorted({record.matrix for record in records}))
        raise RequestError(f"the selection leaves nothing of what the adapter changes: {types_there}.")
    return chosen


def cost_of(record: TensorRecord, states: list[State], options: DeltaOptions, device: str = "cpu") -> float:
    """Operations as `sweep.cost` counts them."""
    solver = EIGENSOLVER_WEIGHT if device == "cpu" else EIGENSOLVER_WEIGHT_CUDA
    small, large = min(record.rows, record.columns), max(record.rows, record.columns)
    cost = 0.0
    eigenvectors = 2 * solver * 4 / 3 * small**3  # with vectors: about twice as long
    if options.against_base:
        cost += 2.0 * large * small**2 + eigenvectors
    for state in states:
        if record.name not in state.names:
            continue
        if state.needs_weight(record.name):
            cost += spectrum_cost([(record.rows, record.columns)], device)
            if options.against_base:
                cost += 4.0 * large * small**2 + eigenvectors
        else:
            cost += 6.0 * (large + small) * LARGE_RANK**2
            if options.against_base:
                cost += 4.0 * large * small * LARGE_RANK + 6.0 * small**3 + eigenvectors
    return cost * len(record.matrix_parts)
