"""What a sweep is asked to measure, and how."""

from dataclasses import dataclass
from typing import Any

from glmspectra.checkpoint.records import SPLITS, Split
from glmspectra.errors import RequestError


@dataclass(frozen=True)
class SweepOptions:
    """Options of one sweep. Those that change a number go into the run's stamps (`of_kind`), the others do not.

    values, spectrum: which of the two measurements are taken; with both, one read of a matrix serves the two.
    split: 'parts' measures q, k, v and gate, up of a fused matrix beside the whole, 'heads' the attention
    heads too. method: 'exact' (all singular values) or 'topk' (the `top_k` largest, with a residual bound).
    rtol: a singular value is accepted at an error bound of rtol times itself (see `spectra`). vectors: how
    many leading singular vectors a matrix are kept in the run's folder (0: none). device: 'auto', 'cpu',
    'cuda' or 'cuda:N'. fresh: measure anew what is finished. quiet: no progress bar.
    """

    values: bool = True
    spectrum: bool = True
    split: Split = "no"
    method: str = "exact"
    top_k: int = 64
    rtol: float = 1e-4
    vectors: int = 0
    device: str = "auto"
    fresh: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise RequestError(f"--split is no, parts or heads, not {self.split!r}.")
        if self.method not in ("exact", "topk"):
            raise RequestError(f"--method is exact or topk, not {self.method!r}.")
        if self.top_k < 1:
            raise RequestError(f"--top-k is {self.top_k}; ask for at least one singular value.")
        if not 0 < self.rtol < 1:
            raise RequestError(f"--rtol is {self.rtol}; it is a relative error between 0 and 1, 1e-4 by default.")
        if self.vectors < 0:
            raise RequestError(f"--vectors is {self.vectors}; ask for 0 or more singular vectors a matrix.")
        if not (self.values or self.spectrum):
            raise RequestError("neither values nor spectra are asked for: there is nothing to measure.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of measurement, as `store` names them."""
        return tuple(kind for kind, asked in (("values", self.values), ("spectrum", self.spectrum)) if asked)

    def of_kind(self, kind: str) -> dict[str, Any]:
        """The options that change the numbers of one kind: what a finished part is reused by."""
        if kind == "values":
            return {"split": self.split}
        how = {"method": self.method, "rtol": self.rtol, "split": self.split}
        return {**how, "top_k": self.top_k} if self.method == "topk" else how
