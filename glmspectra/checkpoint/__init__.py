"""Opens a model folder and yields one named tensor at a time, never the model."""

from glmspectra.checkpoint.reader import Checkpoint, open_checkpoint
from glmspectra.checkpoint.records import FileRecord, Part, TensorRecord
from glmspectra.checkpoint.selection import select

__all__ = [
    "Checkpoint",
    "FileRecord",
    "Part",
    "TensorRecord",
    "open_checkpoint",
    "select",
]
