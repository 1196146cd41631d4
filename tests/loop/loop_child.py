"""Run a small loop on nano in `sys.argv[1]`; with a stage in argv[2], kill -9 this process in the midst of it."""

import json
import os
import signal
import sys
from pathlib import Path

from glmspectra.checkpoint import EMBEDDED_MODEL
from glmspectra.loop import LoopOptions, run_loop, stages
from glmspectra.loop.demonstration import write_demo_settings
from glmspectra.ranks.outcome import Outcome
from glmspectra.store import RunStore
from glmspectra.tuning.trainer import AdapterTrainer


def small_settings(out: Path) -> Path:
    folder = write_demo_settings(out)
    for name, rows in (("train.jsonl", 24), ("valid.jsonl", 8)):
        path = out / "data" / name
        path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:rows]), "utf-8")
    changes = {"max_steps": 6, "save_steps": 2, "eval_strategy": "no", "per_device_train_batch_size": 2}
    path = folder / "train_args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def die_at(owner, name: str, call: int) -> None:
    """Kill this process when `owner.name` has been called so many times."""
    original, seen = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        seen[0] += 1
        if seen[0] >= call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def arm(stage: str) -> None:
    """Have the stage end in the midst of its work, whatever that is."""
    work = stages.STAGES[stage]

    def armed(options, results):
        if stage in ("svd", "pilot-delta", "final-delta"):
            die_at(RunStore, "write", 5)
        elif stage in ("pilot", "train", "control"):
            die_at(AdapterTrainer, "training_step", 4)  # after checkpoint-2, before checkpoint-4
        elif stage in ("suggest-from-base", "suggest"):
            die_at(Outcome, "write", 1)
        elif stage == "evaluate":
            import glmspectra.tuning.evaluation as evaluation

            die_at(evaluation, "write_evaluation", 1)
        else:
            import glmspectra.loop.story as story

            die_at(story, "write_loop_page", 1)
        return work(options, results)

    stages.STAGES[stage] = armed


def main() -> None:
    out = Path(sys.argv[1])
    args = out / "args_file" if (out / "loop.json").is_file() or (out / "data").is_dir() else small_settings(out)
    if len(sys.argv) > 2:
        arm(sys.argv[2])
    options = LoopOptions(
        out=out,
        model=EMBEDDED_MODEL,
        args=args,
        budget="like:r=2",
        pilot_steps=6,
        samples=1,
        quiet=True,
        device="cpu",
    )
    run_loop(options)


if __name__ == "__main__":
    main()
