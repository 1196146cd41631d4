"""What the tables say about every matrix that may get an adapter: the one thing that criteria read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from glmspectra.errors import RequestError
from glmspectra.store import Run

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.1, 0.9)  # of the matrices' mean second moments
# The linear layers of ChatGLM2's blocks.
FOUR_MATRICES = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@dataclass(frozen=True)
class Target:
    """A weight (rows, cols). cost: trainable parameters that one direction of an adapter on it takes, rows + cols."""

    name: str
    layer: int | None
    matrix: str
    rows: int
    cols: int

    @property
    def cost(self) -> int:
        return self.rows + self.cols

    @property
    def module(self) -> str:
        """The module that holds the weight: what PEFT's target_modules and patterns are matched with."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Evidence:
    """targets: in depth order. every_matrix: all that the tables know, targets among them.

    sigma: quantity -> name -> singular values, float64 descending; of changes those above the rounding floor, and of
    several delta tables the mean over tables, index by index. statistics: quantity -> rows of `matrices` indexed by
    name. deltas: how many delta tables were averaged.
    base_name, base_fingerprint: the checkpoint whose weights the ranks are for.
    """

    base_name: str
    base_fingerprint: str
    targets: tuple[Target, ...]
    every_matrix: tuple[Target, ...]
    sigma: Mapping[str, Mapping[str, np.ndarray]]
    statistics: Mapping[str, "pd.DataFrame"]
    deltas: int = 0

    def has(self, quantity: str) -> bool:
        return bool(self.sigma.get(quantity))

    def column(self, quantity: str, column: str) -> dict[str, float]:
        """One statistic of every target. Raises RequestError where it was not measured."""
        frame = self.statistics.get(quantity)
        values = frame[column] if frame is not None and column in frame else {}
        found = {}
        for target in self.targets:
            value = values.get(target.name)
            if value is None or not np.isfinite(float(value)):
                raise RequestError(
                    f"{target.name}: {column} of {quantity} is not in the tables; measure all targets with "
                    "`glmspectra svd --layers all` (all singular values, not --method topk)."
                )
            found[target.name] = float(value)
        return found

    def spectra(self, quantity: str, absent_is_zero: bool = False) -> dict[str, np.ndarray]:
        """Singular values of every target; an empty array where there are none and that is admitted.

        Raises RequestError where they were not measured.
        """
        known = self.sigma.get(quantity, {})
        found = {}
        for target in self.targets:
            values = known.get(target.name)
            if values is None:
                if not absent_is_zero:
                    raise RequestError(f"{target.name}: singular values of {quantity} are not in the tables.")
                values = np.zeros(0)
            found[target.name] = values
        return found


def gather(
    base: Run | None,
    deltas: Sequence[Run] = (),
    targets: str | None = None,
    step: int | None = None,
    others: Sequence[Run] = (),
) -> Evidence:
    """Bring the tables of a base checkpoint and of changes of it together.

    base: a run with quantity 'weight'; None when only deltas count. deltas: runs with quantity 'delta',
    averaged; of each, the rows of `step`, or of its last one. targets: names or globs of matrix types joined
    by commas; None takes ChatGLM2's four where they are there, else every matrix inside the layers. others:
    runs with quantities 'quant_error' or 'gradient'. Raises RequestError when nothing is there, nothing
    matches, or tables belong to different bases.
    """
    runs = [run for run in (base, *deltas) if run is not None]
    if not runs:
        raise RequestError("no tables to take ranks from: measure with `glmspectra svd --layers all` first.")
    name, fingerprint = _base_of(base, deltas)
    sigma: dict[str, Mapping[str, np.ndarray]] = {}
    statistics: dict[str, pd.DataFrame] = {}
    if base is not None:
        statistics["weight"], sigma["weight"] = _rows(base, "weight", None), _sigma(base, "weight", None)
    for run in (*([base] if base is not None else []), *others):
        for quantity in ("quant_error", "gradient"):
            if (run.matrices["quantity"] == quantity).any():
                statistics[quantity], sigma[quantity] = _rows(run, quantity, None), _sigma(run, quantity, None)
    if deltas:
        chosen = [(run, last_step(run) if step is None else step) for run in deltas]
        for run, at in chosen:
            if not len(_rows(run, "delta", at)):
                steps = sorted({int(s) for s in run.matrices["step"].dropna()})
                raise RequestError(f"{run.folder} holds no delta of step {at}; its steps are {steps or 'not known'}.")
            _refuse_broken(run, at)
        sigma["delta"] = mean_spectra([_above_floor(run, at, "delta") for run, at in chosen])
        statistics["delta"] = _rows(chosen[0][0], "delta", chosen[0][1])
        if all(len(_rows(run, "delta_adamw", at)) for run, at in chosen):
            sigma["delta_adamw"] = mean_spectra([_above_floor(run, at, "delta_adamw") for run, at in chosen])
            sigma["delta_tempered"] = mean_spectra([_leveled(run, at) for run, at in chosen])
    table = statistics["weight"] if "weight" in statistics else statistics["delta"]
    every = tuple(
        Target(str(name), None if layer != layer else int(layer), str(matrix), int(rows), int(cols))
        for name, layer, matrix, rows, cols in zip(
            table.index,
            table["layer"].astype("float64"),
            table["matrix"],
            table["rows"],
            table["cols"],
            strict=True,
        )
    )
    if targets is None:
        four = [target for target in every if target.matrix in FOUR_MATRICES]
        chosen_targets = four or [target for target in every if target.layer is not None]
    else:
        chosen_targets = matching(every, targets)
    if not chosen_targets:
        raise RequestError("the tables hold no matrix inside layers: name some with --targets.")
    return Evidence(name, fingerprint, tuple(chosen_targets), every, sigma, statistics, len(deltas))


def matching(matrices: Sequence[Target], names: str) -> list[Target]:
    """Those whose matrix type or full name is among `names` (globs, joined by commas).

    RequestError for one that finds none.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for pattern in wanted:
        if not any(_fits(target, pattern) for target in matrices):
            types = sorted({target.matrix for target in matrices})
            raise RequestError(f"{pattern!r} names no matrix of the tables; they hold {', '.join(types)}.")
    return [target for target in matrices if any(_fits(target, pattern) for pattern in wanted)]


def _fits(target: Target, pattern: str) -> bool:
    return fnmatchcase(target.matrix, pattern) or fnmatchcase(target.name, pattern)


def last_step(run: Run) -> int | None:
    """The largest step of a run's deltas; None where they carry none."""
    steps = run.matrices.loc[run.matrices["quantity"] == "delta", "step"].dropna()
    return int(steps.max()) if len(steps) else None


def mean_spectra(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean over tables of sigma_i, index by index; a table without a matrix, or with fewer values, counts as zeros."""
    names = dict.fromkeys(name for table in tables for name in table)
    averaged = {}
    for name in names:
        length = max(len(table.get(name, ())) for table in tables)
        total = np.zeros(length)
        for table in tables:
            values = table.get(name, np.zeros(0))
            total[: len(values)] += values
        averaged[name] = total / len(tables)
    return averaged


def _rows(run: Run, quantity: str, step: int | None) -> "pd.DataFrame":
    frame = run.matrices
    chosen = frame[(frame["quantity"] == quantity) & (frame["part"] == "whole") & (frame["status"] == "ok")]
    chosen = chosen[chosen["step"].isna()] if step is None else chosen[chosen["step"] == step]
    return chosen.set_index("name")


def _sigma(run: Run, quantity: str, step: int | None) -> dict[str, np.ndarray]:
    frame = run.singular_values
    chosen = frame[(frame["quantity"] == quantity) & (frame["part"] == "whole")]
    chosen = chosen[chosen["step"].isna()] if step is None else chosen[chosen["step"] == step]
    return {
        str(name): group.sort_values("index")["sigma"].to_numpy(dtype=np.float64)
        for name, group in chosen.groupby("name", sort=False)
    }


def _above_floor(run: Run, step: int | None, quantity: str) -> dict[str, np.ndarray]:
    """Singular values of the changes without those that rounding alone can have made.

    A difference of two bfloat16 checkpoints has thousands of them.
    """
    rows = _rows(run, quantity, step)
    floors = rows["noise_floor"].fillna(0.0) if "noise_floor" in rows else {}
    return {name: sigma[sigma > floors.get(name, 0.0)] for name, sigma in _sigma(run, quantity, step).items()}


def _leveled(run: Run, step: int | None) -> dict[str, np.ndarray]:
    """Singular values in the eighth root of V on either side, the mean of V clipped to its quantiles over the matrices.

    The quantiles are QUANTILES, so that a few matrices with huge gradients do not decide alone.
    """
    levels = _rows(run, "delta_tempered", step)["second_moment"]
    kept = levels.clip(*levels.quantile(QUANTILES))
    factors = (kept / levels.where(levels > 0, 1.0)).where(levels > 0, 1.0) ** 0.125
    return {name: sigma * factors[name] for name, sigma in _above_floor(run, step, "delta_tempered").items()}


def _refuse_broken(run: Run, step: int | None) -> None:
    """A change that is not finite would pass for none at all."""
    frame = run.matrices
    steps = frame["step"].isna() if step is None else frame["step"] == step
    broken = frame[(frame["quantity"] == "delta") & (frame["status"] != "ok") & steps]
    if len(broken):
        raise RequestError(
            f"{run.folder} holds NaN or infinity in the change of {broken['name'].iloc[0]}: the training diverged or "
            "the base is damaged; take an earlier checkpoint with --step, or another run."
        )


def _base_of(base: Run | None, deltas: Sequence[Run]) -> tuple[str, str]:
    """Name and fingerprint of the one base that all tables are about."""
    facts = {}
    if base is not None:
        checkpoint = base.manifest["checkpoint"]
        facts[base.folder] = (checkpoint["name"], checkpoint["fingerprint"])
    for run in deltas:
        base_facts = (run.manifest["checkpoint"].get("details") or {}).get("base")
        if base_facts and base_facts.get("fingerprint"):
            facts[run.folder] = (base_facts["name"], base_facts["fingerprint"])
    if len({fingerprint for _, fingerprint in facts.values()}) > 1:
        listed = "; ".join(f"{folder.name}: {name} {print_}" for folder, (name, print_) in facts.items())
        raise RequestError(f"the tables belong to different base checkpoints: {listed}.")
    if not facts:
        raise RequestError(
            f"{deltas[0].folder} does not say which base it is a change of; give the base's tables too "
            "(`glmspectra svd --layers all`), or measure it with `glmspectra delta BASE ADAPTER`."
        )
    return next(iter(facts.values()))
