"""Tables of a run made here from small random matrices with planted directions, in the columns that the store has."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from glmspectra.figures import Tables

GLM = {
    "query_key_value": ((40, 32), {"q": (0, 32), "k": (32, 36), "v": (36, 40)}),
    "dense": ((32, 32), {}),
    "dense_h_to_4h": ((96, 32), {"gate": (0, 48), "up": (48, 96)}),
    "dense_4h_to_h": ((32, 48), {}),
}
EDGES = np.linspace(-0.5, 0.5, 101)


def spectrum_columns(weight: np.ndarray) -> tuple[dict, np.ndarray]:
    """The spectrum columns of one matrix and its singular values, descending."""
    rows, cols = weight.shape
    sigma = np.linalg.svd(weight, compute_uv=False)
    energy, share = sigma**2, sigma / sigma.sum()
    held = np.cumsum(energy) / energy.sum()
    noise = float(np.median(np.abs(weight)) / 0.6745)
    edge = noise * (math.sqrt(rows) + math.sqrt(cols))
    columns = {
        "frobenius_norm": math.sqrt(energy.sum()),
        "spectral_norm": sigma[0],
        "nuclear_norm": sigma.sum(),
        "condition_number": sigma[0] / sigma[-1],
        "stable_rank": energy.sum() / energy[0],
        "effective_rank": math.exp(-(share * np.log(share)).sum()),
        "participation_ratio": energy.sum() ** 2 / (energy**2).sum(),
        **{f"energy_rank_{p}": int(np.searchsorted(held, p / 100) + 1) for p in (50, 80, 90, 95, 99)},
        "top12_share_of_singular_value_sum": sigma[:12].sum() / sigma.sum(),
        "top12_energy_share": energy[:12].sum() / energy.sum(),
        "mp_sigma": noise,
        "mp_edge": edge,
        "mp_spikes": int((sigma > edge).sum()),
        "gavish_donoho_rank": int((sigma > 1.1 * edge).sum()),
        "alpha": 3.0 + rows / 100,
        "alpha_ks": 0.05,
    }
    return columns, sigma


def value_columns(weight: np.ndarray) -> dict:
    """The value columns of one matrix that are drawn."""
    mean, std = weight.mean(), weight.std()
    centered = (weight - mean) / std
    row_norms, col_norms = np.linalg.norm(weight, axis=1), np.linalg.norm(weight, axis=0)
    return {
        "count": weight.size,
        "mean": mean,
        "std": std,
        "excess_kurtosis": (centered**4).mean() - 3,
        "abs_max": np.abs(weight).max(),
        **{f"share_beyond_{k}_sigma": float((np.abs(centered) > k).mean()) for k in (3, 4, 5, 6)},
        "normal_ks": 0.01 + 0.001 * len(row_norms),
        "largest_row_norms": list(np.sort(row_norms)[::-1][:8]),
        "largest_col_norms": list(np.sort(col_norms)[::-1][:8]),
        "row_norm_median": float(np.median(row_norms)),
        "col_norm_median": float(np.median(col_norms)),
    }


def make_tables(
    layers: int = 3,
    types: dict | None = None,
    *,
    parts: bool = False,
    heads: int = 0,
    outside: bool = False,
    top: int | None = None,
    quantity: str = "weight",
    step: int | None = None,
    seed: int = 0,
) -> Tables:
    """A run of `layers` layers.

    types: matrix -> (shape, parts). parts: rows of parts too. heads: so many head rows of the first matrix. outside: an
    embedding as well. top: only so many singular values, and none of the columns that need all.
    """
    random = np.random.default_rng(seed)
    types = types or GLM
    matrices, values, histograms = [], [], []

    def measure(weight: np.ndarray, name: str, layer: int | None, matrix: str, part: str) -> None:
        key = {"quantity": quantity, "step": step, "name": name, "layer": layer, "matrix": matrix, "part": part}
        columns, sigma = spectrum_columns(weight)
        if top is not None:
            sigma = sigma[:top]
            kept = ("frobenius_norm", "spectral_norm", "stable_rank", "top12_energy_share")
            columns = {column: columns[column] for column in kept}
        row = {"checkpoint": "made", "fingerprint": "0123456789abcdef", **key}
        row |= {"rows": weight.shape[0], "cols": weight.shape[1], "dtype": "float16", "method": "exact", "status": "ok"}
        matrices.append({**row, **value_columns(weight), **columns})
        values.append(pd.DataFrame({**key, "index": np.arange(len(sigma)), "sigma": sigma, "error_bound": 1e-12}))
        counts, _ = np.histogram(np.clip(weight, -0.4999, 0.4999), EDGES)
        histograms.append(pd.DataFrame({**key, "bin_left": EDGES[:-1], "bin_right": EDGES[1:], "count": counts}))

    for layer in range(layers):
        for matrix, (shape, cut) in types.items():
            weight = random.normal(size=shape) * 0.05
            weight += (1.0 + 0.2 * layer) * np.outer(np.ones(shape[0]) / 6, np.ones(shape[1]) / 6)
            name = f"transformer.encoder.layers.{layer}.{matrix}.weight"
            measure(weight, name, layer, matrix, "whole")
            for part, (start, stop) in cut.items() if parts else ():
                measure(weight[start:stop], name, layer, matrix, part)
            for head in range(heads if matrix == next(iter(types)) else 0):
                measure(weight[4 * head : 4 * head + 4], name, layer, matrix, f"q.head_{head}")
    if outside:
        measure(random.normal(size=(64, 16)) * 0.05, "transformer.embedding.weight", None, "embedding", "whole")
    typed = {"step": "Int64", "layer": "Int64"}
    tables = (pd.DataFrame(matrices), pd.concat(values, ignore_index=True), pd.concat(histograms, ignore_index=True))
    return Tables(*(table.astype(typed) for table in tables), manifest={"checkpoint": {"name": "made"}})


def store_tables(tables: Tables, folder: Path) -> Path:
    """Write tables as a finished run in the store's own form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from glmspectra.store.schema import SCHEMA_VERSION, TABLES

    folder.mkdir(parents=True)
    for name, schema in TABLES.items():
        frame = getattr(tables, name)
        columns = [
            pa.array(frame[field.name], type=field.type, from_pandas=True)
            if field.name in frame
            else pa.nulls(len(frame), field.type)
            for field in schema
        ]
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), folder / f"{name}.parquet")
    manifest = {
        "schema": SCHEMA_VERSION,
        "checkpoint": {"name": "made", "fingerprint": "0123456789abcdef"},
        "requests": {},
        "complete": True,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def training_folder(folder: Path, *, loss: float = 2.0, ranks: bool = False, steps: int = 100) -> Path:
    """A training folder as a trainer of today leaves it."""
    log: list[dict] = []
    for step in range(10, steps + 1, 10):
        value = loss + math.exp(-step / 40)
        log.append({"step": step, "epoch": step / steps, "loss": value, "grad_norm": 1 + 10 / step})
        log[-1] |= {"learning_rate": 1e-3 * (1 - step / steps), "tokens_per_second": 900.0 + step}
        if step % 20 == 0:
            log.append({"step": step, "epoch": step / steps, "eval_loss": value + 0.1})
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}), encoding="utf-8")
    if ranks:
        lines = []
        for step in range(0, steps + 1, 10):
            table = {
                f"base_model.model.transformer.encoder.layers.{layer}.{matrix}": max(0, 8 - layer - step // 20)
                for layer in range(3)
                for matrix in ("query_key_value", "dense")
            }
            lines.append(json.dumps({"step": step, "ranks": table}))
        (folder / "rank_history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
