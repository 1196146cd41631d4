"""Orchestrates svd, pilot, delta, ranks and training as resumable stages."""

from glmspectra.loop.options import LoopOptions
from glmspectra.loop.pilot import run_pilots
from glmspectra.loop.run import run_loop
from glmspectra.loop.stages import STAGES
from glmspectra.loop.suggestion import Sources, suggest_for_model

__all__ = ["STAGES", "LoopOptions", "Sources", "run_loop", "run_pilots", "suggest_for_model"]
