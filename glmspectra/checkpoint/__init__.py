"""Opens a model folder and yields one named tensor at a time, never the model."""

from glmspectra.checkpoint.adapter.adapter import Adapter, open_adapter
from glmspectra.checkpoint.reader import Checkpoint, open_checkpoint
from glmspectra.checkpoint.records import FileRecord, Part, TensorRecord
from glmspectra.checkpoint.selection import select

__all__ = [
    "Adapter",
    "Checkpoint",
    "FileRecord",
    "Part",
    "TensorRecord",
    "open_adapter",
    "open_checkpoint",
    "select",
]
