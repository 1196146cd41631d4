"""Runs the stages of a loop that are not finished yet."""

import time
from collections.abc import Callable
from typing import Any

from glmspectra.files import exclusive
from glmspectra.language import text
from glmspectra.loop.options import LoopOptions
from glmspectra.loop.stages import STAGES, Results, model_override
from glmspectra.loop.state import LoopState
from glmspectra.tuning.settings.load import load_settings


def run_loop(
    options: LoopOptions, fresh: bool = False, say: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """Run every stage in order into options.out and return stage -> result.

    Killed at any moment, the same call goes on: finished stages are passed over, the one that was under way continues
    from what it left (tables, checkpoints). fresh: begin anew, with the tables that are measured already.
    say: told one line a stage.

    Raises RequestError where the folder holds another loop, ConfigError where the settings of training cannot be, and
    what the stages raise.
    """
    # A fault in them is said before anything is measured.
    for line in load_settings(options.args, [*options.overrides, *model_override(options)]).notes:
        say(line)
    with exclusive(options.out, "loop"):
        state = LoopState.open(options, fresh)
        results: Results = {stage: state.result(stage) for stage in STAGES if state.finished(stage)}
        for number, (stage, work) in enumerate(STAGES.items(), start=1):
            head = f"[{number}/{len(STAGES)}] {text(f'loop-stage-{stage}')}"
            if state.finished(stage):
                say(text("loop-stage-finished", stage=head))
                continue
            say(f"{head} ...")
            started = time.monotonic()
            results[stage] = work(options, results)
            state.finish(stage, results[stage], time.monotonic() - started)
        return results
