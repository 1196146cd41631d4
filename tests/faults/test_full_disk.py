"""A full disk, for real: a tmpfs of a few pages. One sentence, nothing half-written, and the same command goes on."""

import shutil
import subprocess

import pytest

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.errors import StoreError
from glmspectra.files import UNFINISHED, atomic_folder, exclusive, write_text
from glmspectra.store import RunStore, read_run
from glmspectra.sweep import SweepOptions, source_of, sweep
from tests.checkpoint.made_checkpoints import chatglm2_tensors, write
from tests.sweep.small_checkpoint import write_small_checkpoint


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MiB; skipped without the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place, leave=0):
    """A file that takes all room but `leave` bytes."""
    path = place / "filler"
    path.write_bytes(b"\0" * max(0, shutil.disk_usage(place).free - leave))
    return path


def unfinished(place):
    return [path for path in place.rglob("*") if UNFINISHED in path.name and path.is_file()]


def test_convert_keeps_what_is_finished_and_goes_on(small_disk, tmp_path):
    source = write(tmp_path / "source", chatglm2_tensors(), "safetensors")
    filler = fill(small_disk, leave=60 << 10)
    with open_checkpoint(source) as checkpoint:
        with pytest.raises(StoreError, match="the disk is full; what was finished is kept"):
            convert(checkpoint, small_disk / "out", shard_bytes=12_000)
        assert not (small_disk / "out").exists()
        kept = list((small_disk / ".out.partial").glob("*.safetensors"))
        assert kept
        assert not unfinished(small_disk)
        filler.unlink()
        resumed = convert(checkpoint, small_disk / "out", shard_bytes=12_000).resumed
    assert resumed >= len(kept) - 1  # the last one may have had room, and the note of it none
    assert resumed >= 1
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_svd_keeps_what_is_finished_and_goes_on(small_disk, tmp_path):
    model = write_small_checkpoint(tmp_path / "model", layers=2)
    options = SweepOptions(values=False, quiet=True, device="cpu")
    filler = fill(small_disk, leave=48 << 10)
    with open_checkpoint(model) as checkpoint:
        store = RunStore.of(small_disk / "param_matrix", source_of(checkpoint))
        with pytest.raises(StoreError, match="the disk is full"):
            sweep(checkpoint, select(checkpoint), options, store)
        kept = len(list(store.folder.rglob("*.npz")))
        assert not unfinished(small_disk)
        filler.unlink()
        result = sweep(checkpoint, select(checkpoint), options, store)
    assert result.measured == result.matrices - kept
    assert read_run(store.folder).complete


def test_a_text_and_a_folder_leave_nothing(small_disk):
    filler = fill(small_disk, leave=8 << 10)
    with pytest.raises(StoreError, match=r"page\.html cannot be written: the disk is full"):
        write_text(small_disk / "page.html", "x" * (64 << 10))
    with pytest.raises(StoreError, match="the disk is full"), atomic_folder(small_disk / "adapter") as staging:
        (staging / "weights").write_bytes(b"x" * (64 << 10))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    filler.unlink()
    write_text(small_disk / "page.html", "x" * (64 << 10))


def test_libraries_that_hide_the_number_of_the_error(small_disk):
    import torch
    from safetensors.torch import save_file

    fill(small_disk, leave=8 << 10)
    for name, save in (("torch", torch.save), ("safetensors", save_file)):
        with pytest.raises(StoreError, match="the disk is full"), atomic_folder(small_disk / name) as staging:
            save({"a": torch.zeros(1 << 18)}, staging / "weights")
        assert not (small_disk / f".{name}{UNFINISHED}").exists()


def test_a_lock_on_a_full_disk_is_one_sentence(small_disk):
    fill(small_disk)
    with pytest.raises(StoreError, match="the disk is full"), exclusive(small_disk / "run", "svd"):
        pass
