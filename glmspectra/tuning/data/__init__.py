"""Training data: read, checked, put into the model's template, tokenized once, batched.

data = prepare_data(settings, tokenizer, family_of(model.config))
data.train, data.valid       # datasets.Dataset: input_ids, labels, length (packed: position_ids, examples)
data.collator                # examples -> tensors
data.report.lines()          # what was found
"""

from glmspectra.tuning.data.collate import PackedCollator, PaddingCollator
from glmspectra.tuning.data.encode import IGNORED, Encoder, Example
from glmspectra.tuning.data.prepare import TrainingData, prepare_data, read_rows
from glmspectra.tuning.data.report import DataReport, SplitCounts
from glmspectra.tuning.data.rows import BadRow, Columns, Row

__all__ = [
    "IGNORED",
    "BadRow",
    "Columns",
    "DataReport",
    "Encoder",
    "Example",
    "PackedCollator",
    "PaddingCollator",
    "Row",
    "SplitCounts",
    "TrainingData",
    "prepare_data",
    "read_rows",
]
