"""Whether a merged checkpoint answers as its base with the adapter does: `merge --verify`."""

from __future__ import annotations

from pathlib import Path

import torch

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.config import BASE_REDUCED
from glmspectra.errors import RequestError
from glmspectra.tuning.model.loading import load_base
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.model.saved_adapter import load_adapter

ROWS, TOKENS = 2, 24


def logits_apart(base: str | Path, adapter: Path, merged: Path, seed: int = 0) -> float:
    """Largest difference of the logits of two loaded models over random tokens, relative to the largest logit.

    Both are loaded in float32 on the CPU, one after the other. base: the model's folder or "nano".

    Raises:
        RequestError: The adapter began on a quantized base, which is not the one that was merged into.
        CheckpointError: One of the two cannot be loaded.
    """
    opened = open_adapter(adapter)
    if opened.kind == "loftq" or (opened.start is not None and opened.kind not in BASE_REDUCED):
        raise RequestError(
            f"--verify: {adapter} began on a quantized base, and the merged checkpoint holds the published weights and "
            "what training changed; their logits differ by the error of the quantization."
        )
    precision = Precision(torch.float32, torch.float32, None)
    first = _logits(load_adapter(load_base(base, precision, torch.device("cpu")), adapter), seed)
    second = _logits(load_base(merged, precision, torch.device("cpu")), seed)
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-30))


def _logits(model: torch.nn.Module, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = torch.randint(0, rows, (ROWS, TOKENS), generator=generator)
    with torch.no_grad():
        return model(input_ids=tokens).logits.float()
