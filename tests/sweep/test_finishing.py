"""Summaries and writing of one matrix while the next is computed: in order, one at a time, and nothing lost."""

import sys
import threading
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoint import matrix, write_small_checkpoint

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.errors import CheckpointError, StoreError
from glmspectra.store import RunStore, read_run
from glmspectra.sweep import SweepOptions, source_of, sweep
from glmspectra.sweep.lanes import in_lanes

# By name: the package offers the function under the module's name.
SWEEP = "glmspectra.sweep.sweep"
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
        module = sys.modules[SWEEP]
        begin, write = module.begin_spectrum, RunStore.write

        def watched_begin(weight, record, *arguments):
            before_compute(record.name)
            self.computed.append(record.name)
            return begin(weight, record, *arguments)

        def watched_write(store, request, measurement, *arguments):
            before_write(measurement.name)
            self.threads.add(threading.current_thread().name.rsplit("_", 1)[0])
            write(store, request, measurement, *arguments)
            self.written.append(measurement.name)

        monkeypatch.setattr(module, "begin_spectrum", watched_begin)
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


def in_two_lanes(monkeypatch):
    """As on a CUDA device."""
    monkeypatch.setattr(sys.modules[SWEEP], "lanes_of", lambda device: 2)


def test_two_lanes_give_the_tables_of_one_in_the_same_order(model, tmp_path, monkeypatch):
    one = run_sweep(model, tmp_path / "one", values=True, split="parts")
    in_two_lanes(monkeypatch)
    watch = Watch(monkeypatch)
    two = run_sweep(model, tmp_path / "two", values=True, split="parts")
    assert watch.written == [name for name in NAMES for _ in ("values", "spectrum")]
    pd.testing.assert_frame_equal(one.matrices.drop(columns="seconds"), two.matrices.drop(columns="seconds"))
    pd.testing.assert_frame_equal(one.singular_values, two.singular_values)
    pd.testing.assert_frame_equal(one.histograms, two.histograms)


def test_two_lanes_keep_what_came_before_an_error(model, tmp_path, monkeypatch):
    in_two_lanes(monkeypatch)

    def fail(name):
        if name == NAMES[3]:
            raise CheckpointError("the fourth is truncated.")

    watch = Watch(monkeypatch, before_compute=fail)
    with pytest.raises(CheckpointError, match="the fourth is truncated"):
        run_sweep(model, tmp_path)
    assert watch.written == NAMES[:3]


def numbers_then_error(count):
    yield from range(count)
    raise CheckpointError("no more can be read.")


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_lanes_keep_the_order_and_raise_a_readers_error_last(lanes):
    found = []
    with pytest.raises(CheckpointError, match="no more can be read"):
        for square in in_lanes(numbers_then_error(7), lambda number: number**2, "cpu", lanes):
            found.append(square)
    assert found == [number**2 for number in range(7)]


def test_lanes_work_at_the_same_time():
    barrier = threading.Barrier(2, timeout=30)  # one alone would never pass
    passed = list(in_lanes(iter(range(4)), lambda number: barrier.wait() >= 0, "cpu", 2))
    assert passed == [True] * 4


@pytest.mark.parametrize("lanes", [1, 2])
def test_no_job_is_held_beyond_its_time(lanes):
    """A weight that is done must not lie beside the next two."""
    alive = weakref.WeakSet()
    most = []

    def jobs():
        for _ in range(6):
            tensor = torch.zeros(3)
            alive.add(tensor)
            most.append(len(alive))
            yield tensor
            del tensor

    assert len(list(in_lanes(jobs(), lambda tensor: float(tensor.sum()), "cpu", lanes))) == 6
    assert max(most) <= lanes + 1 if lanes > 1 else max(most) == 1
