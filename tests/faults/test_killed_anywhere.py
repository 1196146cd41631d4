"""Killed before any of its file events, a command goes on to the result of an undisturbed one, and leaves nothing."""

import hashlib
import shutil

import pandas as pd
import pytest

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.files import exclusive
from glmspectra.store import RunStore, read_run
from glmspectra.sweep import SweepOptions, source_of, sweep
from tests.checkpoint.made_checkpoints import chatglm2_tensors, write
from tests.faults.killed import count_events, run_until
from tests.sweep.small_checkpoint import write_small_checkpoint


def files_of(folder):
    """Path -> checksum of every file, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def spread(count, points):
    """`points` event numbers over 1 to count, both ends among them; all where there are fewer."""
    if count <= points:
        return range(1, count + 1)
    return sorted({1 + round(i * (count - 1) / (points - 1)) for i in range(points)})


@pytest.mark.parametrize("linked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_convert(tmp_path, linked):
    source = write(tmp_path / "source", chatglm2_tensors(layers=1), "bin", shards=2)

    def run(out):
        with open_checkpoint(source) as checkpoint:
            convert(checkpoint, out, shard_bytes=12_000)

    run(tmp_path / "undisturbed")
    expected = files_of(tmp_path / "undisturbed")
    room = tmp_path / "room"
    room.mkdir()
    out = room / "out"

    def prepare():
        shutil.rmtree(room)
        room.mkdir()
        if linked:
            (room / "real").mkdir()
            out.symlink_to("real")

    prepare()
    events = count_events(lambda: run(out), tmp_path / "count")
    assert events > 20
    for event in spread(events, 8 if linked else 30):
        prepare()
        assert run_until(lambda: run(out), event) == -9
        status = run_until(lambda: run(out), None)
        whole = files_of(out)
        if status != 0:  # killed after the last rename, when nothing was left to do
            assert event >= events - 1
        assert whole == expected, f"killed before event {event} of {events}"
        assert sorted(path.name for path in room.iterdir()) == (["out", "real"] if linked else ["out"])


@pytest.mark.slow
def test_svd(tmp_path):
    model = write_small_checkpoint(tmp_path / "model", layers=1)
    options = SweepOptions(values=False, quiet=True, device="cpu")

    def run(out):
        with open_checkpoint(model) as checkpoint:
            store = RunStore.of(out, source_of(checkpoint))
            sweep(checkpoint, select(checkpoint), options, store)

    def tables(out):
        (folder,) = out.iterdir()
        found = read_run(folder)
        assert found.complete
        assert not [path for path in out.rglob(".*") if path.name != ".lock"], "something is left"
        return found

    run(tmp_path / "undisturbed")
    expected = tables(tmp_path / "undisturbed")
    events = count_events(lambda: run(tmp_path / "counted"), tmp_path / "count")
    out = tmp_path / "out"
    for event in spread(events, 20):
        shutil.rmtree(out, ignore_errors=True)
        assert run_until(lambda: run(out), event) == -9
        assert run_until(lambda: run(out), None) == 0
        found = tables(out)
        pd.testing.assert_frame_equal(
            found.matrices.drop(columns="seconds"), expected.matrices.drop(columns="seconds"), rtol=1e-9
        )
        pd.testing.assert_frame_equal(found.singular_values, expected.singular_values, rtol=1e-9)


def test_a_second_convert_into_the_folder_waits_its_turn_with_a_sentence(tmp_path):
    from glmspectra.errors import RequestError

    source = write(tmp_path / "source", chatglm2_tensors(layers=1), "safetensors")
    with (
        exclusive(tmp_path / "out", "convert", beside=True),
        open_checkpoint(source) as checkpoint,
        pytest.raises(RequestError, match=r"out is in use: process \d+ on .* \(convert, since "),
    ):
        convert(checkpoint, tmp_path / "out")
