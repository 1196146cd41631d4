"""`singular_value.jsonl`: one JSON object a layer, for people whose notebooks read that format.

The file of the study this project grew from (ShayDuane/ChatGlm2-6B_LoRa): line i is layer i, and each of its
four keys holds all singular values of one matrix, descending.
"""

import json
from collections.abc import Collection
from pathlib import Path

from glmspectra.errors import RequestError
from glmspectra.files import write_atomically
from glmspectra.store.tables import Run

FILE_NAME = "singular_value.jsonl"

# The study's key -> the checkpoint's own name of the matrix.
MATRIX_OF_KEY = {
    "att_qkv_singular_value": "query_key_value",
    "att_dense_singular_value": "dense",
    "mlp_1_singular_value": "dense_h_to_4h",
    "mlp_2_singular_value": "dense_4h_to_h",
}


def check_jsonl(measured: Collection[tuple[int, str]], where: str) -> None:
    """Raise RequestError unless every layer among the pairs of layer and matrix has the four matrices of the format.

    A sweep may take hours: ask before it, not after. where: what is looked at, for the message.
    """
    needed = f"{FILE_NAME} has one line a layer with the spectra of {', '.join(MATRIX_OF_KEY.values())}"
    layers = sorted({layer for layer, _ in measured})
    if not {matrix for _, matrix in measured} & set(MATRIX_OF_KEY.values()):
        raise RequestError(f"{needed}, and {where} holds none of them: leave --export-jsonl.")
    for layer in layers:
        missing = [matrix for matrix in MATRIX_OF_KEY.values() if (layer, matrix) not in measured]
        if missing:
            raise RequestError(
                f"{needed}; layer {layer} of {where} lacks {', '.join(missing)}: measure those too, or leave "
                "--export-jsonl."
            )


def export_jsonl(run: Run, path: Path | None = None) -> Path:
    """Write `singular_value.jsonl` from the tables of `run`; return the path.

    It goes to the run's folder unless `path` says otherwise.

    Raises:
        RequestError: A layer lacks one of the four matrices, as those of other architectures do: there is no place
            for a hole.
    """
    table = run.singular_values
    table = table[(table["quantity"] == "weight") & (table["part"] == "whole") & table["layer"].notna()]
    spectra = {key: group["sigma"].tolist() for key, group in table.groupby(["layer", "matrix"], sort=True)}
    check_jsonl(spectra.keys(), f"the run {run.name}")
    lines = [
        json.dumps({key: spectra[layer, matrix] for key, matrix in MATRIX_OF_KEY.items()})
        for layer in sorted({layer for layer, _ in spectra})
    ]
    path = run.folder / FILE_NAME if path is None else Path(path)
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
    return path
