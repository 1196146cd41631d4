"""Hundreds of kill points: `make torture`, or `python -m tests.faults.torture --points 100 --only svd,convert`.

Each point runs a command in a child process, kills it by SIGKILL before a file event drawn at random or after a random
time, sometimes kills the next run too, and then runs the same command to its end. The result must be that of a run
that nobody disturbed: tables within 1e-9, checkpoints and adapters bit for bit, nothing left beside them.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.killed import count_events, run_until


@dataclass(frozen=True)
class Scenario:
    """A command for a folder, and what its result is."""

    command: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, str]]


def run(arguments: list[str]) -> None:
    """The command line in this process, in silence."""
    from glmspectra.cli.main import main

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    main(arguments)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def whole_folder(out: Path) -> dict[str, str]:
    """Every file of a checkpoint; nothing may lie beside it."""
    beside = [path.name for path in out.parent.glob(f".{out.name}*")]
    assert not beside, f"left beside it: {beside}"
    return {str(path.relative_to(out)): checksum(path) for path in out.rglob("*") if path.is_file()}


def tables(out: Path) -> dict[str, str]:
    """The tables of every run, numbers to ten digits; all runs complete, nothing unfinished left."""
    from glmspectra.store import list_runs, read_run

    left = [str(path) for path in out.rglob("*") if path.name.endswith((".partial", ".replaced", ".writer.lock"))]
    assert not left, f"left: {left[:3]}"
    found = {}
    for folder in list_runs(out / "param_matrix"):
        read = read_run(folder)
        assert read.complete, f"{folder} is not complete"
        for name in ("matrices", "singular_values", "histograms"):
            table = getattr(read, name).drop(columns="seconds", errors="ignore")
            found[f"{folder.name}/{name}"] = hashlib.sha256(table.to_csv(float_format="%.9e").encode()).hexdigest()
    assert found, "no run"
    return found


def adapters(out: Path) -> dict[str, str]:
    """The final adapters and rank files of a training or a loop."""
    names = ("adapter_model.safetensors", "ranks.json", "ranks_next.json")
    found = {
        str(path.relative_to(out)): checksum(path)
        for path in out.rglob("*")
        if path.name in names and "checkpoint-" not in str(path)
    }
    left = [str(path) for path in out.rglob("*") if path.name.endswith((".partial", ".replaced", ".writer.lock"))]
    assert found, "no adapter"
    assert not left, f"left: {left[:3]}"
    return found


def scenarios(work: Path, method: str) -> dict[str, Scenario]:
    """The commands, on small models."""
    from tests.sweep.small_checkpoint import write_small_checkpoint

    model = write_small_checkpoint(work / "model", layers=2)
    args = work / "args"
    if not args.exists():
        run_until(lambda: run(["init", str(args), "--quiet"]), None)
    folder = args / "args_file" / ("adalora" if method == "adalora" else ".")
    small = [
        *("train.max_steps=12", "train.save_steps=3", "train.eval_strategy=no", "train.per_device_train_batch_size=2"),
        *("finetune.max_length=64", f"finetune.dataset_path={args / 'data'}", "train.save_strategy=steps"),
        *(["finetune.method=lora", "finetune.load_in_4bit=false"] if method == "lora" else []),
    ]
    settings = [word for value in small for word in ("--set", value)]
    quiet = ["--quiet", "--device", "cpu"]

    def train(out: Path) -> list[str]:
        final = ["--set", f"finetune.final_model_path={out}/final_adapter"]
        return ["train", *quiet, "--no-report", "--args", str(folder), "--out", str(out), *settings, *final]

    adapter = work / "adapter"
    if not adapter.exists():
        assert run_until(lambda: run(train(work / "trained")), None) == 0, "training for delta and merge failed"
        shutil.copytree(work / "trained" / "final_adapter", adapter)
    loop = ["--pilot-steps", "4", "--samples", "1", "--budget", "like:r=2"]
    return {
        "svd": Scenario(
            lambda out: ["svd", *quiet, "--no-report", "--model", str(model), "--layers", "all", "--out", str(out)],
            tables,
        ),
        "convert": Scenario(
            lambda out: ["convert", "--quiet", "--model", str(model), "--out", str(out), "--shard-size", "0.00004"],
            whole_folder,
        ),
        "merge": Scenario(
            lambda out: ["merge", "--quiet", str(adapter), "--out", str(out), "--shard-size", "0.0005"], whole_folder
        ),
        "delta": Scenario(lambda out: ["delta", *quiet, "--no-report", str(adapter), "--out", str(out)], tables),
        "train": Scenario(train, adapters),
        "loop": Scenario(
            lambda out: ["loop", *quiet, "--args", str(folder), "--out", str(out), *loop, *settings], adapters
        ),
    }


def torture(name: str, scenario: Scenario, points: int, work: Path, draw: random.Random) -> dict[str, int]:
    """Kill `points` runs of one command; how many there were, and how many ended as an undisturbed one."""
    out = work / name / "out"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    started = time.monotonic()
    events = count_events(lambda: run(scenario.command(out)), work / "count")
    seconds = time.monotonic() - started
    expected = scenario.result(out)
    found = {"events": events, "killed": 0, "held": 0, "broken": 0}
    while found["killed"] < points:
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        where = []
        for _ in range(1 if draw.random() < 0.75 else 2):
            if draw.random() < 0.5:
                where.append(("event", draw.randint(1, events)))
                status = run_until(lambda: run(scenario.command(out)), where[-1][1])
            else:
                where.append(("second", round(draw.uniform(0, seconds), 2)))
                status = run_until(lambda: run(scenario.command(out)), None, seconds=where[-1][1])
            found["killed"] += status == -9
        status = run_until(lambda: run(scenario.command(out)), None)
        try:
            # A folder that took its name before the kill is there already; that is an answer, not a fault.
            assert status == 0 or scenario.result is whole_folder, f"status {status}"
            assert scenario.result(out) == expected, "another result"
            found["held"] += 1
        except (AssertionError, OSError) as fault:
            found["broken"] += 1
            print(f"BROKEN {name}, killed at {where}: {fault}", flush=True)
    return found


def main() -> int:
    """Run the scenarios that were asked for; status 1 where one did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100, help="Kills of each command.")
    parser.add_argument("--only", default="svd,convert,merge,delta,train,loop", help="Which commands.")
    parser.add_argument("--method", default="lora", choices=("lora", "qlora", "adalora"), help="Of training.")
    parser.add_argument("--work", type=Path, default=Path("/tmp/glmspectra-torture"), help="A scratch folder.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.work.mkdir(parents=True, exist_ok=True)
    # Imported before the forks, so that a child takes a moment and not seconds.
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch

    import glmspectra.cli.measuring
    import glmspectra.sweep.delta
    import glmspectra.tuning.training.run  # noqa: F401

    torch.set_num_threads(1)
    known, broken = scenarios(options.work, options.method), 0
    for name in options.only.split(","):
        found = torture(name, known[name], options.points, options.work, random.Random(options.seed))
        broken += found["broken"]
        print(f"{name}: {json.dumps(found)}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
