"""Orchestrates svd, pilot, delta, ranks and training as resumable stages."""
