"""The same weights and the same command give the same bytes of tables and figures; two threads the same numbers."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from glmspectra.store import list_runs, read_run
from tests.faults.killed import run_until
from tests.sweep.small_checkpoint import write_small_checkpoint

pytestmark = pytest.mark.slow
TIMED = ("manifest.json", "matrices.parquet", "index.html")  # they hold seconds and dates


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of results by name: the same command twice on one thread, once on two."""
    from glmspectra.cli.main import main

    place = tmp_path_factory.mktemp("runs")
    model = write_small_checkpoint(place / "model", layers=1)

    def measure(out, threads):
        torch.set_num_threads(threads)
        command = ["svd", "--layers", "all", "--model", str(model), "--out", str(out), "--vectors", "2"]
        drawn = ["--svg"] if threads == 1 else ["--no-report"]
        main([*command, *drawn, "--export-jsonl", "--quiet", "--device", "cpu"])

    made = {"first": 1, "second": 1, "two threads": 2}
    for name, threads in made.items():
        assert run_until(lambda name=name, threads=threads: measure(place / name, threads), None) == 0
    return {name: place / name for name in made}


def files_of(out):
    """Path -> bytes of every result that is a function of weights and request alone."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in TIMED and path.parent.name != "parts"
    }


def parts_of(out):
    """Path -> what a part file holds but its seconds: the record, and the bytes of each array."""
    found = {}
    for path in sorted(out.rglob("parts/*.npz")):
        with np.load(path) as archive:
            arrays = {name: archive[name].tobytes() for name in archive.files}
        record = json.loads(arrays.pop("record"))
        assert all(row.pop("seconds") > 0 for row in record["rows"])
        found[str(path.relative_to(out))] = (record, arrays)
    return found


def tables(out):
    (folder,) = list_runs(out / "param_matrix")
    return read_run(folder)


def test_the_same_command_gives_the_same_bytes(runs):
    first, second = files_of(runs["first"]), files_of(runs["second"])
    assert first.keys() == second.keys()
    assert sum(name.endswith(".svg") for name in first) > 15
    assert any(name.endswith("singular_values.parquet") for name in first)
    assert not [name for name in first if first[name] != second[name]]
    parts = parts_of(runs["first"])
    assert len(parts) == 8
    assert parts == parts_of(runs["second"])
    pd.testing.assert_frame_equal(
        tables(runs["first"]).matrices.drop(columns="seconds"),
        tables(runs["second"]).matrices.drop(columns="seconds"),
        check_exact=True,
    )


def test_two_threads_give_the_same_numbers_within_their_error_bounds(runs):
    one, two = tables(runs["first"]), tables(runs["two threads"])
    names = ["name", "part", "index"]
    pd.testing.assert_frame_equal(one.singular_values[names], two.singular_values[names])
    apart = np.abs(one.singular_values["sigma"] - two.singular_values["sigma"])
    assert (apart <= one.singular_values["error_bound"] + two.singular_values["error_bound"]).all()
    pd.testing.assert_frame_equal(one.histograms, two.histograms)
    pd.testing.assert_frame_equal(one.matrices.drop(columns="seconds"), two.matrices.drop(columns="seconds"), rtol=1e-5)
    same = sum(content == files_of(runs["two threads"]).get(name) for name, content in files_of(runs["first"]).items())
    print(f"{same} of {len(files_of(runs['first']))} files the same bytes on one and two threads")
