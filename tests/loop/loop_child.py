"""Run a small loop on nano in folder argv[1] whole, and in argv[2] killed (SIGKILL) in each stage in turn, then whole.

Every run is a process of its own, forked from this one, which has imported everything and computed nothing: importing
took most of the time of eleven processes that began by themselves. Prints one JSON object: `statuses`, how each run
ended, and `kept`, the stages that loop.json told after each.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.loop import stages
from glmspectra.loop.demonstration import write_demo_settings
from glmspectra.loop.options import LoopOptions
from glmspectra.loop.run import run_loop
from glmspectra.store import RunStore
from glmspectra.tuning.training.trainer import AdapterTrainer
from tests.few_rows import keep_rows


def small_settings(out: Path) -> Path:
    folder = write_demo_settings(out)
    keep_rows(out / "data", 24, 8)
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
            die_at(stages, "write_suggestion", 1)
        elif stage == "evaluate":
            import glmspectra.tuning.inference.evaluation as evaluation

            die_at(evaluation, "write_evaluation", 1)
        else:
            import glmspectra.loop.story as story

            die_at(story, "write_loop_page", 1)
        return work(options, results)

    stages.STAGES[stage] = armed


def run_in(out: Path, stage: str | None, reports: bool) -> None:
    """Begin the loop in `out`, or go on with it; with a stage, die in it. reports: draw those of the runs too."""
    if not reports:
        import glmspectra.figures as figures

        figures.write_report = lambda folder, out: out
    begun = (out / "loop.json").is_file() or (out / "data").is_dir()
    args = out / "args_file" if begun else small_settings(out)
    if stage is not None:
        arm(stage)
    run_loop(
        LoopOptions(
            out=out,
            model=EMBEDDED_MODEL,
            args=args,
            budget="like:r=2",
            pilot_steps=6,
            samples=1,
            quiet=True,
            device="cpu",
        )
    )


def forked(out: Path, stage: str | None, reports: bool = False) -> int:
    """The exit status of `run_in` in a process of its own; minus the signal where one ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run_in(out, stage, reports)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kept_stages(out: Path) -> list[str]:
    path = out / "loop.json"
    return list(json.loads(path.read_text())["stages"]) if path.is_file() else []


def warm_up() -> None:
    """Import what the stages import as they go."""
    for name in ("tuning.training.run", "tuning.inference.evaluation", "figures", "loop.story", "sweep.delta"):
        importlib.import_module(f"glmspectra.{name}")


def main() -> None:
    whole, broken = Path(sys.argv[1]), Path(sys.argv[2])
    warm_up()
    statuses, kept = [forked(whole, None)], []
    for stage in stages.STAGES:
        statuses.append(forked(broken, stage))
        kept.append(kept_stages(broken))
    statuses.append(forked(broken, None, reports=True))
    print(json.dumps({"statuses": statuses, "kept": kept}))


if __name__ == "__main__":
    main()
