"""One of several processes is killed: the others stop by themselves with the reason, and the rerun completes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from glmspectra.store import list_runs, read_run
from tests.sweep.small_checkpoint import write_small_checkpoint


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(model, out, rank, count, port):
    """One process as torchrun would start it, but without torchrun, which would end the others by itself."""
    environment = {
        **os.environ,
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
    }
    command = [
        sys.executable,
        "-m",
        "glmspectra",
        "svd",
        "--layers",
        "all",
        "--no-report",
        "--quiet",
        "--device",
        "cpu",
    ]
    return subprocess.Popen(
        [*command, "--model", str(model), "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_parts(out: Path, count: int, processes) -> None:
    while len(list(out.rglob("parts/*.npz"))) < count:
        assert all(process.poll() is None for process in processes), "a process ended too early"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_rest_stops_with_a_reason_and_the_rerun_completes(tmp_path, count):
    model = write_small_checkpoint(tmp_path / "model", layers=12)
    out = tmp_path / "out"
    port = free_port()
    processes = [start(model, out, rank, count, port) for rank in range(count)]
    try:
        wait_for_parts(out, 2, processes)
        processes[-1].send_signal(signal.SIGKILL)
        started = time.monotonic()
        said = [process.communicate(timeout=300)[1] for process in processes[:-1]]
        print(f"{count} processes: the rest had stopped {time.monotonic() - started:.1f} s after the kill")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all(process.returncode == 1 for process in processes[:-1])
    assert "error: another process of this command ended before its work was done" in said[0]
    assert "Traceback" not in "".join(said)
    assert "not foreseen" not in "".join(said)
    again = start(model, out, 0, 1, port)
    assert again.wait(timeout=300) == 0, again.stderr.read()
    alone = start(model, tmp_path / "alone", 0, 1, port)
    assert alone.wait(timeout=300) == 0
    ((first,), (second,)) = (list_runs(folder / "param_matrix") for folder in (out, tmp_path / "alone"))
    pd.testing.assert_frame_equal(
        read_run(first).matrices.drop(columns="seconds"), read_run(second).matrices.drop(columns="seconds")
    )
