"""`singular_value.jsonl`: one JSON object a layer, for people whose notebooks read that form.

The file of the study this project grew from (ShayDuane/ChatGlm2-6B_LoRa): line i is layer i, and each of its
four keys holds all singular values of one matrix, descending.
"""

import json
from pathlib import Path

from glmspectra.errors import RequestError
from glmspectra.store.atomic import write_atomically
from glmspectra.store.tables import Run

FILE_NAME = "singular_value.jsonl"

# The study's key -> the checkpoint's own name of the matrix.
MATRIX_OF_KEY = {
    "att_qkv_singular_value": "query_key_value",
    "att_dense_singular_value": "dense",
    "mlp_1_singular_value": "dense_h_to_4h",
    "mlp_2_singular_value": "dense_4h_to_h",
}


def export_jsonl(run: Run, path: Path | None = None) -> Path:
    """Write `singular_value.jsonl` from the tables of `run` (to its folder unless `path` says otherwise);
    return the path.

    Raises RequestError where a layer lacks one of the four matrices, as those of other architectures do: the
    form has no place for a hole.
    """
    table = run.singular_values
    table = table[(table["quantity"] == "weight") & (table["part"] == "whole") & table["layer"].notna()]
    spectra = {key: group["sigma"].tolist() for key, group in table.groupby(["layer", "matrix"], sort=True)}
    lines = []
    for layer in sorted({layer for layer, _ in spectra}):
        missing = [matrix for matrix in MATRIX_OF_KEY.values() if (layer, matrix) not in spectra]
        if missing:
            raise RequestError(
                f"{FILE_NAME} has one line a layer with the spectra of "
                f"{', '.join(MATRIX_OF_KEY.values())}; layer {layer} of the "
                f"run {run.name} lacks {', '.join(missing)}: measure those too, or leave --export-jsonl."
            )
        lines.append(json.dumps({key: spectra[layer, matrix] for key, matrix in MATRIX_OF_KEY.items()}))
    if not lines:
        raise RequestError(f"the run {run.name} holds no spectra of layer matrices to write to {FILE_NAME}.")
    path = run.folder / FILE_NAME if path is None else Path(path)
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
    return path
