"""Spectra and value distributions of arrays, files, folders and live models, as pandas tables."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from glmspectra.checkpoint import Checkpoint, open_checkpoint, select
from glmspectra.checkpoint.live import LiveCheckpoint
from glmspectra.device import choose_device
from glmspectra.embedded import locate_model
from glmspectra.errors import RequestError
from glmspectra.spectra import spectra_of, summarize_spectrum
from glmspectra.store import Run, RunStore, read_run
from glmspectra.sweep import SweepOptions, source_of, sweep
from glmspectra.sweep.delta import measure_change
from glmspectra.sweep.delta_plan import DeltaOptions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["MatrixSpectrum", "compare", "delta", "read_run", "spectrum", "svd", "values"]


@dataclass(frozen=True)
class MatrixSpectrum:
    """The spectrum of one matrix.

    Attributes:
        shape: (rows, cols) of the matrix.
        sigma: Singular values, descending, float64, shape (min(rows, cols),).
        error_bound: Bound of the absolute error of each.
        measures: Stable rank, effective rank, bulk edge, power-law exponent ... by column name of `matrices`.
        left, right: The leading singular vectors as columns, where asked for; else None.
    """

    shape: tuple[int, int]
    sigma: NDArray[np.float64]
    error_bound: NDArray[np.float64]
    measures: pd.Series[Any]
    left: NDArray[np.float32] | None = field(default=None, repr=False)
    right: NDArray[np.float32] | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        """The measures as a table, for Jupyter."""
        frame = self.measures.to_frame(f"{self.shape[0]} x {self.shape[1]}")
        return str(frame.to_html(float_format=lambda number: f"{number:.6g}"))


def spectrum(
    array: ArrayLike | torch.Tensor, *, rtol: float = 1e-4, vectors: int = 0, device: str = "auto"
) -> MatrixSpectrum:
    """Every singular value of one matrix with an error bound, and all measures of its spectrum.

    Args:
        array: Two-dimensional and floating point: a numpy array, a torch tensor, or nested lists.
        rtol: A value counts as found when its error bound is at most `rtol` times itself, or 1e-10 of the largest.
        vectors: How many leading singular vectors to return.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        RequestError: The array is not a finite, non-empty matrix of floating-point numbers.
    """
    weight = array.detach() if isinstance(array, torch.Tensor) else torch.as_tensor(np.asarray(array))
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise RequestError(
            f"a spectrum needs a non-empty floating-point matrix; this one is {weight.dtype} of shape "
            f"{tuple(weight.shape)}."
        )
    found = spectra_of(weight, rtol=rtol, device=choose_device(device), vectors=vectors)["whole"]
    if found.status != "ok":
        raise RequestError("the matrix holds NaN or infinity and has no spectrum.")
    pair = (found.vectors.left, found.vectors.right) if found.vectors is not None else (None, None)
    measures = pd.Series(summarize_spectrum(found), dtype=float)
    return MatrixSpectrum((found.rows, found.cols), found.sigma, found.error_bound, measures, *pair)


def svd(
    model: str | Path | torch.nn.Module,
    *,
    layers: str = "all",
    matrices: str | Sequence[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    **options: Any,
) -> Run:
    """Spectra (and value distributions) of the selected matrices, as `glmspectra svd` measures them.

    Args:
        model: A folder or file of weights, "nano", or a live torch module (its parameters as they are now).
        layers: "all", or numbers and ranges: "0-3,7,-1".
        matrices: Short names ("query_key_value") joined by commas or as a list; "all"; None: those of the layers.
        include: Globs over full names; only what matches one is taken.
        exclude: Globs over full names; what matches one is left out.
        out: Where `param_matrix/<run>` is kept, and gone on with after a stop; None: nothing is left on the disk.
        **options: Of `SweepOptions`: values, split, method, top_k, rtol, vectors, device, fresh, quiet (True).

    Returns:
        The run: `matrices`, `singular_values` and `histograms` as pandas frames, each with a column `checkpoint`.

    Raises:
        RequestError: Nothing is selected, or an option is wrong.
        CheckpointError: The weights cannot be read.
    """
    chosen = SweepOptions(**{"quiet": True, **options})
    with _opened(model) as checkpoint:
        records = select(checkpoint, layers, matrices, tuple(include), tuple(exclude))
        if out is not None:
            store = RunStore.of(Path(out) / "param_matrix", source_of(checkpoint))
            sweep(checkpoint, records, chosen, store)
            return read_run(store.folder)
        with tempfile.TemporaryDirectory(prefix="glmspectra-") as folder:
            store = RunStore.of(Path(folder), source_of(checkpoint))
            sweep(checkpoint, records, chosen, store)
            return read_run(store.folder)


def values(model: str | Path | torch.nn.Module, **options: Any) -> Run:
    """Value distributions alone, as `glmspectra values` measures them; arguments as of `svd`."""
    return svd(model, **{**options, "values": True, "spectrum": False})


def delta(
    tuned: str | Path,
    base: str | Path | None = None,
    *,
    out: str | Path | None = None,
    **options: Any,
) -> Run:
    """Spectra of what training changed, as `glmspectra delta` measures them.

    Args:
        tuned: An adapter, a training's folder with its checkpoint-N, or a tuned model.
        base: The base model; may be left out for an adapter that needs none.
        out: As of `svd`.
        **options: Of `DeltaOptions`: against_base, directions, initial, layers, matrices, include, exclude, device.

    Returns:
        The run; rows of quantity "delta", one for each matrix and step.

    Raises:
        RequestError: The base is needed and absent, or nothing is selected.
        CheckpointError: Base and tuned model do not fit, or cannot be read.
    """
    asked = DeltaOptions(**{"quiet": True, **options})
    origin = None if base is None else locate_model(base, "base")
    if out is not None:
        return measure_change(origin, Path(tuned), Path(out) / "param_matrix", asked)[0]
    with tempfile.TemporaryDirectory(prefix="glmspectra-") as folder:
        return measure_change(origin, Path(tuned), Path(folder), asked)[0]


def compare(run: Run, other: Run, column: str = "stable_rank") -> pd.DataFrame:
    """One column of two runs side by side.

    Layers are matched by relative depth (layer / last layer), so that models of different depth can be laid over each
    other; matrices by their short name and part.

    Args:
        run: The first run.
        other: The second.
        column: A numeric column of `matrices`.

    Returns:
        One row a matrix of the deeper run: matrix, part, depth (0 to 1), the column of both by checkpoint name, and
        `difference` (other minus first).

    Raises:
        RequestError: A run has no such column.
    """
    frames = [_by_depth(each, column) for each in (run, other)]
    names = [each.matrices["checkpoint"].iloc[0] for each in (run, other)]
    if names[0] == names[1]:
        names = [f"{names[0]} (1)", f"{names[1]} (2)"]
    deep, shallow = (0, 1) if frames[0]["depth"].nunique() >= frames[1]["depth"].nunique() else (1, 0)
    joined = pd.merge_asof(
        frames[deep].rename(columns={column: names[deep]}).sort_values("depth"),
        frames[shallow].rename(columns={column: names[shallow]}).sort_values("depth"),
        on="depth",
        by=["matrix", "part"],
        direction="nearest",
    )
    joined["difference"] = joined[names[1]] - joined[names[0]]
    return joined[["matrix", "part", "depth", *names, "difference"]].sort_values(["matrix", "part", "depth"])


def _by_depth(run: Run, column: str) -> pd.DataFrame:
    table = run.matrices
    if column not in table.columns or not pd.api.types.is_numeric_dtype(table[column]):
        raise RequestError(f"{run.name} has no numeric column {column}; it has {', '.join(table.columns)}.")
    rows = table[table["layer"].notna() & table[column].notna()]
    last = max(int(rows["layer"].max()), 1) if len(rows) else 1
    return rows[["matrix", "part", column]].assign(depth=rows["layer"].astype(float) / last)


def _opened(model: str | Path | torch.nn.Module) -> Checkpoint:
    if isinstance(model, torch.nn.Module):
        return LiveCheckpoint(model)
    return open_checkpoint(locate_model(model, "model"))
