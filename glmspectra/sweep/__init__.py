"""Runs spectra over many tensors: order, prefetch, devices, processes, resume."""
