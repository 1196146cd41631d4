"""Measurements made up for the store's tests.

Numbers that follow from the matrix' name, so that a mix-up shows.
"""

import hashlib

import numpy as np

from glmspectra.store import Measurement, Request, Source

NAMES = tuple(f"layers.{layer}.{matrix}" for layer in range(3) for matrix in ("query_key_value", "dense"))
SOURCE = Source("tiny", "0123456789abcdef", path="/models/tiny", format="safetensors")


def spectrum_request(names=NAMES, **options):
    return Request("spectrum", tuple(names), {"method": "exact", "rtol": 1e-4, "split": "no", **options})


def values_request(names=NAMES, **options):
    return Request("values", tuple(names), {"split": "no", **options})


def measurement(request, name, status="ok", parts=("whole",), seconds=0.25):
    seed = int.from_bytes(hashlib.sha256(f"{name}{sorted(request.options.items())}".encode()).digest()[:4], "big")
    rng = np.random.default_rng(seed)
    layer, matrix = int(name.split(".")[1]), name.split(".")[2]
    rows, spectra, histograms = [], {}, {}
    for part in parts:
        row = {
            "checkpoint": SOURCE.name,
            "fingerprint": SOURCE.fingerprint,
            "quantity": request.quantity,
            "step": request.step,
            "name": name,
            "layer": layer,
            "matrix": matrix,
            "part": part,
            "rows": 8,
            "cols": 6,
            "dtype": "float16",
            "seconds": seconds,
            "status": status,
        }
        if request.kind == "spectrum" and status == "ok":
            sigma = np.sort(rng.random(6))[::-1]
            row |= {"method": "gram", "spectral_norm": sigma[0], "energy_rank_90": 4, "alpha": float("nan")}
            spectra[part] = (sigma, sigma * 1e-12)
        if request.kind == "values":
            row |= {"count": 48, "mean": rng.random(), "best_fit": "laplace"}
            row |= {"largest_rows": [3, 1], "largest_row_norms": [2.0, 1.5]}
            histograms[part] = (np.linspace(-1, 1, 5), rng.integers(0, 20, 4))
        rows.append(row)
    return Measurement(request.kind, request.quantity, request.step, name, NAMES.index(name), rows, spectra, histograms)


def measure_all(store, *requests, only=None):
    """Begin and measure what `begin` says is missing (at most `only` matrices); return how many were."""
    todo = store.begin(requests)
    done = 0
    for request in requests:
        for name in todo[request.key]:
            if only is not None and done >= only:
                return done
            store.write(request, measurement(request, name))
            done += 1
    return done
