"""Summaries and writing of one matrix while the next is computed: in order, one at a time, and nothing lost."""

import itertools
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.errors import CheckpointError, StoreError
from glmspectra.store import RunStore, read_run
from glmspectra.sweep import SweepOptions, share, source_of, sweep
from glmspectra.sweep.pipeline import batches
from tests.sweep.small_checkpoint import matrix, write_small_checkpoint

NAMES = [matrix(layer, name) for layer in (0, 1) for name in ("query_key_value", "dense", "dense_h_to_4h")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("models") / "small", layers=2)


def run_sweep(model, out, **options):
    with open_checkpoint(model) as checkpoint:
        store = RunStore.of(out, source_of(checkpoint))
        asked = SweepOptions(**{"values": False, "quiet": True, "device": "cpu", **options})
        sweep(checkpoint, select(checkpoint, exclude=["*4h_to_h*"]), asked, store)
    return read_run(store.folder)


class Watch:
    """Notes when matrices are computed and written; `before_write(name)` is called before each is."""

    def __init__(self, monkeypatch, before_write=lambda name: None, before_compute=lambda name: None):
        self.computed, self.written, self.threads = [], [], set()
        begin, write = share.begin_spectrum, RunStore.write

        def watched_begin(weight, record, *arguments):
            before_compute(record.name)
            self.computed.append(record.name)
            return begin(weight, record, *arguments)

        def watched_write(store, request, measurement, *arguments):
            before_write(measurement.name)
            self.threads.add(threading.current_thread().name.rsplit("_", 1)[0])
            write(store, request, measurement, *arguments)
            self.written.append(measurement.name)

        monkeypatch.setattr(share, "begin_spectrum", watched_begin)
        monkeypatch.setattr(RunStore, "write", watched_write)


def test_a_matrix_is_written_while_the_next_is_computed(model, tmp_path, monkeypatch):
    second_begun = threading.Event()

    def wait_for_the_second(name):
        if name == NAMES[0]:
            assert second_begun.wait(30), "the second matrix was not begun before the first was written"

    watch = Watch(monkeypatch, wait_for_the_second, lambda name: second_begun.set() if name == NAMES[1] else None)
    run = run_sweep(model, tmp_path)
    assert watch.computed == watch.written == NAMES, "in order"
    assert watch.threads == {"glmspectra-finish"}
    assert run.complete


def test_only_one_matrix_waits_to_be_written(model, tmp_path, monkeypatch):
    behind = []
    watch = Watch(monkeypatch, before_compute=lambda name: behind.append(len(watch.computed) - len(watch.written)))
    run_sweep(model, tmp_path)
    assert len(behind) == len(NAMES)
    assert max(behind) <= 1


def test_a_refused_write_ends_the_sweep_with_its_sentence_and_keeps_the_rest(model, tmp_path, monkeypatch):
    def refuse(name):
        if name == NAMES[2]:
            raise StoreError("the disk is full.")

    watch = Watch(monkeypatch, refuse)
    with pytest.raises(StoreError, match="the disk is full"):
        run_sweep(model, tmp_path)
    assert watch.written == NAMES[:2]
    assert len(watch.computed) <= 4, "noticed at the next matrix"
    monkeypatch.undo()
    again = Watch(monkeypatch)
    assert run_sweep(model, tmp_path).complete
    assert again.computed == NAMES[2:]


def test_the_last_matrix_is_waited_for_and_its_error_raised(model, tmp_path, monkeypatch):
    def refuse(name):
        if name == NAMES[-1]:
            raise StoreError("the disk is full.")

    Watch(monkeypatch, refuse)
    with pytest.raises(StoreError, match="the disk is full"):
        run_sweep(model, tmp_path)


def test_what_was_computed_before_an_interruption_is_written(model, tmp_path, monkeypatch):
    interrupted = threading.Event()

    def interrupt(name):
        if name == NAMES[2]:
            interrupted.set()
            raise KeyboardInterrupt

    def hold_the_second(name):
        if name == NAMES[1]:
            assert interrupted.wait(30)

    watch = Watch(monkeypatch, hold_the_second, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(model, tmp_path)
    assert watch.written == NAMES[:2], "the second was in flight"


def test_a_fused_matrix_has_an_edge_of_its_parts_with_and_without_split(tmp_path):
    """Noise of unequal scale in q, k, v and in gate, up: no spikes, whether or not the parts are measured."""
    model = write_small_checkpoint(tmp_path / "model", layers=1)
    tensors = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    fused = [matrix(0, "query_key_value"), matrix(0, "dense_h_to_4h")]
    for name in fused:
        noise = torch.randn(tensors[name].shape, generator=generator) * 0.02
        noise[len(noise) // 2 :] *= 3
        tensors[name] = noise.half()
    save_file(tensors, model / "model.safetensors")
    found = {}
    for split in ("no", "parts"):
        run = run_sweep(model, tmp_path / split, split=split)
        found[split] = run.matrices[run.matrices["part"] == "whole"].set_index("name").loc[fused]
        assert (found[split]["mp_spikes"] <= 1).all()
    np.testing.assert_allclose(found["no"]["mp_edge"], found["parts"]["mp_edge"], rtol=0.05)
    np.testing.assert_allclose(found["no"]["mp_sigma"], 0.02 * np.sqrt(5), rtol=0.1)


def test_matrices_solved_together_are_measured_as_each_by_itself(model, tmp_path, monkeypatch):
    """The way of a CUDA device, on a processor: batches of two, solved in a thread of their own."""
    alone = run_sweep(model, tmp_path / "alone", values=True)
    monkeypatch.setattr(share, "_share_of_batch", lambda *_: 0.45)
    together = run_sweep(model, tmp_path / "together", values=True)
    assert together.complete
    columns = [name for name in alone.matrices if name != "seconds"]
    assert together.matrices[columns].equals(alone.matrices[columns])
    assert together.singular_values.equals(alone.singular_values)


def test_what_was_begun_before_a_file_that_cannot_be_read_is_measured(model, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "_share_of_batch", lambda *_: 0.2)  # one batch of all
    read = share.read_ahead

    def broken(*arguments):
        yield from itertools.islice(read(*arguments), 2)
        raise CheckpointError("the file is cut off.")

    monkeypatch.setattr(share, "read_ahead", broken)
    with pytest.raises(CheckpointError, match="cut off"):
        run_sweep(model, tmp_path)
    monkeypatch.setattr(share, "read_ahead", read)
    watch = Watch(monkeypatch)
    run_sweep(model, tmp_path)
    assert watch.written == NAMES[2:]


def test_batches_are_of_nearly_equal_weight():
    assert batches([1.0] * 3) == [1, 1, 1]
    assert batches([1 / 32] * 112) == [28] * 4
    assert batches([]) == []
    sizes = batches([0.1, 0.5, 0.1, 0.9, 0.3, 0.3, 0.3])
    assert sum(sizes) == 7
    assert len(sizes) == 3
