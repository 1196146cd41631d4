"""Runs `spectra` over many tensors: order, reading ahead, devices, processes, resume."""

from glmspectra.sweep.options import SweepOptions
from glmspectra.sweep.sweep import SweepResult, source_of, sweep

__all__ = ["SweepOptions", "SweepResult", "source_of", "sweep"]
