"""Whether a merged checkpoint answers as its base with the adapter does: `merge --verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.config import BASE_REDUCED
from glmspectra.errors import RequestError
from glmspectra.language import text
from glmspectra.tuning.model.loading import load_base
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.model.saved_adapter import load_adapter

ROWS, TOKENS = 2, 24


@dataclass(frozen=True)
class LogitsApart:
    """Logits of a merged model beside those of base and adapter.

    Attributes:
        apart: Largest difference, relative to the largest logit.
        moved: The same between the base alone and the base with its adapter; None where the adapter brings tokens that
            the base has not.
    """

    apart: float
    moved: float | None

    def fault(self, dtype: torch.dtype) -> str | None:
        """What is wrong with a model merged in dtype; None where rounding explains the difference."""
        eps = torch.finfo(dtype).eps
        limit = 1e-4 + 20 * eps
        if not self.apart <= limit:
            return f"relative, where {limit:.1e} is the most to be expected"
        if self.moved is not None and self.moved > 1e-4 + 4 * eps and self.apart > 0.9 * self.moved:
            return f"relative, and the adapter moves those of the base by no more than {self.moved:.1e}"
        return None

    def sentence(self) -> str:
        """What a person is told."""
        apart = f"{self.apart:.1e}"
        if self.moved is None:
            return text("merge-logits", apart=apart)
        return text("merge-logits-moved", apart=apart, moved=f"{self.moved:.1e}")


def compare_logits(base: str | Path, adapter: Path, merged: Path, seed: int = 0) -> LogitsApart:
    """The logits of two loaded models over random tokens, and how far the adapter moves them.

    Both are loaded in float32 on the CPU, one after the other. base: the model's folder or "nano".

    Raises:
        RequestError: The adapter began on a quantized base, which is not the one that was merged into.
        CheckpointError: One of the two cannot be loaded.
    """
    opened = open_adapter(adapter)
    if opened.peft_method == "loftq" or (opened.start is not None and opened.peft_method not in BASE_REDUCED):
        raise RequestError(
            f"--verify: {adapter} began on a quantized base, and the merged checkpoint holds the published weights and "
            "what training changed; their logits differ by the error of the quantization."
        )
    precision = Precision(torch.float32, torch.float32, None)
    second, tokens = _logits(load_base(merged, precision, torch.device("cpu")), seed)
    model = load_base(base, precision, torch.device("cpu"))
    plain, known = _logits(model, seed)
    if tokens > known:  # the adapter brings tokens; the merged model says how many
        model.resize_token_embeddings(tokens, mean_resizing=False)
    first, _ = _logits(load_adapter(model, adapter), seed)
    size = first.abs().max().clamp_min(1e-30)
    moved = float((first - plain).abs().max() / size) if plain.shape == first.shape else None
    return LogitsApart(float((first - second).abs().max() / size), moved)


def _logits(model: torch.nn.Module, seed: int) -> tuple[torch.Tensor, int]:
    """Logits over random tokens, and how many tokens the model has."""
    generator = torch.Generator().manual_seed(seed)
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = torch.randint(0, rows, (ROWS, TOKENS), generator=generator)
    with torch.no_grad():
        return model(input_ids=tokens).logits.float(), rows
