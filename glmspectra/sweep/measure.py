"""One matrix in, its measurements out: the rows, spectra and histograms that the store keeps."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from glmspectra.spectra import (
    NoiseBlock,
    SpectraBatch,
    Spectrum,
    distribution_of,
    entry_scales,
    read_values,
    spectra_of,
    summarize_spectra,
)
from glmspectra.spectra.spectrum import WHOLE
from glmspectra.spectra.tally import within_float32
from glmspectra.store import Measurement
from glmspectra.sweep.options import SweepOptions

if TYPE_CHECKING:
    from glmspectra.checkpoint import Part, TensorRecord


@dataclass(frozen=True)
class Identity:
    """Which checkpoint the rows are about; positions: name of a tensor -> its index in depth order."""

    checkpoint: str
    fingerprint: str
    positions: Mapping[str, int]

    def row(
        self,
        record: "TensorRecord",
        part: str,
        rows: int,
        seconds: float,
        status: str,
        quantity: str = "weight",
        step: int | None = None,
    ) -> dict[str, Any]:
        """The identity columns of one part of one matrix: the one place that knows them."""
        return {
            "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint,
            "quantity": quantity,
            "step": step,
            "name": record.name,
            "layer": record.layer,
            "matrix": record.matrix,
            "part": part,
            "rows": rows,
            "cols": record.columns,
            "dtype": record.quantization or record.dtype,
            "seconds": seconds,
            "status": status,
        }


Vectors = dict[str, tuple[np.ndarray, np.ndarray]]


def part_slices(record: "TensorRecord", options: SweepOptions) -> dict[str, slice]:
    """Part -> its rows within a matrix of `record`, 'whole' first; the heads too where they are asked for."""
    inner = {part.name: slice(part.row_start, part.row_stop) for part in record.inner_parts(options.split)}
    return {WHOLE: slice(0, record.rows)} | inner


def _label(part: str, matrix: "Part") -> str:
    """The part's name in the tables: its own, or that of an expert and of the part inside it."""
    if matrix.name == WHOLE:
        return part
    return matrix.name if part == WHOLE else f"{matrix.name}.{part}"


def begin_values(
    weight: torch.Tensor, record: "TensorRecord", matrix: "Part", identity: Identity, options: SweepOptions
) -> Callable[[], tuple[Measurement, Vectors]]:
    """Read the value distribution of every part of `weight` (rows, cols), a matrix of the record, on its device.

    What is returned gives the measurement (and no vectors) when called, from any thread, and holds the weight no more:
    it is the processor's work. A part with NaN or Inf has the status 'nonfinite'; its columns but the shares describe
    the finite values.
    """
    start = time.perf_counter()
    parts = part_slices(record, options)
    tallies = read_values(weight, _without_whole(parts))
    reading = time.perf_counter() - start

    def finish() -> tuple[Measurement, Vectors]:
        start = time.perf_counter()
        found = {part: distribution_of(tally) for part, tally in tallies.items()}
        seconds = (reading + time.perf_counter() - start) / len(parts)
        rows, histograms = [], {}
        for part, rows_of_part in parts.items():
            distribution = found[part]
            height = rows_of_part.stop - rows_of_part.start
            label = _label(part, matrix)
            identity_columns = identity.row(record, label, height, seconds, distribution.status)
            rows.append({**identity_columns, **distribution.columns})
            edges = np.append(distribution.bin_left, distribution.bin_right[-1])
            histograms[label] = (edges, distribution.counts)
        position = identity.positions[record.name]
        return Measurement("values", "weight", None, record.name, position, rows, histograms=histograms), {}

    return finish


def begin_spectrum(
    weight: torch.Tensor, record: "TensorRecord", matrix: "Part", identity: Identity, options: SweepOptions
) -> Callable[[], tuple[Measurement, Vectors]]:
    """Compute the spectrum of every part of `weight` (rows, cols), a matrix of the record, on its device.

    What is returned summarizes them when called, like that of `begin_values`, and gives the measurement and the (left,
    right) vectors of each part where asked for. A part with NaN, Inf or numbers beyond float32 has the
    status 'nonfinite' and no spectrum; the others are measured.
    """
    start = time.perf_counter()
    weight = within_float32(weight)
    found = spectra_of(
        weight,
        _without_whole(part_slices(record, options)),
        rtol=options.rtol,
        method=cast(Literal["exact", "topk"], options.method),
        k=options.top_k,
        device=weight.device,
        vectors=options.vectors,
    )
    blocks = _blocks_to_compare(weight, record, options)
    computing = time.perf_counter() - start
    return partial(_summarized, found, blocks, record, matrix, identity, options, computing)


class SpectraTogether:
    """The same of several matrices on one CUDA device, whose eigenvalues are computed together; exact spectra only."""

    def __init__(self, identity: Identity, options: SweepOptions):
        self._identity, self._options = identity, options
        self._batch = SpectraBatch(options.rtol, options.vectors)
        self._matrices: list[tuple[TensorRecord, Part, list[NoiseBlock]]] = []
        self._seconds = 0.0

    def add(self, weight: torch.Tensor, record: "TensorRecord", matrix: "Part") -> None:
        """Make the Gram matrices of every part of `weight` (rows, cols)."""
        start = time.perf_counter()
        weight = within_float32(weight)
        self._batch.add(weight, _without_whole(part_slices(record, self._options)))
        self._matrices.append((record, matrix, _blocks_to_compare(weight, record, self._options)))
        self._seconds += time.perf_counter() - start

    def solve(self) -> list[Callable[[], tuple[Measurement, Vectors]]]:
        """Compute the spectra; what `begin_spectrum` returns for each matrix, in the order of adding."""
        start = time.perf_counter()
        spectra = self._batch.spectra()
        seconds = (self._seconds + time.perf_counter() - start) / max(1, len(spectra))
        return [
            partial(_summarized, found, blocks, record, matrix, self._identity, self._options, seconds)
            for found, (record, matrix, blocks) in zip(spectra, self._matrices, strict=True)
        ]


def _summarized(
    found: dict[str, Spectrum],
    blocks: list[NoiseBlock],
    record: "TensorRecord",
    matrix: "Part",
    identity: Identity,
    options: SweepOptions,
    computing: float,
) -> tuple[Measurement, Vectors]:
    start = time.perf_counter()
    summaries = summarize_spectra(found, blocks=blocks)
    seconds = (computing + time.perf_counter() - start) / len(found)
    rows, sigmas, vectors = [], {}, {}
    for part in part_slices(record, options):
        spectrum, label = found[part], _label(part, matrix)
        row = identity.row(record, label, spectrum.rows, seconds, spectrum.status)
        row["method"] = spectrum.method
        if spectrum.status == "ok":
            row |= summaries[part]
            sigmas[label] = (spectrum.sigma, spectrum.error_bound)
        if spectrum.vectors is not None:
            vectors[label] = (spectrum.vectors.left, spectrum.vectors.right)
        rows.append(row)
    position = identity.positions[record.name]
    return Measurement("spectrum", "weight", None, record.name, position, rows, sigmas), vectors


def _blocks_to_compare(weight: torch.Tensor, record: "TensorRecord", options: SweepOptions) -> list[NoiseBlock]:
    # Parts of unequal scale would pass for spikes of the whole: where they are not measured, their scales are.
    alone = len(part_slices(record, options)) == 1
    return noise_blocks(weight, record) if alone and options.method == "exact" else []


def unreadable(kind: str, record: "TensorRecord", identity: Identity) -> Measurement:
    """The row of a weight that cannot be read (`record.fault` says why): its identity, and no number."""
    row = identity.row(record, WHOLE, record.rows, 0.0, "unreadable")
    return Measurement(kind, "weight", None, record.name, identity.positions[record.name], [row])


def noise_blocks(weight: torch.Tensor, record: "TensorRecord") -> list[NoiseBlock]:
    """Heights and scales of the parts of a fused matrix of shape (rows, cols); none where it is not fused."""
    fused = [slice(part.row_start, part.row_stop) for part in record.fused_parts]
    return entry_scales(weight, fused)


def _without_whole(parts: Mapping[str, slice]) -> dict[str, slice]:
    """What `spectra` takes as parts; it measures the whole in any case."""
    return {part: rows for part, rows in parts.items() if part != WHOLE}
