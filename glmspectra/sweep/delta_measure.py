"""One changed weight in all its states: the rows, spectra and comparisons that a delta run keeps of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from glmspectra.checkpoint import TensorRecord
from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.spectra import NoiseBlock, Spectrum, spectra_of, summarize_spectrum
from glmspectra.spectra.intruders import (
    GramOfWeight,
    MergedSpectrum,
    gram_of_weight,
    merged_spectrum,
    merged_spectrum_dense,
)
from glmspectra.spectra.lowrank import factor_noise_floor, factor_spectrum
from glmspectra.spectra.rounding import rounding_floor
from glmspectra.store import Measurement, Request, RunStore
from glmspectra.sweep import delta_rows as rows
from glmspectra.sweep.delta_moments import POWERS, stamp_of, weighed
from glmspectra.sweep.delta_plan import DeltaPlan
from glmspectra.sweep.delta_states import State
from glmspectra.sweep.gathering import Gathering
from glmspectra.sweep.known_base import KnownBase
from glmspectra.sweep.measure import Identity, noise_blocks


@dataclass(frozen=True)
class Measured:
    """One change: its columns, its spectrum, and the spectrum of W + delta-W where that was asked for."""

    columns: dict[str, Any]
    spectrum: Spectrum
    merged: MergedSpectrum | None = None


class DeltaMeasurer:
    """Measures the weights of a plan, each in all states, and writes what it finds."""

    def __init__(self, plan: DeltaPlan, store: RunStore, device: str, known: KnownBase):
        self.plan, self.device, self.known = plan, device, known
        self._gathering = Gathering(store, self._check_unchanged)
        names = tuple(record.name for record in plan.matrices)
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
            how = {**asked, "kind": state.tuned_by}
            self.requests["delta", index] = Request("spectrum", mine, how, "delta", state.where.step)
            if options.against_base:
                self.requests["merged", index] = Request("spectrum", mine, how, "merged", state.where.step)
            if state.moments:
                metric = {"optimizer": stamp_of(state), "kind": state.tuned_by}
                covered = tuple(name for name in mine if state.names[name] in state.moments)
                for quantity in POWERS:
                    self.requests[quantity, index] = Request("spectrum", covered, metric, quantity, state.where.step)
        if options.against_base:
            self.requests["weight", 0] = Request("spectrum", names, {"method": "gram", **asked}, "weight")
        self.all_requests = list(self.requests.values())

        self.identity = Identity(plan.source.name, plan.source.fingerprint, plan.positions)

    def measure(self, record: TensorRecord, unfinished: dict[str, set[str]]) -> int:
        """Measure what is unfinished of one weight, or of each expert of a stack; returns in how many states."""
        name = record.name
        wanted = {key for key, request in self.requests.items() if name in unfinished.get(request.key, ())}
        states = [
            index
            for index, state in enumerate(self.plan.states)
            if name in state.names and wanted & {(quantity, index) for quantity in ("delta", "merged", *POWERS)}
        ]
        for expert, part in enumerate(record.matrix_parts):
            for key, measurement in self._measure_matrix(record, expert, part.name, wanted, states):
                self._gathering.take(self.requests[key], measurement)
        self._gathering.write(name)
        return len(states)

    def _measure_matrix(
        self, record: TensorRecord, expert: int, part: str, wanted: set[tuple[str, int]], states: list[int]
    ) -> Iterator[tuple[tuple[str, int], Measurement]]:
        """One matrix of the record against all states; yields (key of the request, what was measured)."""
        plan = self.plan
        source = replace(record, name=plan.sources.get(record.name, record.name))
        weight = gram = None
        reads = plan.base is not None and plan.reads(record.name) and record.fault is None
        if reads and plan.base is not None:
            weight = plan.base.read_matrix(source, expert)
            if not torch.isfinite(weight).all():
                weight = None  # what the factors alone say is measured nevertheless
        if plan.options.against_base:
            began = time.perf_counter()
            gram = gram_of_weight(weight, device=self.device) if weight is not None else None
            if ("weight", 0) in wanted:
                yield ("weight", 0), self._of_weight(record, part, weight, gram, time.perf_counter() - began)
        for index in states:
            yield from self._of_state(record, expert, part, index, weight, gram)
        if reads and plan.base is not None:
            plan.base.release(source.name, expert if record.experts else None)

    def _of_state(
        self,
        record: TensorRecord,
        expert: int,
        part: str,
        index: int,
        weight: torch.Tensor | None,
        gram: GramOfWeight | None,
    ) -> Iterator[tuple[tuple[str, int], Measurement]]:
        state = self.plan.states[index]
        began = time.perf_counter()
        factors = state.factors(record.name)
        found: Measured | None
        if factors is not None and not state.needs_weight(record.name):
            finite = bool(torch.isfinite(factors.left).all() and torch.isfinite(factors.right).all())
            found = self._from_factors(record, part, factors, weight, gram) if finite else None
        elif record.fault is not None or state.fault_of(record.name) is not None:
            found = None
        else:
            found = self._dense(record, expert, state, factors, weight, gram)
        seconds = time.perf_counter() - began
        faulty = record.fault is not None or state.fault_of(record.name) is not None
        row = self._row(record, part, "delta", state.where.step, seconds) | {"dtype": state.dtype_of(record.name)}
        if found is None:
            yield ("delta", index), self._measurement(("delta", index), record, part, row, None, None, faulty)
        else:
            yield (
                ("delta", index),
                self._measurement(("delta", index), record, part, row, found.columns, found.spectrum),
            )
        yield from self._in_metrics(record, part, index)
        if ("merged", index) not in self.requests:
            return
        row = self._row(record, part, "merged", state.where.step, 0.0)
        if found is None or found.merged is None:
            yield ("merged", index), self._measurement(("merged", index), record, part, row, None, None, faulty)
            return
        spectrum = rows.gram_spectrum(found.merged.sigma, found.merged.error_bound, record.rows, record.columns)
        columns = self._summary(record, spectrum, weight)
        yield ("merged", index), self._measurement(("merged", index), record, part, row, columns, spectrum)

    def _in_metrics(self, record: TensorRecord, part: str, index: int) -> Iterator[tuple[tuple[str, int], Measurement]]:
        """The change in AdamW's metrics, where the state's optimizer left second moments of this weight."""
        state = self.plan.states[index]
        name = state.names[record.name]
        if name not in state.moments:
            return
        for quantity in POWERS:
            began = time.perf_counter()
            found = weighed(state, name, quantity)
            row = self._row(record, part, quantity, state.where.step, time.perf_counter() - began)
            row |= {"dtype": state.dtype_of(record.name)}
            columns, spectrum = found if found is not None else (None, None)
            yield (quantity, index), self._measurement((quantity, index), record, part, row, columns, spectrum)

    def _from_factors(
        self, record: TensorRecord, part: str, factors: Factors, weight: torch.Tensor | None, gram: GramOfWeight | None
    ) -> Measured:
        """A change that is held in factors."""
        leading = None if gram is not None else self.known.leading(record.name, part, self.plan.options.directions)
        wanted = gram is not None or leading is not None
        found = factor_spectrum(factors.left, factors.right, factors.scale, vectors=wanted)
        floor = factor_noise_floor(factors.left, factors.right, factors.scale)
        columns = {"method": found.method} | rows.low_rank_columns(found, factors.allotted_rank, floor)
        if gram is None or weight is None:
            norm = self.known.norms.get((record.name, part), 0.0)
            columns |= {"relative_frobenius": found.frobenius / norm} if norm > 0 else {}
            columns |= rows.overlap_columns(found, leading, floor) if leading is not None else {}
            return Measured(columns, found)
        columns |= self._beside(found, weight, gram, floor)
        merged = merged_spectrum(gram, weight, factors.left, factors.right, factors.scale)
        return Measured(columns | rows.intruder_columns(merged), found, merged)

    def _dense(
        self,
        record: TensorRecord,
        expert: int,
        state: State,
        factors: Factors | None,
        weight: torch.Tensor | None,
        gram: GramOfWeight | None,
    ) -> Measured | None:
        """A change of full rank: DoRA, LoftQ, a whole module, or the difference of two checkpoints.

        None where the base (weight is None) or the state holds NaN or infinity.
        """
        if weight is None:
            return None
        tuned = state.merged(record, weight, expert)
        if not torch.isfinite(tuned).all():
            return None
        columns: dict[str, Any] = {}
        floor = 0.0
        if state.checkpoint is not None:
            noise = rounding_floor(weight, tuned)
            floor = noise.edge
            columns = {"share_unchanged": noise.share_unchanged}
        difference = tuned.float() - weight.float()
        vectors = self.plan.options.directions if gram is not None else 0
        found = spectra_of(difference, device=self.device, vectors=vectors)["whole"]
        if found.status != "ok":
            return None  # a difference that overflows float32
        blocks = self._blocks(record, difference)
        allotted = factors.allotted_rank if factors is not None else None
        columns |= {"method": found.method} | rows.full_rank_columns(found, allotted, floor, blocks)
        norm = float(torch.linalg.matrix_norm(weight.float()))
        columns |= {"relative_frobenius": found.frobenius / norm} if norm > 0 else {}
        merged = None
        if gram is not None:
            columns |= self._beside(found, weight, gram, floor)
            merged = merged_spectrum_dense(gram, weight, tuned)
            columns |= rows.intruder_columns(merged)
        state.release(record, expert)
        return Measured(columns, found, merged)

    def _beside(self, delta: Spectrum, weight: torch.Tensor, gram: GramOfWeight, floor: float) -> dict[str, Any]:
        bases = rows.leading_of_weight(gram, weight, self.plan.options.directions)
        norm = float(torch.linalg.vector_norm(torch.from_numpy(gram.sigma)))
        relative = {"relative_frobenius": delta.frobenius / norm} if norm > 0 else {}
        return relative | rows.against_base_columns(delta, weight, bases, floor)

    def _blocks(self, record: TensorRecord, weight: torch.Tensor | None) -> list[NoiseBlock]:
        """Heights and scales of the parts of a fused matrix; none where it is not one, or no weight was read."""
        return noise_blocks(weight, record) if weight is not None else []

    def _summary(self, record: TensorRecord, spectrum: Spectrum, weight: torch.Tensor | None) -> dict[str, Any]:
        columns = summarize_spectrum(spectrum, blocks=self._blocks(record, weight))
        return {"method": spectrum.method} | rows.known(dict(columns))

    def _of_weight(
        self, record: TensorRecord, part: str, weight: torch.Tensor | None, gram: GramOfWeight | None, seconds: float
    ) -> Measurement:
        row = self._row(record, part, "weight", None, seconds)
        if gram is None:
            return self._measurement(("weight", 0), record, part, row, None, None, record.fault is not None)
        spectrum = rows.gram_spectrum(gram.sigma, gram.error_bound, record.rows, record.columns)
        return self._measurement(("weight", 0), record, part, row, self._summary(record, spectrum, weight), spectrum)

    def _row(self, record: TensorRecord, part: str, quantity: str, step: int | None, seconds: float) -> dict[str, Any]:
        return self.identity.row(record, part, record.rows, seconds, "ok", quantity, step)

    def _measurement(
        self,
        key: tuple[str, int],
        record: TensorRecord,
        part: str,
        row: dict[str, Any],
        columns: dict[str, Any] | None,
        spectrum: Spectrum | None,
        faulty: bool = False,
    ) -> Measurement:
        """One row; without columns it says that the weight cannot be read, or that something in it is not finite."""
        request = self.requests[key]
        row |= columns if columns is not None else {"status": "unreadable" if faulty else "nonfinite"}
        sigma = {} if spectrum is None else {part: (spectrum.sigma, spectrum.error_bound)}
        position = self.identity.positions[record.name]
        return Measurement("spectrum", request.quantity, request.step, record.name, position, [row], sigma)

    def _check_unchanged(self, name: str) -> None:
        """See that what was read of a weight is still there. Raises CheckpointError."""
        if self.plan.base is not None and self.plan.reads(name):
            self.plan.base.check_unchanged(self.plan.sources.get(name, name))
        for state in self.plan.states:
            state.check_unchanged(name)
