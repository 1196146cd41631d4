"""A checkpoint that changes while it is read: nothing of the new content stands under the old fingerprint."""

import importlib
import os

import numpy as np
import pytest
from safetensors.torch import load_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.writing import folder as writing
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.errors import CheckpointError
from glmspectra.store import RunStore, read_run
from glmspectra.sweep import SweepOptions, source_of, sweep
from tests.sweep.small_checkpoint import write_small_checkpoint

sweeping = importlib.import_module("glmspectra.sweep.share")
OPTIONS = SweepOptions(values=False, quiet=True, device="cpu")


def replace(model, other):
    os.replace(other / "model.safetensors", model / "model.safetensors")


def rewrite_in_place(model, other):
    """Over the old bytes, never shorter: a file cut short ends whoever reads it through a mapping by SIGBUS."""
    with (model / "model.safetensors").open("r+b") as file:
        file.write((other / "model.safetensors").read_bytes())


def remove(model, other):
    (model / "model.safetensors").rename(other / "away")


def measure(model, out):
    with open_checkpoint(model) as checkpoint:
        store = RunStore.of(out, source_of(checkpoint))
        sweep(checkpoint, select(checkpoint), OPTIONS, store)
    return store.folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(replace, "changed while"), (rewrite_in_place, "changed while"), (remove, "cannot be found again")],
)
def test_svd_stops_and_the_next_one_measures_the_file_as_it_is_now(tmp_path, monkeypatch, change, sentence):
    model = write_small_checkpoint(tmp_path / "model", layers=2, seed=1)
    other = write_small_checkpoint(tmp_path / "other", layers=2, seed=2)
    first = load_file(model / "model.safetensors")
    first = {name: tensor.clone() for name, tensor in first.items()}
    begin = sweeping.begin_spectrum
    seen = []

    def changing(weight, record, *arguments):
        seen.append(record.name)
        if len(seen) == 3:
            change(model, other)
        return begin(weight, record, *arguments)

    monkeypatch.setattr(sweeping, "begin_spectrum", changing)
    with pytest.raises(CheckpointError, match=sentence):
        measure(model, tmp_path / "tables")
    monkeypatch.undo()
    (folder,) = (tmp_path / "tables").iterdir()
    kept = list((folder / "parts").glob("*.npz"))
    assert 1 <= len(kept) <= 2, "what was measured before the change, and not what was at hand then"
    if change is remove:
        (other / "away").rename(model / "model.safetensors")
        assert measure(model, tmp_path / "tables") == folder
        return
    again = measure(model, tmp_path / "tables")
    assert again != folder
    now = load_file(model / "model.safetensors")
    for run_folder, tensors in ((again, now), (folder, first)):
        if run_folder is folder:
            write_back(model, first)
            assert measure(model, tmp_path / "tables") == folder, "the old content has its old fingerprint"
        sigmas = read_run(run_folder).singular_values
        for name in select_names(model):
            found = sigmas[sigmas["name"] == name].sort_values("index")["sigma"].to_numpy()
            expected = np.linalg.svd(tensors[name].double().numpy(), compute_uv=False)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def write_back(model, tensors):
    from safetensors.torch import save_file

    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def select_names(model):
    with open_checkpoint(model) as checkpoint:
        return [record.name for record in select(checkpoint)]


def test_convert_stops_and_goes_on_with_nothing_of_the_earlier_file(tmp_path, monkeypatch):
    model = write_small_checkpoint(tmp_path / "model", layers=2, seed=1)
    other = write_small_checkpoint(tmp_path / "other", layers=2, seed=2)
    write_shard = writing.write_shard
    seen = []

    def changing(path, *arguments):
        seen.append(path)
        if len(seen) == 3:
            replace(model, other)
        return write_shard(path, *arguments)

    monkeypatch.setattr(writing, "write_shard", changing)
    with open_checkpoint(model) as checkpoint, pytest.raises(CheckpointError, match="changed while"):
        convert(checkpoint, tmp_path / "out", shard_bytes=20_000)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with open_checkpoint(model) as checkpoint:
        assert convert(checkpoint, tmp_path / "out", shard_bytes=20_000).resumed == 0
    expected = load_file(model / "model.safetensors")
    with open_checkpoint(tmp_path / "out") as written:
        assert all((written.read(name) == tensor).all() for name, tensor in expected.items())


def test_a_file_that_changes_before_its_fingerprint_is_taken_is_refused(tmp_path):
    model = write_small_checkpoint(tmp_path / "model", layers=1, seed=1)
    other = write_small_checkpoint(tmp_path / "other", layers=1, seed=2)
    with open_checkpoint(model) as checkpoint:
        replace(model, other)
        with pytest.raises(CheckpointError, match="changed while"):
            source_of(checkpoint)
