"""One matrix in, its measurements out: the rows, spectra and histograms that the store keeps."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from glmspectra.spectra import NoiseBlock, distribution_of, entry_scales, read_values, spectra_of, summarize_spectra
from glmspectra.store import Measurement
from glmspectra.sweep.options import SweepOptions

if TYPE_CHECKING:
    from glmspectra.checkpoint import TensorRecord


@dataclass(frozen=True)
class Identity:
    """Which checkpoint the rows are about; positions: name of a tensor -> its place in depth order."""

    checkpoint: str
    fingerprint: str
    positions: Mapping[str, int]

    def row(self, record: "TensorRecord", part: str, rows: int, seconds: float, status: str) -> dict[str, Any]:
        """The identity columns of one part of one matrix."""
        return {
            "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint,
            "quantity": "weight",
            "step": None,
            "name": record.name,
            "layer": record.layer,
            "matrix": record.matrix,
            "part": part,
            "rows": rows,
            "cols": record.shape[1],
            "dtype": record.quantization or record.dtype,
            "seconds": seconds,
            "status": status,
        }


def part_slices(record: "TensorRecord", options: SweepOptions) -> dict[str, slice]:
    """Part name -> its rows, 'whole' first; the heads too where they are asked for."""
    split: bool | str = "heads" if options.split == "heads" else options.split == "parts"
    return {part.name: slice(part.row_start, part.row_stop) for part in record.parts(split)}


Vectors = dict[str, tuple[np.ndarray, np.ndarray]]


def begin_values(
    weight: torch.Tensor, record: "TensorRecord", identity: Identity, options: SweepOptions
) -> Callable[[], Measurement]:
    """Read the value distribution of every part of `weight` (rows, cols) on its device.

    What is returned gives the measurement when called, from any thread, and holds the weight no more: it is the
    processor's work. A part with NaN or Inf has the status 'nonfinite'; its columns but the shares describe the finite
    values.
    """
    start = time.perf_counter()
    parts = part_slices(record, options)
    tallies = read_values(weight, _without_whole(parts))
    reading = time.perf_counter() - start

    def finish() -> Measurement:
        start = time.perf_counter()
        found = {part: distribution_of(tally) for part, tally in tallies.items()}
        seconds = (reading + time.perf_counter() - start) / len(parts)
        rows, histograms = [], {}
        for part, rows_of_part in parts.items():
            distribution = found[part]
            height = rows_of_part.stop - rows_of_part.start
            identity_columns = identity.row(record, part, height, seconds, distribution.status)
            rows.append({**identity_columns, **distribution.columns})
            edges = np.append(distribution.bin_left, distribution.bin_right[-1])
            histograms[part] = (edges, distribution.counts)
        position = identity.positions[record.name]
        return Measurement("values", "weight", None, record.name, position, rows, histograms=histograms)

    return finish


def begin_spectrum(
    weight: torch.Tensor, record: "TensorRecord", identity: Identity, options: SweepOptions
) -> Callable[[], tuple[Measurement, Vectors]]:
    """Compute the spectrum of every part of `weight` (rows, cols) on its device.

    What is returned summarises them when called, like that of `begin_values`, and gives the measurement and the (left,
    right) vectors of each part where asked for. A part with NaN or Inf has the status 'nonfinite' and no spectrum; the
    others are measured.
    """
    start = time.perf_counter()
    parts = part_slices(record, options)
    found = spectra_of(
        weight,
        _without_whole(parts),
        rtol=options.rtol,
        method=cast(Literal["exact", "topk"], options.method),
        k=options.top_k,
        device=weight.device,
        vectors=options.vectors,
    )
    # Parts of unequal scale would pass for spikes of the whole: where they are not measured, their scales are.
    blocks = noise_blocks(weight, record) if len(parts) == 1 and options.method == "exact" else []
    computing = time.perf_counter() - start

    def finish() -> tuple[Measurement, Vectors]:
        start = time.perf_counter()
        summaries = summarize_spectra(found, blocks=blocks)
        seconds = (computing + time.perf_counter() - start) / len(parts)
        rows, sigmas, vectors = [], {}, {}
        for part in parts:
            spectrum = found[part]
            row = identity.row(record, part, spectrum.rows, seconds, spectrum.status)
            row["method"] = spectrum.method
            if spectrum.status == "ok":
                row |= summaries[part]
                sigmas[part] = (spectrum.sigma, spectrum.error_bound)
            if spectrum.vectors is not None:
                vectors[part] = (spectrum.vectors.left, spectrum.vectors.right)
            rows.append(row)
        position = identity.positions[record.name]
        return Measurement("spectrum", "weight", None, record.name, position, rows, sigmas), vectors

    return finish


def noise_blocks(weight: torch.Tensor, record: "TensorRecord") -> list[NoiseBlock]:
    """Heights and scales of the parts of a fused matrix of shape (rows, cols); none where it is not fused."""
    fused = [slice(part.row_start, part.row_stop) for part in record.parts(True) if part.name != "whole"]
    return entry_scales(weight, fused)


def _without_whole(parts: Mapping[str, slice]) -> dict[str, slice]:
    """What `spectra` takes as parts; it measures the whole in any case."""
    return {part: rows for part, rows in parts.items() if part != "whole"}
