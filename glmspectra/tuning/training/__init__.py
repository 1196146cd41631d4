"""The run itself: Trainer, callbacks, checkpoints, losses."""
