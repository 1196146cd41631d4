"""Orchestrates svd, pilot, delta, ranks and training as resumable stages."""

from glmspectra.loop.options import LoopOptions
from glmspectra.loop.pilot import run_pilots
from glmspectra.loop.run import run_loop
from glmspectra.loop.stages import STAGES

__all__ = ["STAGES", "LoopOptions", "run_loop", "run_pilots"]
