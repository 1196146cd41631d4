"""Signs that a run has gone wrong: gradients that are not finite, a loss that has exploded."""

from __future__ import annotations

import math
from collections import deque

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


def first_non_finite(model: nn.Module) -> tuple[str, int, int] | None:
    """(module name, number of bad tensors, number of all) when a trainable parameter's gradient is not
    finite, else None.

    The module is the bad one nearest to the output, which backward reaches first: what lies before it is bad
    because it is. One reduction and one synchronisation when all is well.
    """
    named = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad and p.grad is not None]
    if not named:
        return None
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named]))
    if torch.isfinite(norms.sum()):
        return None
    bad = [name for (name, gradient), norm in zip(named, norms, strict=True) if not torch.isfinite(norm)]
    if not bad:  # each is finite and their sum overflowed; nothing is wrong with any one of them
        return None
    return _module(bad[-1]), len(bad), len(named)


def _module(parameter: str) -> str:
    return parameter.split(".lora_")[0].removeprefix("base_model.model.")


class Explosion(BaseModel):
    """losses: of the last steps, in nats a token. lowest: mean over a window so far, None before one is full."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    losses: list[float]
    lowest: float | None


class ExplosionWatch:
    """Whether the mean loss of the last `window` steps is both over `factor` times the lowest such mean so
    far and over ln(vocabulary), the loss of a model that knows nothing: worse than guessing, and far worse
    than it was."""

    def __init__(self, vocabulary: int, window: int = 10, factor: float = 3.0):
        self.limit = math.log(vocabulary)
        self.window, self.factor = window, factor
        self.losses: deque[float] = deque(maxlen=window)
        self.lowest = math.inf
        self.recent = math.nan

    def exploded(self, loss: float) -> bool:
        self.losses.append(loss)
        if len(self.losses) < self.window:
            return False
        self.recent = sum(self.losses) / self.window
        self.lowest = min(self.lowest, self.recent)
        return self.recent > max(self.limit, self.factor * self.lowest)

    def state(self) -> Explosion:
        """What a resumed run goes on watching from."""
        return Explosion(losses=list(self.losses), lowest=self.lowest if math.isfinite(self.lowest) else None)

    def restore(self, state: Explosion) -> None:
        """Go on from `state()`."""
        self.losses = deque(state.losses, maxlen=self.window)
        self.lowest = math.inf if state.lowest is None else state.lowest
