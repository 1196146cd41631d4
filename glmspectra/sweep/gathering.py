"""Measurements of a tensor's matrices, kept until all of them are there and then written as one.

A weight has one matrix; a stack of experts has one an expert, each read and measured alone, and one row each in the
part file of the tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from glmspectra.store import Measurement, Request, RunStore
from glmspectra.store.vectors import Vectors


class Gathering:
    """Takes measurements in the order of the matrices and writes them by tensor."""

    def __init__(self, store: RunStore, check_unchanged: Callable[[str], None]):
        """check_unchanged: called with the tensor's name before it is written; raises when its file was replaced."""
        self._store, self._check_unchanged = store, check_unchanged
        self._measured: dict[str, dict[str, tuple[Request, list[tuple[Measurement, Vectors]]]]] = {}

    def take(self, request: Request, measurement: Measurement, vectors: Vectors | None = None) -> None:
        """Keep the measurement of one matrix."""
        of_tensor = self._measured.setdefault(measurement.name, {})
        of_tensor.setdefault(request.key, (request, []))[1].append((measurement, vectors or {}))

    def write(self, name: str) -> None:
        """Write what was measured of the tensor `name`, all its matrices in one measurement a request."""
        of_tensor = self._measured.pop(name, {})
        if of_tensor:
            self._check_unchanged(name)
        for request, measured in of_tensor.values():
            self._store.write(request, *_join(measured))


def _join(measured: Sequence[tuple[Measurement, Vectors]]) -> tuple[Measurement, Vectors]:
    first, vectors = measured[0][0], dict(measured[0][1])
    rows, sigmas, histograms = list(first.rows), dict(first.singular_values), dict(first.histograms)
    for measurement, more in measured[1:]:
        rows += measurement.rows
        sigmas |= measurement.singular_values
        histograms |= measurement.histograms
        vectors |= more
    return replace(first, rows=rows, singular_values=sigmas, histograms=histograms), vectors
