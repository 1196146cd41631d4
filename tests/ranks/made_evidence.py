"""Tables of a made-up base and made-up changes of it, as `store` would read them back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from glmspectra.store import Run

SHAPES = {
    "self_attention.query_key_value": (64, 48),
    "self_attention.dense": (48, 48),
    "mlp.dense_h_to_4h": (160, 48),
    "mlp.dense_4h_to_h": (48, 80),
}
BASE = {"name": "base", "fingerprint": "0123456789abcdef"}


def weight_names(layers: int) -> list[str]:
    return [f"transformer.encoder.layers.{i}.{m}.weight" for i in range(layers) for m in SHAPES]


def make_run(
    quantity: str,
    sigma: dict[str, np.ndarray],
    step: int | None = None,
    columns: dict[str, dict[str, float]] | None = None,
    checkpoint: dict | None = None,
    folder: str = "made",
) -> Run:
    """A run with one quantity. columns: column of `matrices` -> name -> value."""
    rows, values = [], []
    for name, numbers in sigma.items():
        layer, module = int(name.split(".")[3]), name.removesuffix(".weight").split(".", 4)[4]
        height, width = SHAPES[module]
        key = {
            "quantity": quantity,
            "step": step,
            "name": name,
            "layer": layer,
            "matrix": module.split(".")[-1],
            "part": "whole",
        }
        extra = {column: entries.get(name, np.nan) for column, entries in (columns or {}).items()}
        rows.append({**key, "rows": height, "cols": width, "status": "ok", **extra})
        values += [{**key, "index": i, "sigma": float(s), "error_bound": 0.0} for i, s in enumerate(numbers)]
    frames = [pd.DataFrame(rows), pd.DataFrame(values, columns=[*key, "index", "sigma", "error_bound"])]
    for frame in frames:
        frame["step"] = frame["step"].astype("Int64")
        frame["layer"] = frame["layer"].astype("Int64")
    manifest = {"checkpoint": checkpoint or dict(BASE), "complete": True}
    return Run(Path(folder), manifest, frames[0], frames[1], pd.DataFrame())


def base_run(layers: int = 12, seed: int = 0) -> Run:
    rng = np.random.default_rng(seed)
    sigma, columns = {}, {}
    wanted = (
        "effective_rank",
        "stable_rank",
        "mp_spikes",
        "gavish_donoho_rank",
        "alpha",
        "top12_share_of_singular_value_sum",
        "frobenius_norm",
    )
    for name in weight_names(layers):
        height, width = SHAPES[name.removesuffix(".weight").split(".", 4)[4]]
        values = np.sort(rng.exponential(size=min(height, width)))[::-1]
        share = values / values.sum()
        sigma[name] = values
        facts = (
            float(np.exp(-np.sum(share * np.log(share)))),
            float(np.sum(values**2) / values[0] ** 2),
            int(rng.integers(0, 6)),
            int(rng.integers(0, 9)),
            float(rng.uniform(2, 7)),
            float(values[:12].sum() / values.sum()),
            float(np.sqrt(np.sum(values**2))),
        )
        for column, value in zip(wanted, facts, strict=True):
            columns.setdefault(column, {})[name] = value
    return make_run("weight", sigma, columns=columns)


def delta_run(layers: int = 12, rank: int = 16, seed: int = 1, step: int | None = 80, noise: float = 0.1) -> Run:
    """Deltas whose size depends on matrix and layer, with a little that changes with the seed."""
    rng = np.random.default_rng(seed)
    sigma = {}
    for place, name in enumerate(weight_names(layers)):
        size = 1.0 + (place % 4) + 0.3 * (place // 4)
        decay = np.exp(-np.arange(rank) / (1 + (place * 7) % 5))
        sigma[name] = np.sort(size * decay * np.exp(noise * rng.normal(size=rank)))[::-1]
    checkpoint = {"name": "pilot", "fingerprint": f"{seed:016x}", "details": {"base": dict(BASE)}}
    return make_run("delta", sigma, step, checkpoint=checkpoint, folder=f"pilot{seed}")


def with_metrics(run: Run, metric: Run) -> Run:
    """A run of deltas that also holds the spectra of another in the places of AdamW's metrics."""
    matrices = metric.matrices.assign(second_moment=1.0)
    frames = []
    for own, other in ((run.matrices, matrices), (run.singular_values, metric.singular_values)):
        quantities = [other.assign(quantity=name) for name in ("delta_adamw", "delta_tempered")]
        frames.append(pd.concat([own, *quantities], ignore_index=True))
    return replace(run, matrices=frames[0], singular_values=frames[1])
