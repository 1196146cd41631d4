"""The noise that a stored type puts into the difference of two checkpoints, and the bulk edge of that noise.

W_tuned - W_base of stored half precision is delta-W plus the rounding of W_tuned to its type. The noise is
full rank: a bf16 merge of a rank-8 update shows an effective rank of hundreds. Its edge can be distinguished from the
stored weights alone.
"""

from dataclasses import dataclass

import numpy as np
import torch

from glmspectra.device import dtype_name


@dataclass(frozen=True)
class RoundingFloor:
    """What rounding to the stored type adds to a difference of two checkpoints.

    Attributes:
        std: of the noise of an entry.
        edge: singular value where its bulk ends, std (sqrt(rows) + sqrt(cols)).
        share_unchanged: entries that are equal in both checkpoints.
        dtype: the stored type that sets the noise.
    """

    std: float
    edge: float
    share_unchanged: float
    dtype: str


def unit_in_last_place(weight: torch.Tensor) -> torch.Tensor:
    """Distance between a stored number and the next larger one of its own type, as float64, the shape of weight.

    2^(e - p + 1) for |w| in [2^e, 2^(e+1)) and p bits of significand; the constant spacing of subnormals
    below.
    """
    info = torch.finfo(weight.dtype)
    magnitude = weight.double().abs()
    _, exponent = torch.frexp(magnitude)
    ulp = torch.ldexp(torch.full_like(magnitude, info.eps), exponent - 1)
    return torch.clamp_min(ulp, info.tiny * info.eps)


def rounding_floor(base: torch.Tensor, tuned: torch.Tensor, chunk: int = 1024) -> RoundingFloor:
    """Estimate the rounding noise in tuned - base from the types they are stored in.

    Rounding spreads evenly over one ulp: variance ulp^2 / 12 an entry. Where base is itself on the grid of
    tuned's type and the change is smaller than half an ulp, the entry stays put and the error is the change
    itself, so the variance there is at most that of the change. That one is read off the entries with the
    finest ulp, which resolve it. By construction the estimate errs upwards (by up to 40 % in our
    simulations), so what stands above it is signal. The edge of a bulk of independent entries is std
    (sqrt(rows) + sqrt(cols)) (Bai & Yin 1988).

    base, tuned (rows, cols), any float types, on one device; worked through `chunk` rows at a time.
    """
    rows, cols = tuned.shape
    chunks = [slice(start, start + chunk) for start in range(0, rows, chunk)]
    ceiling = float("inf")
    if all(bool((base[c].to(tuned.dtype).double() == base[c].double()).all()) for c in chunks):
        # The finest twentieth of the entries; ulp takes few values, so ties come along.
        cut = float(torch.quantile(unit_in_last_place(_sample(tuned)), 0.05))
        energy = count = 0.0
        for c in chunks:
            resolved = unit_in_last_place(tuned[c]) <= cut
            energy += float((tuned[c].double() - base[c].double())[resolved].square().sum())
            count += float(resolved.sum())
        ceiling = energy / count if count else ceiling
    total = unchanged = 0.0
    for c in chunks:
        total += float((unit_in_last_place(tuned[c]).square() / 12).clamp_max(ceiling).sum())
        unchanged += float((tuned[c].double() == base[c].double()).sum())
    std = float(np.sqrt(total / (rows * cols)))
    edge = std * float(np.sqrt(rows) + np.sqrt(cols))
    return RoundingFloor(std, edge, unchanged / (rows * cols), dtype_name(tuned.dtype))


def _sample(values: torch.Tensor, limit: int = 1_000_000) -> torch.Tensor:
    flat = values.reshape(-1)
    return flat[:: max(1, flat.numel() // limit)][:limit]
