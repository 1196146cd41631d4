"""Spectra of what training changed: an adapter from its factors, or two checkpoints by streamed differences.

An adapter's exact spectrum needs no base: seconds for a whole model. DoRA, LoftQ and full fine-tuning stream
the base, and so does what compares with W (`against_base`). Every checkpoint-N of a run is measured; where a
base is streamed, each of its weights is read once for all of them.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glmspectra.checkpoint import Checkpoint
from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.device import choose_device
from glmspectra.errors import CheckpointError
from glmspectra.spectra import NoiseBlock, spectra_of
from glmspectra.spectra.intruders import (
    GramOfWeight,
    MergedSpectrum,
    gram_of_weight,
    merged_spectrum,
    merged_spectrum_dense,
)
from glmspectra.spectra.lowrank import LowRankSpectrum, factor_noise_floor, factor_spectrum
from glmspectra.spectra.rounding import rounding_floor
from glmspectra.store import Measurement, Request, RunStore, Source, read_manifest, run_name
from glmspectra.sweep import delta_rows as rows
from glmspectra.sweep.delta_plan import DeltaPlan, Place, State, cost_of
from glmspectra.sweep.gathering import Gathering
from glmspectra.sweep.known_base import KnownBase, known_base
from glmspectra.sweep.measure import noise_blocks
from glmspectra.sweep.processes import Processes, joined_processes, share_out
from glmspectra.sweep.progress import SweepProgress


@dataclass(frozen=True)
class DeltaResult:
    """folder: the run's tables. matrices, states: how many. measured: how many (matrix, state) pairs were
    measured now. nonfinite: names of the matrices whose base or change holds NaN or infinity. first: whether
    this is process 0, which alone draws and talks.
    """

    folder: Path
    matrices: int
    states: int
    measured: int
    seconds: float
    device: str
    kinds: list[str]
    notes: list[str]
    nonfinite: list[str]
    first: bool
    manifest: dict[str, Any] = field(repr=False)


def measure_delta(plan: DeltaPlan, root: Path) -> DeltaResult:
    """Measure everything in the plan into root (`param_matrix`)/<run>; what is finished is reused.

    Rows of quantity 'delta' for every state; with against_base also 'merged' ones, and 'weight' ones of W
    itself. NaN or infinity in the base or in a state gives rows of status 'nonfinite' without spectra, and the
    run goes on. Under torchrun the matrices are shared out by cost and process 0 merges the tables. Raises what
    reading and writing raise, in every process; what was finished is kept.
    """
    start = time.monotonic()
    with joined_processes() as processes:
        device = str(choose_device(plan.options.device, processes.local_rank))
        store = processes.by_first(lambda: RunStore.of(root, _with_known_base(root, plan.source)))
        with processes.exclusive(store.folder, "delta"):
            # What was measured against the base says all that would be measured now; it is not to be replaced by
            # less.
            reuse = not (plan.options.against_base or plan.options.fresh) and processes.by_first(
                lambda: _has_more(store, plan)
            )
            measured = 0 if reuse else sum(_measure(plan, root, store, device, processes))
            seconds = time.monotonic() - start
            manifest = processes.by_first(lambda: store.merge() if reuse else store.merge(seconds))
        asked = {place.name for place in plan.places}
        return DeltaResult(
            store.folder,
            len(plan.places),
            len(plan.states),
            measured,
            time.monotonic() - start,
            device,
            list(dict.fromkeys(state.kind for state in plan.states)),
            plan.notes,
            [name for name in manifest["nonfinite"] if name in asked],
            processes.rank == 0,
            manifest,
        )


def _measure(plan: DeltaPlan, root: Path, store: RunStore, device: str, processes: Processes) -> list[int]:
    """Measure this process's share; how many (matrix, state) pairs each process measured."""
    measure = _Measure(plan, store, device, processes.by_first(lambda: known_base(root, plan.base)))
    todo = processes.by_first(
        lambda: store.begin(measure.all_requests, device, processes.count, fresh=plan.options.fresh)
    )
    unfinished = {key: set(names) for key, names in todo.items()}
    work = [place for place in plan.places if any(place.name in names for names in unfinished.values())]
    costs = [cost_of(place, plan.states, plan.options, device) for place in work]
    share = share_out(costs, processes.count)[processes.rank]
    label = "changes" if processes.count == 1 else f"process 0 of {processes.count}"
    quiet = plan.options.quiet or processes.rank > 0

    def mine() -> int:
        measured = 0
        with SweepProgress(len(share), sum(costs[index] for index in share), quiet, label) as progress:
            for index in share:
                place = work[index]
                measured += measure.place(place, unfinished)
                nbytes = plan.base.tensors[place.name].nbytes if plan.streams and plan.base is not None else 0
                progress.advance(nbytes, costs[index])
        return measured

    return processes.by_all(mine)


# Columns, singular values with their error bounds, and the spectrum of the sum where that was asked for.
Measured = tuple[dict[str, Any], tuple[np.ndarray, np.ndarray], MergedSpectrum | None]


class _Measure:
    """Measures one weight in all states."""

    def __init__(self, plan: DeltaPlan, store: RunStore, device: str, known: KnownBase):
        self.plan, self.device, self.known = plan, device, known
        names = tuple(place.name for place in plan.places)
        options = plan.options
        asked = {
            "base": plan.base.fingerprint if plan.base is not None else None,
            "against_base": options.against_base,
            "directions": options.directions if options.against_base or known.vectors else None,
            "known": None if options.against_base else known.stamp,
        }
        self.requests: dict[tuple[str, int], Request] = {}
        for index, state in enumerate(plan.states):
            mine = tuple(name for name in names if name in state.names)
            how = {**asked, "kind": state.kind}
            self.requests["delta", index] = Request("spectrum", mine, how, "delta", state.where.step)
            if options.against_base:
                self.requests["merged", index] = Request("spectrum", mine, how, "merged", state.where.step)
        if options.against_base:
            self.requests["weight", 0] = Request("spectrum", names, {"method": "gram", **asked}, "weight")
        self.all_requests = list(self.requests.values())
        self._gathering = Gathering(store, self._check_unchanged)

    def place(self, place: Place, unfinished: dict[str, set[str]]) -> int:
        """Measure what is unfinished of one weight, its experts one by one; returns how many states were measured."""
        done = [self._matrix(matrix, unfinished) for matrix in place.matrices]
        self._gathering.write(place.name)
        return max(done)

    def _matrix(self, place: Place, unfinished: dict[str, set[str]]) -> int:
        plan = self.plan
        weight = gram = None
        if plan.streams and plan.base is not None:
            weight = _read(plan.base, place.name, place)
            if not torch.isfinite(weight).all():
                weight = None  # what factors alone tell is told nevertheless
            if plan.options.against_base:
                began = time.perf_counter()
                gram = gram_of_weight(weight, device=self.device) if weight is not None else None
                self._write_weight(place, weight, gram, time.perf_counter() - began, unfinished)
        done = 0
        for index, state in enumerate(plan.states):
            keys = [self.requests[q, index].key for q in ("delta", "merged") if (q, index) in self.requests]
            if place.name in state.names and any(place.name in unfinished[key] for key in keys):
                self._state(place, index, state, weight, gram)
                done += 1
        if plan.streams and plan.base is not None:
            plan.base.release(place.name, place.expert)
        return done

    def _state(
        self, place: Place, index: int, state: State, weight: torch.Tensor | None, gram: GramOfWeight | None
    ) -> None:
        began = time.perf_counter()
        found: Measured | None
        if state.adapter is not None and not state.needs_base:
            factors = state.adapter.change(state.names[place.name])
            finite = bool(torch.isfinite(factors.left).all() and torch.isfinite(factors.right).all())
            found = self._from_factors(place, factors, weight, gram) if finite else None
        else:
            found = self._dense(place, state, weight, gram)
        seconds = time.perf_counter() - began
        columns, sigma, merged = found if found is not None else ({"status": "nonfinite"}, None, None)
        identity = self._identity(place, "delta", state.where.step, seconds)
        row = {**identity, "dtype": _dtype_of(state, place), **columns}
        self._write(("delta", index), place, row, sigma)
        if ("merged", index) not in self.requests:
            return
        row = self._identity(place, "merged", state.where.step, 0.0)
        if merged is None:
            self._write(("merged", index), place, row | {"status": "nonfinite"}, None)
            return
        spectrum = rows.gram_spectrum(merged.sigma, merged.error_bound, place.rows, place.cols)
        row |= {"method": "gram"}
        row |= rows.known(dict(rows.summarize_spectrum(spectrum, blocks=self._blocks(place, weight))))
        self._write(("merged", index), place, row, (merged.sigma, merged.error_bound))

    def _from_factors(
        self, place: Place, factors: Factors, weight: torch.Tensor | None, gram: GramOfWeight | None
    ) -> Measured:
        """Columns, (sigma, bound) and the merged spectrum of a change that is held in factors."""
        leading = None if gram is not None else self.known.leading(place.name, self.plan.options.directions)
        wanted = gram is not None or leading is not None
        found = factor_spectrum(factors.left, factors.right, factors.scale, vectors=wanted)
        floor = factor_noise_floor(factors.left, factors.right, factors.scale)
        columns = {"method": "factors"} | rows.low_rank_columns(found, factors.allotted_rank, floor)
        merged = None
        if gram is None:
            norm = self.known.norms.get(place.name, 0.0)
            columns |= {"relative_frobenius": found.squared_frobenius**0.5 / norm} if norm > 0 else {}
            columns |= rows.overlap_columns(found, leading, floor) if leading is not None else {}
        elif weight is not None:
            columns |= self._beside(found, weight, gram, floor)
            merged = merged_spectrum(gram, weight, factors.left, factors.right, factors.scale)
            columns |= rows.intruder_columns(merged)
        return columns, (found.sigma, found.error_bound), merged

    def _dense(
        self, place: Place, state: State, weight: torch.Tensor | None, gram: GramOfWeight | None
    ) -> Measured | None:
        """The same of a change of full rank: DoRA, LoftQ, or the difference of two checkpoints. None where the base
        (weight is None) or the state holds NaN or infinity."""
        if weight is None:
            return None
        allotted: int | None = None
        columns: dict[str, Any] = {}
        floor = 0.0
        if state.adapter is not None:
            factors = state.adapter.change(state.names[place.name])
            allotted = factors.allotted_rank
            merged_weight = factors.merged(weight)
        else:
            assert state.checkpoint is not None  # a state is one of the two
            merged_weight = _read(state.checkpoint, state.names[place.name], place)
            if tuple(merged_weight.shape) != place.shape:
                raise CheckpointError(
                    f"{place.name}: the base has shape {place.shape}, {state.where.path} {tuple(merged_weight.shape)}."
                )
        if not torch.isfinite(merged_weight).all():
            return None
        if state.checkpoint is not None:
            noise = rounding_floor(weight, merged_weight)
            floor = noise.edge
            columns = {"share_unchanged": noise.share_unchanged}
        difference = merged_weight.float() - weight.float()
        vectors = self.plan.options.directions if gram is not None else 0
        spectrum = spectra_of(difference, device=self.device, vectors=vectors)["whole"]
        if spectrum.status != "ok":
            return None  # a difference that overflows float32
        columns |= {"method": spectrum.method} | rows.full_rank_columns(
            spectrum, allotted, floor, self._blocks(place, difference)
        )
        columns["relative_frobenius"] = float(
            torch.linalg.matrix_norm(difference) / torch.linalg.matrix_norm(weight.float())
        )
        merged = None
        if gram is not None:
            if spectrum.vectors is not None:
                k = spectrum.vectors.left.shape[1]
                leading = LowRankSpectrum(
                    spectrum.sigma[:k],
                    spectrum.error_bound[:k],
                    place.rows,
                    place.cols,
                    k,
                    torch.from_numpy(spectrum.vectors.left),
                    torch.from_numpy(spectrum.vectors.right),
                )
                columns |= self._beside(leading, weight, gram, floor)
            merged = merged_spectrum_dense(gram, weight, merged_weight)
            columns |= rows.intruder_columns(merged)
        if state.checkpoint is not None:
            state.checkpoint.release(state.names[place.name], place.expert)
        return columns, (spectrum.sigma, spectrum.error_bound), merged

    def _beside(self, delta: LowRankSpectrum, weight: torch.Tensor, gram: GramOfWeight, floor: float) -> dict[str, Any]:
        bases = rows.leading_of_weight(gram, weight, self.plan.options.directions)
        norm = float(torch.linalg.vector_norm(torch.from_numpy(gram.sigma)))
        relative = {"relative_frobenius": delta.squared_frobenius**0.5 / norm} if norm > 0 else {}
        return relative | rows.against_base_columns(delta, weight, bases, floor)

    def _blocks(self, place: Place, weight: torch.Tensor | None) -> list[NoiseBlock]:
        """What tells the noise of a fused matrix: nothing where it is not one, or no weight was read."""
        if weight is None or self.plan.base is None:
            return []
        return noise_blocks(weight, self.plan.base.tensors[place.name])

    def _write_weight(
        self,
        place: Place,
        weight: torch.Tensor | None,
        gram: GramOfWeight | None,
        seconds: float,
        unfinished: dict[str, set[str]],
    ) -> None:
        request = self.requests["weight", 0]
        if place.name not in unfinished[request.key]:
            return
        row = self._identity(place, "weight", None, seconds)
        if gram is None:
            self._write(("weight", 0), place, row | {"status": "nonfinite"}, None)
            return
        spectrum = rows.gram_spectrum(gram.sigma, gram.error_bound, place.rows, place.cols)
        row |= {"method": "gram"}
        row |= rows.known(dict(rows.summarize_spectrum(spectrum, blocks=self._blocks(place, weight))))
        self._write(("weight", 0), place, row, (gram.sigma, gram.error_bound))

    def _identity(self, place: Place, quantity: str, step: int | None, seconds: float) -> dict[str, Any]:
        return {
            "checkpoint": self.plan.source.name,
            "fingerprint": self.plan.source.fingerprint,
            "quantity": quantity,
            "step": step,
            "name": place.name,
            "layer": place.layer,
            "matrix": place.matrix,
            "part": place.part,
            "rows": place.rows,
            "cols": place.cols,
            "dtype": place.dtype,
            "seconds": seconds,
            "status": "ok",
        }

    def _write(
        self,
        key: tuple[str, int],
        place: Place,
        row: dict[str, Any],
        sigma: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        request = self.requests[key]
        found = {} if sigma is None else {place.part: sigma}
        self._gathering.take(
            request,
            Measurement("spectrum", request.quantity, request.step, place.name, place.position, [row], found),
        )

    def _check_unchanged(self, name: str) -> None:
        if self.plan.streams and self.plan.base is not None:
            self.plan.base.check_unchanged(name)
        for state in self.plan.states:
            state.check_unchanged(name)


def _read(checkpoint: Checkpoint, name: str, place: Place) -> torch.Tensor:
    """The matrix of a place in a checkpoint, in which the tensor has that name; of a stack, one expert."""
    record = checkpoint.tensors[name]
    if record.experts != place.experts:
        raise CheckpointError(f"{name}: {checkpoint.path} has {record.experts} experts, the base {place.experts}.")
    return checkpoint.read_matrix(record, place.expert or 0)


def _dtype_of(state: State, place: Place) -> str:
    """The type that the change is stored in."""
    if state.adapter is not None:
        return str(state.adapter.factors(state.names[place.name]).left.dtype).removeprefix("torch.")
    assert state.checkpoint is not None
    record = state.checkpoint.tensors[state.names[place.name]]
    return record.quantization or record.dtype


def _has_more(store: RunStore, plan: DeltaPlan) -> bool:
    """Whether the run's folder holds every change of this plan, measured against the same base (any, if none
    is given).
    """
    if not (store.folder / "manifest.json").is_file():
        return False
    requests = store.manifest()["requests"]
    for state in plan.states:
        names = {place.name for place in plan.places if place.name in state.names}
        asked = requests.get(Request("spectrum", (), {}, "delta", state.where.step).key)
        if asked is None or not asked["complete"] or not asked["options"].get("against_base"):
            return False
        if not names <= set(asked["names"]):
            return False
        if plan.base is not None and asked["options"]["base"] != plan.base.fingerprint:
            return False
        if asked["stamp"] != Request.from_manifest(asked).stamp(store.source.fingerprint):
            return False  # of another version of the package
    return True


def _with_known_base(root: Path, source: Source) -> Source:
    """Keep the base that an earlier run of the same states was told, where this one was told none."""
    folder = Path(root) / run_name(source.name, source.fingerprint)
    if source.details["base"] is not None or not (folder / "manifest.json").is_file():
        return source
    before = (read_manifest(folder)["checkpoint"].get("details") or {}).get("base")
    return replace(source, details={**source.details, "base": before})
