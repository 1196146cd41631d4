"""Singular values of delta-W in AdamW's metric: rows beside those of delta-W, where a training left `optimizer.pt`.

quantity delta_adamw: ||D||^2 = sum_ij sqrt(V_ij) D_ij^2, a direction counts as AdamW on W itself would weigh it; the
fourth root of V on either side. delta_tempered: the eighth root of V on either side. V is the second moment of dL/dW.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from glmspectra.checkpoint import Checkpoint
from glmspectra.checkpoint.adapter.moments import optimizer_file, read_moments
from glmspectra.checkpoint.fingerprint import fingerprint_file
from glmspectra.errors import CheckpointError
from glmspectra.spectra import Spectrum
from glmspectra.spectra.lowrank import factor_noise_floor, factor_spectrum
from glmspectra.sweep import delta_rows as rows
from glmspectra.sweep.delta_states import State

POWERS = {"delta_adamw": 0.25, "delta_tempered": 0.125}  # quantity -> exponent of V on either side


def attach_moments(state: State, base: Checkpoint | None) -> Iterator[str]:
    """Read what the optimizer left beside a state's adapter; yields a note where it left something that is not read."""
    if state.adapter is None or (file := optimizer_file(state.where.path)) is None:
        return
    try:
        state.moments = read_moments(state.adapter, file, registered_order(state.adapter.names, base))
    except CheckpointError as error:
        yield f"AdamW's metric is left out of {state.where.path.name}: {error}"


def registered_order(names: Sequence[str], base: Checkpoint | None) -> list[str] | None:
    """Weights in the order in which the base's class in transformers registers its layers, built without weights.

    None where there is no base, transformers does not have its class, or that lacks one of the weights.
    """
    architectures = (base.config.get("architectures") or []) if base is not None else []
    if base is None or not architectures:
        return None
    import transformers

    try:
        config = transformers.AutoConfig.for_model(**base.config)
        with torch.device("meta"):
            model = getattr(transformers, str(architectures[0]))(config)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    wanted = set(names)
    order = [f"{name}.weight" for name, _ in model.named_modules() if f"{name}.weight" in wanted]
    return order if len(order) == len(wanted) else None


def weighed(state: State, name: str, quantity: str) -> tuple[dict[str, Any], Spectrum] | None:
    """Columns and singular values of one weight's change in a metric of POWERS.

    name: the adapter's. None where it holds what is not finite.
    """
    adapter, moments = state.adapter, state.moments[name]
    assert adapter is not None  # it has the moments
    change = adapter.change(name)  # as the layer multiplies, whatever the base stores
    if not (torch.isfinite(change.left).all() and torch.isfinite(change.right).all()):
        return None
    power = POWERS[quantity]
    left = change.left.double() * moments.rows.pow(power)[:, None]
    right = change.right.double() * moments.columns.pow(power)[None, :]
    found = factor_spectrum(left, right, change.scale)
    floor = factor_noise_floor(left.to(change.left.dtype), right.to(change.right.dtype), change.scale)
    columns = {"method": found.method} | rows.low_rank_columns(found, change.allotted_rank, floor)
    return columns | {"second_moment": moments.level}, found


def stamp_of(state: State) -> str | None:
    """Digest of the optimizer's file, None where none was read."""
    file = optimizer_file(state.where.path)
    return fingerprint_file(file) if state.moments and file is not None else None
