"""singular_value.jsonl: the form of the study, read back as its notebooks read it."""

import json

import pytest

from glmspectra.errors import RequestError
from glmspectra.store import Measurement, Request, RunStore, export_jsonl, read_run
from tests.store.made_up_measurements import SOURCE, measurement

KEYS = {
    "att_qkv_singular_value": "query_key_value",
    "att_dense_singular_value": "dense",
    "mlp_1_singular_value": "dense_h_to_4h",
    "mlp_2_singular_value": "dense_4h_to_h",
}


def filled(folder, layers, matrices):
    names = [f"layers.{layer}.{matrix}" for layer in layers for matrix in matrices]
    request = Request("spectrum", tuple(names), {"split": "parts"})
    store = RunStore.of(folder, SOURCE)
    store.begin([request])
    made = {}
    for position, name in enumerate(names):
        # borrow a made-up measurement and give it this name; the parts q and k must not get into the export
        row_of = measurement(request, "layers.0.dense", parts=("whole", "q", "k"))
        layer, matrix = int(name.split(".")[1]), name.split(".")[2]
        rows = [{**row, "name": name, "layer": layer, "matrix": matrix} for row in row_of.rows]
        spectra = {part: (sigma * (position + 1), bound) for part, (sigma, bound) in row_of.singular_values.items()}
        store.write(request, Measurement("spectrum", "weight", None, name, position, rows, spectra))
        made[layer, matrix] = spectra["whole"][0]
    store.merge()
    return store.folder, made


def test_one_line_a_layer_with_the_four_keys(tmp_path):
    folder, made = filled(tmp_path, range(11), KEYS.values())
    path = export_jsonl(read_run(folder))
    assert path == folder / "singular_value.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 11
    for layer, line in enumerate(lines):  # layer 10 must come after 9, not after 1
        assert list(line) == list(KEYS)
        for key, matrix in KEYS.items():
            assert line[key] == made[layer, matrix].tolist()


def test_a_missing_matrix_is_named_and_nothing_is_written(tmp_path):
    folder, _ = filled(tmp_path, [0], ["query_key_value", "dense"])
    with pytest.raises(
        RequestError, match=r"layer 0 of the run .* lacks dense_h_to_4h, dense_4h_to_h: measure those too"
    ):
        export_jsonl(read_run(folder))
    assert not (folder / "singular_value.jsonl").exists()
