"""Spectra of a weight and of its parts: the methods, and when each is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra.batched_eigenvalues import LARGEST_BATCH, batched_eigenvalues
from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.bounds import (
    accepted,
    backward_error,
    sigma_from_eigenvalues,
)
from glmspectra.spectra.eigenvalues import symmetric_eigenvalues
from glmspectra.spectra.gram import diagonal_is_finite, gram_matrices
from glmspectra.spectra.krylov import leading_triplets, topk_values
from glmspectra.spectra.refine import LARGEST_REFINED_SHARE, refine_small_end, triangular_factor
from glmspectra.spectra.spectrum import WHOLE, FloatArray, SingularVectors, Spectrum, nonfinite_spectrum
from glmspectra.spectra.transfer import to_device

# Residual, relative to sigma_i, to which singular vectors are iterated.
VECTOR_RTOL = 1e-8


def spectra_of(
    weight: torch.Tensor,
    parts: Mapping[str, slice] | None = None,
    *,
    rtol: float = 1e-4,
    method: Literal["exact", "topk"] = "exact",
    k: int = 64,
    device: str | torch.device = "cpu",
    vectors: int = 0,
) -> dict[str, Spectrum]:
    """Singular values of a weight ('whole') and of ranges of its rows, from one read.

    weight: 2-D tensor of shape (rows, cols), floating dtype, on any device, memory-mapped or not; not changed.
    parts: name -> slice of rows (step 1). 'whole' is always measured and need not be given.
    rtol: a value is accepted when its error bound is at most max(rtol * sigma_i, 1e-10 * sigma_1).
    method: 'exact' gives all min(rows, cols) values of each part; 'topk' the k largest, in less time only when k is
        small beside the smaller side.
    device: where to compute; the values are those of the CPU within error_bound.
    vectors: keep this many leading left and right singular vectors of each part.

    Returns one `Spectrum` for each name. A part that holds NaN or Inf has status 'nonfinite' and no values.
    Raises RequestError for a weight that is not 2-D and floating, an empty part, or a part outside the weight.
    """
    ranges = _checked_ranges(weight, parts)
    if not 0 < rtol < 1:
        raise RequestError(f"rtol is {rtol}; give a relative tolerance between 0 and 1, such as 1e-4.")
    if method not in ("exact", "topk"):
        raise RequestError(f"The method {method!r} is not known; choose exact or topk.")
    if method == "topk" and k < 1:
        raise RequestError(f"topk was asked for {k} singular values; ask for at least 1.")
    on_device = to_device(weight, torch.device(device))
    on_device, exponent = _scaled(on_device)
    if method == "exact":
        spectra = _exact_spectra(on_device, ranges, rtol)
    else:
        spectra = {name: _topk_spectrum(on_device, bounds, k, rtol) for name, bounds in ranges.items()}
    return _finished(on_device, {name: spectra[name] for name in ranges}, exponent, vectors)


def singular_values(weight: torch.Tensor, *, rtol: float = 1e-4, device: str | torch.device = "cpu") -> Spectrum:
    """All singular values of one weight of shape (rows, cols); `spectra_of` without parts.

    >>> import torch
    >>> singular_values(torch.diag(torch.tensor([3.0, 1.0, 2.0]))).sigma.round(12).tolist()
    [3.0, 2.0, 1.0]
    """
    return spectra_of(weight, rtol=rtol, device=device)[WHOLE]


def _checked_ranges(weight: torch.Tensor, parts: Mapping[str, slice] | None) -> dict[str, tuple[int, int]]:
    if weight.ndim != 2 or not weight.is_floating_point() or 0 in weight.shape:
        raise RequestError(
            f"Singular values need a non-empty 2-D floating-point weight; this one is {weight.dtype} of shape "
            f"{tuple(weight.shape)}."
        )
    rows = weight.shape[0]
    ranges = {WHOLE: (0, rows)}
    for name, rows_of_part in (parts or {}).items():
        start, stop, step = rows_of_part.indices(rows)
        inside = rows_of_part.stop is None or rows_of_part.stop <= rows
        if step != 1 or start >= stop or not inside:
            raise RequestError(f"Part {name!r} asks for rows {rows_of_part} of a weight that has {rows} rows.")
        ranges[name] = (start, stop)
    return ranges


def _scaled(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The weight and the exponent of the power of two that it was divided by.

    Divided is a float64 weight whose squares could leave the range of float64.
    """
    if weight.dtype != torch.float64:
        return weight, 0
    largest = float(weight.abs().max())
    if not np.isfinite(largest) or largest == 0 or 1e-100 < largest < 1e100:
        return weight, 0
    exponent = int(np.frexp(largest)[1])
    return torch.ldexp(weight, torch.tensor(-exponent, device=weight.device)), exponent


def _finished(weight: torch.Tensor, spectra: dict[str, Spectrum], exponent: int, vectors: int) -> dict[str, Spectrum]:
    """`spectra` of the `weight` that `_scaled` gave, with vectors where asked for, of the weight as it was."""
    if vectors:
        spectra = {name: _with_vectors(weight, spectrum, vectors) for name, spectrum in spectra.items()}
    if exponent:
        spectra = {name: _rescaled(spectrum, 2.0**exponent) for name, spectrum in spectra.items()}
    return spectra


def _rescaled(spectrum: Spectrum, factor: float) -> Spectrum:
    vectors = spectrum.vectors and replace(spectrum.vectors, residual=spectrum.vectors.residual * factor)
    return replace(
        spectrum,
        sigma=spectrum.sigma * factor,
        error_bound=spectrum.error_bound * factor,
        frobenius=spectrum.frobenius * factor,
        vectors=vectors,
    )


def _exact_spectra(weight: torch.Tensor, ranges: Mapping[str, tuple[int, int]], rtol: float) -> dict[str, Spectrum]:
    spectra = {}
    for name, gram in gram_matrices(weight, ranges):
        part = _Part(weight, ranges[name], gram)
        if part.finite:
            eigenvalues = symmetric_eigenvalues(gram)
            del gram
            spectra[name] = part.spectrum(eigenvalues, rtol)
        else:
            spectra[name] = part.nonfinite()
    return spectra


class _Part:
    """A range of rows of a weight whose Gram matrix is made and whose eigenvalues are to come."""

    def __init__(self, weight: torch.Tensor, bounds: tuple[int, int], gram: torch.Tensor):
        self.start, stop = bounds
        self.view = LongView(weight[self.start : stop])
        self.finite = diagonal_is_finite(gram)
        self.frobenius = float(gram.diagonal().sum().sqrt())

    def spectrum(self, eigenvalues: FloatArray, rtol: float) -> Spectrum:
        view = self.view
        sigma, bound = sigma_from_eigenvalues(eigenvalues, backward_error(view.long, view.short))
        sigma, bound, method = _secured(view, sigma, bound, rtol)
        rows, cols = view.weight.shape
        return Spectrum(sigma, bound, rows, cols, method, self.frobenius, self.start)

    def nonfinite(self) -> Spectrum:
        rows, cols = self.view.weight.shape
        return nonfinite_spectrum(rows, cols, self.start, "gram")


class SpectraBatch:
    """The exact spectra of several weights on one CUDA device, whose eigenvalues are computed together.

    `add` makes the Gram matrices of a weight and of its parts, which need not wait for each other; `spectra` solves
    them, batch by batch of one size, and gives what `spectra_of` gives for each weight, in the order of adding. The
    weights stay referenced until then, for those whose small end must be refined.
    """

    def __init__(self, rtol: float = 1e-4, vectors: int = 0):
        self.rtol, self.vectors = rtol, vectors
        self._weights: list[tuple[torch.Tensor, int, dict[str, tuple[int, int]]]] = []
        self._parts: dict[tuple[int, str], _Part] = {}
        self._grams: dict[int, dict[tuple[int, str], torch.Tensor]] = {}  # order -> (weight, part) -> Gram matrix

    def add(self, weight: torch.Tensor, parts: Mapping[str, slice] | None = None) -> None:
        """Take in a weight (rows, cols) on a CUDA device; arguments and errors are those of `spectra_of`."""
        ranges = _checked_ranges(weight, parts)
        weight, exponent = _scaled(weight)
        number = len(self._weights)
        self._weights.append((weight, exponent, ranges))
        for name, gram in gram_matrices(weight, ranges):
            part = self._parts[number, name] = _Part(weight, ranges[name], gram)
            if part.finite:
                self._grams.setdefault(gram.shape[0], {})[number, name] = gram

    def spectra(self) -> list[dict[str, Spectrum]]:
        """The spectra of each weight, 'whole' and parts; the batch holds nothing afterwards."""
        found: dict[tuple[int, str], Spectrum] = {}
        while self._grams:
            _, grams = self._grams.popitem()
            keys = list(grams)
            for start in range(0, len(keys), LARGEST_BATCH):
                batch = keys[start : start + LARGEST_BATCH]
                values = batched_eigenvalues([grams.pop(key) for key in batch])
                for key, eigenvalues in zip(batch, values, strict=True):
                    found[key] = self._parts.pop(key).spectrum(eigenvalues, self.rtol)
        found |= {key: part.nonfinite() for key, part in self._parts.items()}
        weights, self._weights, self._parts = self._weights, [], {}
        return [
            _finished(weight, {name: found[number, name] for name in ranges}, exponent, self.vectors)
            for number, (weight, exponent, ranges) in enumerate(weights)
        ]


def _secured(view: LongView, sigma: FloatArray, bound: FloatArray, rtol: float) -> tuple[FloatArray, FloatArray, str]:
    """Values from the Gram matrix where good enough, else refined, else from W itself: (sigma, bound, method)."""
    failing = int((~accepted(sigma, bound, rtol)).sum())
    if failing == 0:
        return sigma, bound, "gram"
    factor = triangular_factor(view)
    if failing <= max(8, LARGEST_REFINED_SHARE * sigma.size):
        refined = refine_small_end(view, factor, sigma, bound, rtol)
        if refined is not None:
            return *refined, "gram+refined"
    if factor.is_cuda:
        values = torch.linalg.svdvals(factor, driver="gesvd").cpu().numpy()
    else:
        values = np.linalg.svd(factor.numpy(), compute_uv=False)
    error = backward_error(view.long, view.short) * values[0]
    return values, np.full_like(values, error), "svd"


def _topk_spectrum(weight: torch.Tensor, bounds: tuple[int, int], k: int, rtol: float) -> Spectrum:
    start, stop = bounds
    view = LongView(weight[start:stop])
    squared_frobenius = sum(float(block.square().sum()) for _, _, block in view.blocks())
    if not np.isfinite(squared_frobenius):
        return nonfinite_spectrum(stop - start, weight.shape[1], start, "topk")
    sigma, bound = topk_values(view, k, rtol)
    return Spectrum(sigma, bound, stop - start, weight.shape[1], "topk", float(np.sqrt(squared_frobenius)), start)


def _with_vectors(weight: torch.Tensor, spectrum: Spectrum, count: int) -> Spectrum:
    if spectrum.status != "ok":
        return spectrum
    view = LongView(weight[spectrum.row_start : spectrum.row_start + spectrum.rows])
    _, residual, long_side, short_side = leading_triplets(view, count, VECTOR_RTOL)
    left, right = (long_side, short_side) if view.tall else (short_side, long_side)
    vectors = SingularVectors(left.cpu().numpy(), right.cpu().numpy(), residual)
    return replace(spectrum, vectors=vectors)
