"""Signs that a run has gone wrong: gradients that are not finite, a loss that has exploded."""

from __future__ import annotations

import math
from collections import deque

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.distributed.tensor import DTensor


class StepMeasure:
    """The loss of a micro-batch and the norms of its gradients, on their way from the device to the processor.

    Nothing waits for the device until `loss` or `first_non_finite` is asked for: asked a step later, the numbers are
    there, and the device has never stood idle for them.
    """

    def __init__(self, step: int, loss: torch.Tensor, model: nn.Module | None):
        """`step` counts from 1; `model`: whose gradients are complete, or None where more micro-batches follow."""
        self.step = step
        self.complete = model is not None
        parameters = [] if model is None else [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        gradients = [(name, _own(p.grad)) for name, p in parameters if p.grad is not None]
        self._names = [name for name, _ in gradients]
        norms = torch._foreach_norm([gradient for _, gradient in gradients]) if gradients else []
        values = torch.stack([loss.detach().float(), *(norm.float().to(loss.device) for norm in norms)])
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._values = values

    @property
    def loss(self) -> float:
        return self._received()[0]

    def first_non_finite(self) -> tuple[str, int, int] | None:
        """(module name, number of bad tensors, number of all) when a gradient is not finite, else None.

        The module is the bad one nearest to the output, which backward reaches first: what lies before it is bad
        because it is.
        """
        norms = self._received()[1:]
        bad = [name for name, norm in zip(self._names, norms, strict=True) if not math.isfinite(norm)]
        return (_module(bad[-1]), len(bad), len(norms)) if bad else None

    def _received(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


def _own(gradient: torch.Tensor) -> torch.Tensor:
    """The share of a gradient that this process holds, under FSDP; a process that finds a bad one stops them all."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _module(parameter: str) -> str:
    return parameter.split(".lora_")[0].removeprefix("base_model.model.")


class Explosion(BaseModel):
    """losses: of the last steps, in nats a token. lowest: mean over a window so far, None before one is full."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    losses: list[float]
    lowest: float | None


class ExplosionWatch:
    """Whether the loss has become worse than guessing, and far worse than it was.

    That is where the mean loss of the last `window` steps is both over `factor` times the lowest such mean so far and
    over ln(vocabulary), the loss of a model that knows nothing.
    """

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
