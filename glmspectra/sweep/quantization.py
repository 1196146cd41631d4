"""Spectra of what quantization leaves out, W - Q(W): rows of quantity 'quant_error' beside those of W itself."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from glmspectra.checkpoint import Checkpoint, TensorRecord
from glmspectra.checkpoint.formats.round_trip import QUANTIZATIONS, quantized_copy
from glmspectra.device import choose_device
from glmspectra.errors import RequestError
from glmspectra.spectra import spectra_of, summarize_spectrum
from glmspectra.store import Measurement, Request, RunStore
from glmspectra.sweep.cost import spectrum_cost
from glmspectra.sweep.delta_rows import known
from glmspectra.sweep.gathering import Gathering
from glmspectra.sweep.measure import Identity
from glmspectra.sweep.progress import SweepProgress
from glmspectra.sweep.readahead import read_ahead


def sweep_quantization_error(
    checkpoint: Checkpoint,
    records: Sequence[TensorRecord],
    quantization: str,
    store: RunStore,
    top_k: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """The top_k singular values of W - Q(W) of each matrix into `store` (the run of the checkpoint itself).

    quantization: 'nf4', 'fp4', 'int8' or 'int4' (see `checkpoint.round_trip`). What is finished is reused. Returns
    the manifest. Raises RequestError for an unknown one or a base that is quantized already.
    """
    if quantization not in QUANTIZATIONS:
        raise RequestError(f"--quantized {quantization}: choose one of {', '.join(QUANTIZATIONS)}.")
    records = [record for record in records if not record.experts]  # a rank is chosen for a layer, not for an expert
    stored_so = [record.name for record in records if record.quantization]
    if stored_so:
        raise RequestError(
            f"{checkpoint.path}: {stored_so[0]} is stored quantized already; what that left out is lost."
        )
    names = tuple(record.name for record in records)
    request = Request("spectrum", names, {"form": quantization, "method": "topk", "top_k": top_k}, "quant_error")
    where = str(choose_device(device))
    todo = set(store.begin([request], lambda: where)[request.key])
    work = [record for record in records if record.name in todo]
    positions = {name: position for position, name in enumerate(checkpoint.tensors)}
    identity = Identity(checkpoint.name, checkpoint.fingerprint, positions)
    costs = {record.name: spectrum_cost([(record.rows, record.columns)]) / 10 for record in work}
    with SweepProgress(len(work), sum(costs.values()), quiet, f"W - {quantization}(W)") as progress:
        gathering = Gathering(store, checkpoint.check_unchanged)
        for record, matrix, weight in read_ahead(checkpoint, work):
            start = time.perf_counter()
            error = weight.float() - quantized_copy(weight, quantization)
            gathering.take(
                request, _measurement(identity, record, matrix.name, error, quantization, top_k, where, start)
            )
            if matrix == record.matrix_parts[-1]:
                gathering.write(record.name)
                progress.advance(record.nbytes, costs[record.name])
    return store.merge()


def _measurement(
    identity: Identity,
    record: TensorRecord,
    part: str,
    error: torch.Tensor,
    quantization: str,
    top_k: int,
    device: str,
    start: float,
) -> Measurement:
    spectrum = spectra_of(error, method="topk", k=min(top_k, record.rows, record.columns), device=device)["whole"]
    seconds = time.perf_counter() - start
    row = identity.row(record, part, record.rows, seconds, spectrum.status, "quant_error")
    row |= {"dtype": quantization, "method": spectrum.method}
    position = identity.positions[record.name]
    if spectrum.status != "ok":
        return Measurement("spectrum", "quant_error", None, record.name, position, [row])
    row |= known(dict(summarize_spectrum(spectrum)))
    sigma = {part: (spectrum.sigma, spectrum.error_bound)}
    return Measurement("spectrum", "quant_error", None, record.name, position, [row], sigma)
