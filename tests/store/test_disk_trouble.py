"""A full disk, a read-only folder, a kill in the middle of a write.

One clear sentence, and what was finished is kept.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from glmspectra.errors import StoreError
from glmspectra.files import UNFINISHED, remove_leftovers, write_atomically
from glmspectra.store import Measurement, RunStore, read_run
from tests.store.made_up_measurements import NAMES, SOURCE, measure_all, measurement, spectrum_request


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where this user may mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small tmpfs can only be mounted by root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def big(request, name):
    """A measurement whose part file takes about 64 KB."""
    small = measurement(request, name)
    sigma = np.random.default_rng(0).random(4096)
    return Measurement(
        small.kind,
        small.quantity,
        small.step,
        small.name,
        small.position,
        small.rows,
        {"whole": (sigma, sigma)},
    )


def test_a_full_disk_is_one_sentence_and_keeps_what_was_finished(small_disk):
    store, request = RunStore.of(small_disk, SOURCE), spectrum_request()
    store.begin([request])
    written = []
    with pytest.raises(StoreError, match=r"the disk is full; what was finished is kept, so free some space") as caught:
        for name in NAMES:
            store.write(request, big(request, name))
            written.append(name)
    assert str(caught.value).count(". ") == 0, "one sentence"
    assert 1 <= len(written) < len(NAMES)
    assert not list(store.folder.rglob(f"*{UNFINISHED}")), "nothing half-written is left"
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert store.begin([request])[request.key] == list(NAMES[len(written) :])
    for name in NAMES[len(written) :]:
        store.write(request, big(request, name))
    assert store.merge()["complete"]
    assert len(read_run(store.folder).singular_values) == 6 * 4096


def test_a_disk_that_fills_while_merging_keeps_the_parts_and_the_old_tables(small_disk):
    store, request = RunStore.of(small_disk, SOURCE), spectrum_request()
    measure_all(store, request, only=2)
    store.merge()
    measure_all(store, request)
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"0" * 4096)
    with pytest.raises(StoreError, match="the disk is full"):
        store.merge()
    assert read_run(store.folder).matrices["name"].tolist() == list(NAMES), "read from the parts"
    filler.unlink()
    assert store.merge()["complete"]


def test_a_read_only_folder_is_one_sentence(small_disk):
    store = RunStore.of(small_disk, SOURCE)
    measure_all(store, spectrum_request(), only=1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="its folder is read-only for this user; choose another folder with --out"):
        store.begin([spectrum_request()])
    with pytest.raises(StoreError, match="read-only"):
        RunStore.of(small_disk / "new", SOURCE).begin([spectrum_request()])
    assert len(read_run(store.folder).matrices) == 1, "reading needs no writing"


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "param_matrix").write_text("")
    with pytest.raises(StoreError, match="a file is in the way of a folder"):
        RunStore.of(tmp_path / "param_matrix", SOURCE).begin([spectrum_request()])


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(b"old")

    def fails(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="the disk is full"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".a.npz.{dead.pid}{UNFINISHED}").touch()
    living = tmp_path / f".b.npz.{os.getpid()}{UNFINISHED}"
    living.touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [living]


WRITER = """
import itertools, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from glmspectra.store import RunStore
from tests.store.made_up_measurements import NAMES, SOURCE, measurement, spectrum_request
from tests.store.test_disk_trouble import big
store, request = RunStore.of(Path(sys.argv[1]), SOURCE), spectrum_request()
store.begin([request])
print("begun", flush=True)
for number in itertools.count():
    store.write(request, big(request, NAMES[number % len(NAMES)]))
    store.merge()
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.05, 0.11])
def test_killed_at_any_moment_every_file_is_whole_or_absent(tmp_path, delay):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parents[2])],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "begun\n"
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    store, request = RunStore.of(tmp_path, SOURCE), spectrum_request()
    finished = {path.name for path in (store.folder / "parts").glob("*.npz")}
    missing = store.begin([request])[request.key]
    assert len(finished) + len(missing) == len(NAMES), "a part that is there is whole"
    assert not list(store.folder.rglob(f"*{UNFINISHED}"))
    for name in missing:
        store.write(request, big(request, name))
    assert store.merge()["complete"]
    run = read_run(store.folder)
    assert run.matrices["name"].tolist() == list(NAMES)
    assert len(run.singular_values) == len(NAMES) * 4096


def test_processes_that_write_into_one_run_do_not_hinder_each_other(tmp_path):
    store, request = RunStore.of(tmp_path, SOURCE), spectrum_request()
    writers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER.replace("itertools.count()", "range(12)"),
                str(tmp_path),
                str(Path(__file__).parents[2]),
            ],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert store.begin([request])[request.key] == []
    assert len(read_run(store.folder).singular_values) == len(NAMES) * 4096
