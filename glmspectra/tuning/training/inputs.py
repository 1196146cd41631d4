"""What a run, its dry run and an evaluation work on before the model's weights are loaded: types, tokenizer, data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from glmspectra.tuning.data import TrainingData, prepare_data
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.model.loading import check_not_packed, load_config, load_tokenizer, positions_of
from glmspectra.tuning.model.precision import Precision, choose_precision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from glmspectra.tuning.settings.load import Settings


@dataclass(frozen=True)
class Inputs:
    """The parts of a run that are there before its model."""

    settings: Settings
    device: torch.device
    precision: Precision
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData


def load_inputs(settings: Settings, device: torch.device) -> Inputs:
    """Configuration and tokenizer of the settings' model, and their data in its tokens.

    Raises:
        CheckpointError: The configuration or the tokenizer cannot be read.
        ConfigError, RequestError, DataError: As `prepare_data`; or a packed model is to be quantized again.
    """
    path = settings.finetune.model_path
    tokenizer = load_tokenizer(path)
    config = load_config(path)
    if settings.quantized:
        check_not_packed(config, path)
    limit, family = positions_of(config), family_of(config)
    data = prepare_data(settings, tokenizer, family, limit=limit, vocabulary=config.vocab_size)
    return Inputs(settings, device, choose_precision(settings, device), config, tokenizer, data)
