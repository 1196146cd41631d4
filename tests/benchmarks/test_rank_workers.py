"""Processes of the study: what is open is run once, whatever fails stays open and is told."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study import plan, workers
from rank_study.bases import BYTE_VOCABULARY
from rank_study.plan import Job, finished, open_jobs, read_lines
from rank_study.workers import Settings, Worker, run_group, run_open

from tests.benchmarks.test_rank_study import tiny_chatglm2

WANTED = [("rates", "chatglm2", "medical")]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of work with a tiny base chatglm2, and beside it 60 rows of the medical task."""
    folder = tmp_path_factory.mktemp("study") / "work"
    tiny_chatglm2(BYTE_VOCABULARY, 512).save_pretrained(folder / "chatglm2")
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(["ache", "head", "rest", "tea", "no"], size=4)) for _ in range(120)]
    rows = [{"context": f"{n}: {texts[n]}?", "target": f"{texts[60 + n]}."} for n in range(60)]
    (folder.parent / "medical.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def settings_of(work, medical=None):
    return Settings(work, medical or work.parent / "medical.jsonl", None, steps=2, batch=2, held_out=8, pilot_rate=2e-3)


@pytest.fixture
def forked(monkeypatch):
    """Processes begin as copies of this one, which has imported everything; by themselves they import for 7 s."""
    begun = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda way: begun)


@pytest.fixture
def few_rates(monkeypatch):
    """Grids that never grow: the first ask is all there is of the stage `rates`."""
    monkeypatch.setattr(plan, "RATE_LIMITS", plan.RATES)


@pytest.mark.slow
@pytest.mark.usefixtures("few_rates", "forked")
def test_two_processes_write_every_line_once(work, tmp_path, capsys):
    out = tmp_path / "results" / "lines.jsonl"
    jobs = open_jobs(*WANTED[0], [])
    assert run_open(WANTED, out, ["cpu", "cpu"], settings_of(work), float("inf")) == []
    text = out.read_text()
    lines = read_lines(out)
    assert len(lines) == len(text.splitlines()) == len(jobs) == 68
    assert finished(lines) == set(jobs)
    assert open_jobs(*WANTED[0], lines) == []
    assert sorted(line["jobs_in_group"] for line in lines) == [8] * 8 + [30] * 60
    assert {line["device"] for line in lines} == {"cpu"}
    assert len({line["weights"] for line in lines}) == 1
    assert all(np.isfinite(line["loss"]) for line in lines)
    # re-shared shares delta-W's directions after a third of the steps: of two, when nothing has moved yet
    assert all(bool(line["parameters"]) == (line["arm"] != "re-shared") for line in lines)
    one = next(line for line in lines if line["arm"] == "uniform" and line["budget"] == 4)
    same = [line for line in lines if line["arm"] == "uniform" and line["seed"] == one["seed"]]
    cost = one["parameters"] / 4
    assert {line["budget"]: line["parameters"] for line in same} == {2: 2 * cost, 4: 4 * cost, 8: 8 * cost}
    said = capsys.readouterr().out
    assert "cpu: chatglm2 medical" in said
    assert "FAILED" not in said
    (pilots,) = work.glob("pilots-chatglm2-medical-80-*.json")
    assert len(json.loads(pilots.read_text())) == 3

    before = pilots.stat().st_mtime_ns
    assert run_open(WANTED, out, ["cpu"], settings_of(work), float("inf")) == []
    assert out.read_text() == text, "a second call finds nothing open"
    out.write_text("".join(f"{one}\n" for one in text.splitlines()[:-3]))
    assert run_open(WANTED, out, ["cpu"], settings_of(work), 0.0) == []
    assert len(read_lines(out)) == 65, "no group begins after its time"
    assert run_open(WANTED, out, ["cpu"], settings_of(work), float("inf")) == []
    again = read_lines(out)
    assert finished(again) == set(jobs)
    assert len(again) == 68
    assert [line["loss"] for line in again[-3:]] == pytest.approx([line["loss"] for line in lines[-3:]], rel=1e-2)
    assert pilots.stat().st_mtime_ns == before, "pilots are kept"


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("broken", ["medical", "base"])
def test_what_a_process_cannot_read_is_told_and_its_jobs_stay_open(work, tmp_path, broken, capfd):
    out = tmp_path / "lines.jsonl"
    if broken == "medical":
        medical = tmp_path / "medical.jsonl"
        medical.write_text('{"context": "a", "target"\n')
        settings, words = settings_of(work, medical), "JSONDecodeError"
    else:
        folder = tmp_path / "work"
        (folder / "chatglm2").mkdir(parents=True)
        (folder / "chatglm2" / "config.json").write_text("{}")
        settings, words = settings_of(folder, work.parent / "medical.jsonl"), "Error"
    errors = run_open(WANTED, out, ["cpu", "cpu"], settings, float("inf"))
    assert len(errors) == 2, "each device tries one group and is then out of service"
    for error, count in zip(sorted(errors), (30, 30), strict=True):
        assert error.startswith("chatglm2 medical ")
        assert f": {count} jobs: Traceback" in error
        assert words in error.splitlines()[-1]
    assert read_lines(out) == []
    assert len(open_jobs(*WANTED[0], read_lines(out))) == 68
    assert capfd.readouterr().out.count("FAILED") == 2


@pytest.mark.slow
def test_a_base_that_is_not_there_is_told_and_the_rest_is_tried(work, tmp_path):
    """Nothing of chatglm2 is begun; smollm2's file is none, which is told too, by a process that began by itself."""
    settings = Settings(tmp_path / "work", work.parent / "medical.jsonl", tmp_path / "none.gguf", 2, 2, 8, 2e-3)
    errors = run_open([*WANTED, ("rates", "smollm2", "medical")], tmp_path / "lines.jsonl", ["cpu"], settings, 9.0)
    assert len(errors) == 2
    assert errors[0].startswith("smollm2 medical ")
    assert f"The base chatglm2 is not in {tmp_path / 'work'} yet" in errors[1]
    assert not (tmp_path / "lines.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("few_rates", "forked")
def test_a_killed_process_is_told_and_the_other_device_goes_on(work, tmp_path):
    """The rows come from a pipe, so that no group ends before one process is killed."""
    pipe, out, killed = tmp_path / "medical.jsonl", tmp_path / "lines.jsonl", []
    os.mkfifo(pipe)

    def kill_one_and_feed_the_other():
        while len(children := multiprocessing.active_children()) < 2:
            time.sleep(0.05)
        os.kill(children[0].pid, signal.SIGKILL)
        killed.append(children[0])
        while children[0].is_alive():
            time.sleep(0.05)
        pipe.write_bytes((work.parent / "medical.jsonl").read_bytes())  # waits until the other one reads

    thread = threading.Thread(target=kill_one_and_feed_the_other, daemon=True)
    thread.start()
    (error,) = run_open(WANTED, out, ["cpu", "cpu"], settings_of(work, pipe), float("inf"))
    thread.join(10)
    assert len(killed) == 1
    assert ": 30 jobs: the process ended with exit code -9" in error
    lines = read_lines(out)
    assert len(lines) == len(finished(lines)) == 38
    assert len(open_jobs(*WANTED[0], lines)) == 30


def jobs_for_one_group(count):
    return [Job("chatglm2", "medical", "uniform", 2, seed, 4e-3, "development") for seed in range(count)]


@pytest.mark.parametrize(("count", "sizes"), [(2, [2]), (5, [5, 2, 3, 1, 2]), (8, [8, 4, 2, 2, 4, 2, 2])])
def test_a_group_too_large_for_the_gpu_is_run_in_halves(work, monkeypatch, count, sizes):
    """Each job once, in order, and as it would be in a group that fits."""
    asked = []

    def small(base, rows, facts, jobs, *others):
        asked.append(len(jobs))
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_group(base, rows, facts, jobs, *others)

    jobs = jobs_for_one_group(count)
    worker = Worker("cpu", settings_of(work))
    whole = [json.loads(line) for line in worker.run(jobs).splitlines()]
    monkeypatch.setattr(workers, "run_group", small)
    lines = [json.loads(line) for line in worker.run(jobs).splitlines()]
    assert asked == sizes
    assert [line["seed"] for line in lines] == [job.seed for job in jobs]
    assert finished(lines) == set(jobs)
    assert [line["jobs_in_group"] for line in lines] == [size for size in sizes if size <= 2 for _ in range(size)]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-2)


def test_one_job_too_large_for_the_gpu_is_an_error(work, monkeypatch):
    asked = []

    def none(base, rows, facts, jobs, *_):
        asked.append(len(jobs))
        raise torch.OutOfMemoryError("CUDA out of memory")

    worker = Worker("cpu", settings_of(work))
    monkeypatch.setattr(workers, "run_group", none)
    with pytest.raises(torch.OutOfMemoryError):
        worker.run(jobs_for_one_group(3))
    assert asked[0] == 3
    assert asked[-1] == 1, "halved until one job is left"


def test_a_group_that_ran_out_of_memory_leaves_the_base_as_it_was(work, monkeypatch):
    """The halves begin on plain layers."""
    from rank_study.many_adapters import ManyAdapters, ManyLoraLinear

    worker = Worker("cpu", settings_of(work))
    step, calls = ManyAdapters.step, []

    def small(adapters, *arguments, **named):
        calls.append(adapters.jobs)
        if adapters.jobs > 2 and len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(adapters, *arguments, **named)

    monkeypatch.setattr(ManyAdapters, "step", small)
    jobs = jobs_for_one_group(4)
    assert finished([json.loads(line) for line in worker.run(jobs).splitlines()]) == set(jobs)
    assert calls == [4, 4, 2, 2, 2, 2]
    assert not any(isinstance(module, ManyLoraLinear) for module in worker.chatglm2.model.modules())
