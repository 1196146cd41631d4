"""One of several processes is killed: the others stop by themselves with the reason, and the rerun completes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from glmspectra.store import list_runs, read_run
from tests.faults.commands import Command, begin_two
from tests.sweep.small_checkpoint import write_small_checkpoint


def kill_the_second(processes: list[Command], begun: Callable[[], bool]) -> None:
    """Once it has begun; the other ends by itself, with a reason."""
    first, second = processes
    try:
        while not begun():
            assert first.poll() is None, f"it ended too early: {first.said()}"
            assert second.poll() is None, f"it ended too early: {second.said()}"
            time.sleep(0.02)
        second.kill()
        started = time.monotonic()
        status = first.wait()
        print(f"the other had stopped {time.monotonic() - started:.1f} s after the kill")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert status == 1, first.said()
    assert "error: another process of this command ended before its work was done" in first.said()
    assert "Traceback" not in first.said()
    assert "not foreseen" not in first.said()


def finish(model, out):
    """The same command alone, in this process."""
    from glmspectra.cli.main import main

    command = ["svd", "--layers", "all", "--no-report", "--quiet", "--device", "cpu"]
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--model", str(model), "--out", str(out)])
    assert not leaving.value.code


def wait_for_parts(out: Path, count: int, processes) -> None:
    while len(list(out.rglob("parts/*.npz"))) < count:
        assert all(process.poll() is None for process in processes), "a process ended too early"
        time.sleep(0.02)


@pytest.mark.slow
def test_the_rest_stops_with_a_reason_and_the_rerun_completes(tmp_path):
    model = write_small_checkpoint(tmp_path / "model", layers=12)
    out = tmp_path / "out"
    command = ["svd", "--layers", "all", "--no-report", "--quiet", "--device", "cpu", "--model", model, "--out", out]
    kill_the_second(begin_two(tmp_path, *command), lambda: len(list(out.rglob("parts/*.npz"))) >= 2)
    finish(model, out)
    finish(model, tmp_path / "alone")
    ((first,), (second,)) = (list_runs(folder / "param_matrix") for folder in (out, tmp_path / "alone"))
    pd.testing.assert_frame_equal(
        read_run(first).matrices.drop(columns="seconds"), read_run(second).matrices.drop(columns="seconds")
    )


def children_of(process: int) -> list[int]:
    """Processes that this one started, the oldest first."""
    with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_under_torchrun_the_rest_is_ended_and_the_rerun_completes(tmp_path, count):
    model = write_small_checkpoint(tmp_path / "model", layers=12)
    out = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*torchrun, "-m", "glmspectra", "svd", "--layers", "all", "--no-report", "--quiet", "--device", "cpu"]
    command += ["--model", str(model), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_parts(out, 2, [agent])
        workers = children_of(agent.pid)
        assert len(workers) == count
        os.kill(workers[-1], signal.SIGKILL)
        started = time.monotonic()
        said = agent.communicate(timeout=300)[1]
        print(f"torchrun, {count} processes: all had stopped {time.monotonic() - started:.1f} s after the kill")
    finally:
        agent.kill()
        agent.wait()
    assert agent.returncode != 0
    assert "Signal 9 (SIGKILL)" in said
    assert "not foreseen" not in said
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    kept = len(list(out.rglob("parts/*.npz")))
    finish(model, out)
    (folder,) = list_runs(out / "param_matrix")
    assert read_run(folder).complete
    assert kept >= 2


@pytest.mark.slow
def test_training_in_two_processes_stops_with_a_reason_and_the_rerun_completes(tmp_path):
    from glmspectra.cli.main import main
    from tests.faults.killed import run_until

    assert run_until(lambda: main(["init", str(tmp_path), "--quiet"]), None) == 0
    small = [
        *("train.max_steps=14", "train.save_steps=2", "train.eval_strategy=no", "train.per_device_train_batch_size=2"),
        *("finetune.max_length=64", "finetune.method=lora", "finetune.load_in_4bit=false"),
        *(f"finetune.dataset_path={tmp_path / 'data'}", f"finetune.final_model_path={tmp_path / 'final'}"),
    ]
    settings = [word for value in small for word in ("--set", value)]
    command = ["train", "--args", tmp_path / "args_file", "--quiet", "--device", "cpu", "--no-report"]
    command += ["--out", tmp_path / "run", *settings]
    kill_the_second(begin_two(tmp_path, *command), lambda: bool(list((tmp_path / "run").glob("checkpoint-*"))))
    processes = begin_two(tmp_path, *command)
    assert [process.wait() for process in processes] == [0, 0], processes[0].said()
    assert (tmp_path / "final" / "adapter_model.safetensors").is_file()
