"""RunStore: what is reused, what is measured anew, and that the tables follow from the parts alone."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from glmspectra.errors import RequestError, StoreError
from glmspectra.store import Request, RunStore, Source, list_runs, read_run, read_vectors
from glmspectra.store.manifest import run_name
from glmspectra.store.schema import HISTOGRAMS, MATRICES, SCHEMA_VERSION, SINGULAR_VALUES
from tests.store.made_up_measurements import NAMES, SOURCE, measure_all, measurement, spectrum_request, values_request


@pytest.fixture
def store(tmp_path):
    """An empty store of the made-up checkpoint."""
    return RunStore.of(tmp_path / "param_matrix", SOURCE)


def tables(folder):
    run = read_run(folder)
    return run.matrices.drop(columns="seconds"), run.singular_values, run.histograms


def assert_same_tables(one, other):
    for left, right in zip(tables(one), tables(other), strict=True):
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_a_run_is_named_by_checkpoint_and_fingerprint(tmp_path):
    assert RunStore.of(tmp_path, SOURCE).folder == tmp_path / "tiny-0123456789abcdef"
    assert run_name("THUDM/chatglm2 6b", "ab") == "THUDM_chatglm2_6b-ab"
    assert run_name("..", "ab") == "checkpoint-ab"


def test_tables_have_the_columns_of_the_schema_and_every_number_exactly(store):
    request = spectrum_request()
    assert measure_all(store, request, values_request()) == 12
    store.merge(seconds=1.5)
    run = read_run(store.folder)
    assert run.complete
    assert list(run.matrices) == MATRICES.names
    assert list(run.singular_values) == ["checkpoint", *SINGULAR_VALUES.names]
    assert list(run.histograms) == ["checkpoint", *HISTOGRAMS.names]
    assert run.matrices["name"].tolist() == list(NAMES)  # one row for both measurements, in depth order
    assert run.matrices["layer"].dtype == pd.Int64Dtype()
    assert run.matrices["step"].isna().all()
    assert (run.matrices["seconds"] == 0.5).all()
    for name in NAMES:
        expected = measurement(request, name)
        sigma, bound = expected.singular_values["whole"]
        stored = run.singular_values[run.singular_values["name"] == name]
        assert stored["index"].tolist() == list(range(6))
        np.testing.assert_array_equal(stored["sigma"], sigma)
        np.testing.assert_array_equal(stored["error_bound"], bound)
        edges, counts = measurement(values_request(), name).histograms["whole"]
        stored = run.histograms[run.histograms["name"] == name]
        np.testing.assert_array_equal(stored["bin_left"], edges[:-1])
        np.testing.assert_array_equal(stored["bin_right"], edges[1:])
        np.testing.assert_array_equal(stored["count"], counts)
    row = run.matrices.iloc[0]
    assert list(row["largest_rows"]) == [3, 1]
    assert row["best_fit"] == "laplace"
    assert np.isnan(row["alpha"])


@pytest.mark.parametrize("killed_after", [0, 1, 5, 11])
def test_an_interrupted_run_goes_on_and_ends_like_an_uninterrupted_one(store, tmp_path, killed_after):
    requests = spectrum_request(), values_request()
    assert measure_all(store, *requests, only=killed_after) == killed_after
    assert not store.manifest()["complete"]
    assert measure_all(store, *requests) == 12 - killed_after
    store.merge()
    straight = RunStore.of(tmp_path / "straight", SOURCE)
    measure_all(straight, *requests)
    straight.merge()
    assert_same_tables(store.folder, straight.folder)


def test_the_order_of_measuring_does_not_show(store, tmp_path):
    request, backwards = spectrum_request(), RunStore.of(tmp_path / "backwards", SOURCE)
    measure_all(store, request)
    store.merge()
    backwards.begin([request])
    for name in reversed(NAMES):
        backwards.write(request, measurement(request, name))
    backwards.merge()
    assert_same_tables(store.folder, backwards.folder)


def test_an_unfinished_run_can_be_read_as_far_as_it_is(store):
    measure_all(store, spectrum_request(), only=2)
    run = read_run(store.folder)
    assert not run.complete
    assert run.matrices["name"].tolist() == list(NAMES[:2])


def test_a_wider_selection_reuses_and_a_narrower_one_leaves_out(store):
    assert measure_all(store, spectrum_request(NAMES[:2])) == 2
    store.merge()
    assert measure_all(store, spectrum_request()) == 4
    store.merge()
    assert read_run(store.folder).matrices["name"].tolist() == list(NAMES)
    assert measure_all(store, spectrum_request(NAMES[3:4])) == 0
    store.merge()
    run = read_run(store.folder)
    assert run.matrices["name"].tolist() == [NAMES[3]]
    assert set(run.manifest["requests"]["weight/spectrum"]["left_out"]) == set(NAMES) - {NAMES[3]}
    assert set(run.singular_values["name"]) == {NAMES[3]}


def test_another_method_is_measured_anew_and_never_mixed(store, tmp_path):
    measure_all(store, spectrum_request())
    store.merge()
    topk = spectrum_request(method="topk", top_k=4)
    assert measure_all(store, topk, only=3) == 3  # killed half way
    run = read_run(store.folder)
    assert run.matrices["name"].tolist() == list(NAMES[:3]), "rows of the exact run must not fill the gap"
    assert measure_all(store, topk) == 3
    store.merge()
    only_topk = RunStore.of(tmp_path / "other", SOURCE)
    measure_all(only_topk, topk)
    only_topk.merge()
    assert_same_tables(store.folder, only_topk.folder)
    assert read_run(store.folder).manifest["requests"]["weight/spectrum"]["left_out"] == []
    assert measure_all(store, spectrum_request()) == 0, "what was finished the first way is still there"


@pytest.mark.parametrize("first", ["values", "spectrum"])
def test_svd_after_values_and_the_reverse_enrich_one_run(store, first):
    order = [values_request(), spectrum_request()]
    for request in order if first == "values" else order[::-1]:
        assert measure_all(store, request) == 6
        store.merge()
    run = read_run(store.folder)
    assert len(run.matrices) == 6
    assert run.matrices[["mean", "spectral_norm"]].notna().all().all()
    assert len(run.singular_values) == 36
    assert len(run.histograms) == 24


def test_deltas_of_several_steps_share_the_run_in_order(store):
    requests = [Request("spectrum", NAMES[:2], {}, "delta", step) for step in (200, 100)]
    measure_all(store, spectrum_request(NAMES[:2]), *requests)
    store.merge()
    matrices = read_run(store.folder).matrices
    assert matrices["quantity"].tolist() == ["weight"] * 2 + ["delta"] * 4
    assert matrices["step"].tolist()[2:] == [100, 100, 200, 200]


def test_parts_of_a_matrix_keep_their_order_and_their_numbers(store):
    request, parts = spectrum_request(NAMES[:1], split="parts"), ("whole", "q", "k", "v")
    store.begin([request])
    store.write(request, measurement(request, NAMES[0], parts=parts))
    store.merge()
    run = read_run(store.folder)
    assert run.matrices["part"].tolist() == list(parts)
    firsts = run.singular_values[run.singular_values["index"] == 0]
    assert firsts["sigma"].tolist() == run.matrices["spectral_norm"].tolist()


def test_the_device_is_asked_where_something_is_to_be_measured(store):
    request, asked = spectrum_request(), []

    def device():
        asked.append(len(asked))
        return f"cuda:{asked[-1]}"

    for name in store.begin([request], device)[request.key]:
        store.write(request, measurement(request, name))
    assert store.begin([request], device)[request.key] == []  # all finished: what measured them stays noted
    assert asked == [0]
    assert store.manifest()["requests"][request.key]["device"] == "cuda:0"
    store.begin([request], device, fresh=True)
    assert store.manifest()["requests"][request.key]["device"] == "cuda:1"


def test_fresh_measures_everything_again(store):
    measure_all(store, spectrum_request())
    store.merge()
    todo = store.begin([spectrum_request()], fresh=True)
    assert todo == {"weight/spectrum": list(NAMES)}
    assert not store.manifest()["complete"]


def test_nothing_is_written_where_there_is_nothing_new(store):
    measure_all(store, spectrum_request())
    store.merge()
    before = (store.folder / "matrices.parquet").stat().st_mtime_ns
    assert measure_all(store, spectrum_request()) == 0
    assert store.merge()["complete"]
    assert (store.folder / "matrices.parquet").stat().st_mtime_ns == before


def test_lost_or_shortened_tables_are_merged_again(store):
    measure_all(store, spectrum_request())
    store.merge()
    (store.folder / "matrices.parquet").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"matrices\.parquet is missing or damaged \(.*\): delete it and run the same"):
        read_run(store.folder)
    measure_all(store, spectrum_request())
    store.merge()
    assert len(read_run(store.folder).matrices) == 6


FOREIGN = {
    "another type": (lambda frame: frame.assign(spectral_norm="large"), "large"),
    "no rows": (lambda frame: frame.drop(columns="rows"), "the column rows is missing"),
    "null": (lambda frame: frame.assign(status=None), "the column status holds null"),
    "a row twice": (lambda frame: pd.concat([frame, frame]), "a row stands twice"),
}


@pytest.mark.parametrize("change_name", FOREIGN)
def test_a_table_that_this_program_did_not_write_is_refused(store, change_name):
    change, said = FOREIGN[change_name]
    measure_all(store, spectrum_request())
    store.merge()
    path = store.folder / "matrices.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(StoreError, match=f"matrices.parquet is missing or damaged .*{said}"):
        read_run(store.folder)


def test_a_table_of_before_a_column_was_added_is_read(store):
    measure_all(store, spectrum_request())
    store.merge()
    path = store.folder / "matrices.parquet"
    pd.read_parquet(path).drop(columns="hill_alpha").to_parquet(path)
    assert "hill_alpha" not in read_run(store.folder).matrices


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_part_is_measured_again(store, damage):
    request = spectrum_request()
    measure_all(store, request)
    path = store.part_path(request, NAMES[2])
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[content.index(b"sigma/whole.npy") + 150] ^= 0x10
    else:
        content = bytearray()
    path.write_bytes(content)
    assert store.begin([request])[request.key] == [NAMES[2]]


def test_a_part_of_another_stamp_under_the_same_name_is_not_taken(store):
    exact, topk = spectrum_request(), spectrum_request(method="topk")
    measure_all(store, exact)
    store.begin([topk])
    shutil.copy(store.part_path(exact, NAMES[0]), store.part_path(topk, NAMES[0]))
    assert store.read(topk, NAMES[0]) is None


def test_a_run_whose_columns_meant_something_else_is_measured_anew(store, monkeypatch):
    request = spectrum_request()
    with monkeypatch.context() as before:
        for module in ("schema", "manifest", "run", "tables"):
            before.setattr(f"glmspectra.store.{module}.SCHEMA_VERSION", SCHEMA_VERSION - 1)
        measure_all(store, request)
        store.merge()
        assert len(read_run(store.folder).matrices)
    with pytest.raises(StoreError, match="measure again with the command that made it"):
        read_run(store.folder)
    assert store.begin([request])[request.key] == list(NAMES)


def test_files_rewritten_in_place_are_noticed_where_the_fingerprint_only_samples(tmp_path):
    def source(path, modified):
        files = ({"name": "model.safetensors", "size": 10**9, "fingerprint": "ff", "modified": modified},)
        return Source("big", "0123456789abcdef", path=path, files=files)

    request = spectrum_request()
    store = RunStore.of(tmp_path, source("/models/big", 1))
    measure_all(store, request)
    store.merge()
    assert measure_all(RunStore.of(tmp_path, source("/copy/of/big", 2)), request) == 0
    assert measure_all(RunStore.of(tmp_path, source("/copy/of/big", 3)), request) == 6


def test_a_folder_of_another_checkpoint_is_refused(store):
    measure_all(store, spectrum_request())
    other = RunStore(store.folder, Source("tiny", "fedcba9876543210"))
    with pytest.raises(StoreError, match="holds a run of another checkpoint") as caught:
        other.begin([spectrum_request()])
    assert "0123456789abcdef" in str(caught.value)


def test_the_manifest_says_what_was_measured_of_what_and_with_what(store):
    measure_all(store, spectrum_request(), only=2)
    store.merge(seconds=3.25)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["checkpoint"]["fingerprint"] == SOURCE.fingerprint
    assert manifest["requests"]["weight/spectrum"]["options"]["method"] == "exact"
    assert manifest["requests"]["weight/spectrum"]["done"] == list(NAMES[:2])
    assert manifest["requests"]["weight/spectrum"]["names"] == list(NAMES)
    assert manifest["versions"]["torch"]
    assert manifest["seconds"] == 3.25
    assert manifest["complete"] is False


def test_nonfinite_matrices_are_listed_and_have_no_singular_values(store):
    request = spectrum_request(NAMES[:2])
    store.begin([request])
    store.write(request, measurement(request, NAMES[0], status="nonfinite"))
    store.write(request, measurement(request, NAMES[1]))
    manifest = store.merge()
    run = read_run(store.folder)
    assert manifest["nonfinite"] == [NAMES[0]]
    assert run.matrices["status"].tolist() == ["nonfinite", "ok"]
    assert set(run.singular_values["name"]) == {NAMES[1]}


def test_a_misspelt_column_is_refused(store):
    request = spectrum_request()
    good = measurement(request, NAMES[0])
    with pytest.raises(StoreError, match="effective_rnak"):
        type(good)(**{**good.__dict__, "rows": [{**good.rows[0], "effective_rnak": 1.0}]})
    lacking = {key: value for key, value in good.rows[0].items() if key != "dtype"}
    with pytest.raises(StoreError, match="dtype"):
        type(good)(**{**good.__dict__, "rows": [lacking]})


def test_reading_what_is_not_a_run_says_so(tmp_path, store):
    with pytest.raises(StoreError, match=r"holds no run .* measure one first"):
        read_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="is not the manifest of a run"):
        read_run(tmp_path)
    store.begin([spectrum_request()])
    with pytest.raises(StoreError, match=r"no matrix of the run .* is finished yet"):
        read_run(store.folder)


def test_runs_are_listed_by_when_they_were_written(tmp_path):
    assert list_runs(tmp_path / "nowhere") == []
    for name in ("b", "a"):
        RunStore.of(tmp_path, Source(name, "00")).begin([spectrum_request()])
    assert [path.name for path in list_runs(tmp_path)] == ["b-00", "a-00"]


def with_vectors(count):
    request = spectrum_request(NAMES[:2])
    return Request(request.kind, request.names, request.options, vectors=count)


def test_vectors_are_kept_beside_the_numbers_and_read_back(store):
    request, rng = with_vectors(2), np.random.default_rng(0)
    left, right = rng.random((8, 2), dtype=np.float32), rng.random((6, 2), dtype=np.float32)
    store.begin([request])
    for name in request.names:
        store.write(request, measurement(request, name), {"whole": (left, right)})
    store.merge()
    read = read_vectors(store.folder, NAMES[1])
    assert list(read) == ["whole"]
    np.testing.assert_array_equal(read["whole"][0], left)
    np.testing.assert_array_equal(read["whole"][1], right)
    with pytest.raises(RequestError, match=r"keeps no singular vectors of layers\.2\.dense: run"):
        read_vectors(store.folder, "layers.2.dense")


def test_more_vectors_than_are_there_are_measured_and_fewer_are_not(store):
    store.begin([with_vectors(2)])
    for name in NAMES[:2]:
        store.write(with_vectors(2), measurement(with_vectors(2), name), {})
    assert store.begin([with_vectors(0)])["weight/spectrum"] == []
    assert store.begin([with_vectors(1)])["weight/spectrum"] == []
    assert store.begin([with_vectors(3)])["weight/spectrum"] == list(NAMES[:2])
    path = store.vectors_path(with_vectors(2), NAMES[0])
    path.write_bytes(path.read_bytes()[:20])
    assert store.begin([with_vectors(2)])["weight/spectrum"] == [NAMES[0]]
