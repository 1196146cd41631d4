"""What a terminal says of a delta run: medians over the layers, and how like another adapter a change is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.run_folder import tuned_checkpoints
from glmspectra.errors import RequestError
from glmspectra.spectra.lowrank import adapter_similarity, factor_spectrum
from glmspectra.store import Run

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_COLUMNS = (
    "rank",
    "allotted_rank",
    "effective_rank",
    "stable_rank",
    "spectral_norm",
    "relative_frobenius",
    "intruders",
)


def last_state(run: Run) -> "pd.DataFrame":
    """The rows of the change at the last step."""
    rows = run.matrices[run.matrices["quantity"] == "delta"]
    return rows[rows["step"] == rows["step"].max()] if rows["step"].notna().any() else rows


def summary_of(run: Run) -> dict[str, dict[str, Any]]:
    """Matrix -> how many layers, and the median over them of each known SUMMARY_COLUMNS, at the last step."""
    found: dict[str, dict[str, Any]] = {}
    for matrix, group in last_state(run).groupby("matrix", sort=False):
        known = {column: float(group[column].median()) for column in SUMMARY_COLUMNS if group[column].notna().any()}
        found[str(matrix)] = {"layers": len(group), **known}
    return found


def compare_adapters(first: Path, second: Path, initial: Path | None = None) -> dict[str, dict[str, Any]]:
    """Weight -> cosine and subspace similarity of two adapters' changes, from the last state of each.

    Args:
        first: An adapter, or the folder of a run.
        second: An adapter, or the folder of a run.
        initial: The first one before its first step, where it does not lie in its usual folder.

    Raises:
        RequestError: One is no adapter, or they change no weight of the same name.
        CheckpointError: One cannot be read, or is not low rank of itself (DoRA).
    """
    states = [tuned_checkpoints(path)[-1] for path in (first, second)]
    if not all(state.is_adapter for state in states):
        raise RequestError("--compare takes two adapters; two full models have no factors to compare.")
    one, other = open_adapter(states[0].path, initial), open_adapter(states[1].path)
    for adapter in (one, other):
        if adapter.needs_base:
            raise RequestError(
                f"{adapter.path}: the change that {adapter.peft_method} makes is no product of factors, so it cannot "
                "be compared without the base."
            )
    shared = [name for name in one.names if name in set(other.names)]
    if not shared:
        raise RequestError(f"{first} and {second} change no weight of the same name.")
    found = {}
    for name in shared:
        mine, theirs = one.change(name), other.change(name)
        similarity = adapter_similarity(
            factor_spectrum(mine.left, mine.right, mine.scale, vectors=True),
            factor_spectrum(theirs.left, theirs.right, theirs.scale, vectors=True),
        )
        found[name] = vars(similarity)
    return found
