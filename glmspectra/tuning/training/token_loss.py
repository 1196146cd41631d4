"""The loss of every supervised token, without the logits of all tokens existing at once.

ChatGLM2's vocabulary has 65,024 entries: 8 x 512 tokens make 1.1 GB of float32 logits, and their gradient as
much again. Two things make that unnecessary. Only positions that a label supervises need logits (prompt and
padding do not), and since the output layer is frozen under LoRA, the gradient with respect to the hidden
state can be computed chunk by chunk while the chunk's logits are there, and the logits thrown away.

While it works, the model's output layer answers with the losses in place of the logits. It is done there,
inside the model's forward, so that data-parallel and sharding wrappers and autocast see nothing unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from glmspectra.tuning.data.batching import SUPERVISED, supervised_positions

# (logits [c, V], targets [c], nll [c], correct [c], whether the gradient is wanted): `loss_kernels.losses_in_place`.
InPlace = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool], None]
CHUNK_BYTES = 1 << 28  # float32 logits of one chunk; 1,032 tokens of ChatGLM2's vocabulary


@dataclass
class TokenLosses:
    """What a batch says about each of its n supervised tokens, in reading order.

    nll: float32 [n], natural-log loss. correct: bool [n], whether the token was the most likely one.
    rows: int64 [n], the row of the batch that the token stands in.
    """

    nll: torch.Tensor
    correct: torch.Tensor
    rows: torch.Tensor


class _LinearCrossEntropy(torch.autograd.Function):
    """nll of softmax(hidden @ weight.T + bias) at targets, by chunks of rows; weight and bias are constants.

    With p = softmax(logits): d nll_i / d hidden_i = (p_i - onehot(target_i)) @ weight, which depends on row i
    alone, so it is computed in forward and only scaled by the incoming gradient in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [n, h]
        weight: torch.Tensor,  # [V, h]
        bias: torch.Tensor | None,  # [V]
        targets: torch.Tensor,  # [n]
        in_place: InPlace | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, vocabulary = hidden.shape[0], weight.shape[0]
        rows_at_once = max(1, CHUNK_BYTES // (4 * vocabulary))
        wants_gradient = ctx.needs_input_grad[0]
        nll = torch.empty(n, dtype=torch.float32, device=hidden.device)
        correct = torch.empty(n, dtype=torch.bool, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, n, rows_at_once):
            chunk = slice(start, start + rows_at_once)
            logits = F.linear(hidden[chunk], weight, bias)  # [c, V]
            if in_place is not None:
                in_place(logits, targets[chunk], nll[chunk], correct[chunk], wants_gradient)
                if gradient is not None:
                    gradient[chunk] = logits @ weight
                del logits  # before the next chunk's are made
                continue
            logits = logits.float()
            target = targets[chunk, None]
            correct[chunk] = logits.argmax(-1) == targets[chunk]
            normalizer = logits.logsumexp(-1, keepdim=True)  # [c, 1]
            nll[chunk] = (normalizer - logits.gather(-1, target)).squeeze(-1)
            if gradient is not None:
                probability = logits.sub_(normalizer).exp_()
                probability.scatter_add_(-1, target, probability.new_full(target.shape, -1.0))
                gradient[chunk] = probability.to(weight.dtype) @ weight
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(gradient)
        return nll, correct

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradients[0][:, None] * gradient.float()).to(gradient.dtype), None, None, None, None


def kernel_for(dtype: torch.dtype, device: torch.device) -> InPlace | None:
    """The Triton kernel for logits of this type there; None where torch code computes the loss."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    try:
        from glmspectra.tuning.training.loss_kernels import losses_in_place
    except ImportError:  # no Triton: slower, and the same numbers
        return None
    return losses_in_place


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    in_place: InPlace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each row and whether its target was the most likely token.

    hidden [n, h], weight [V, h] (frozen), bias [V] or None, targets int64 [n] -> nll float32 [n], correct
    bool [n]. Products run in autocast's dtype where autocast is on, else in the weight's; softmax always in
    float32. `in_place`: what computes it in the place of the logits; None: the kernel where there is one.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        frozen = weight.detach().to(dtype)
        offset = None if bias is None else bias.detach().to(dtype)
        in_place = in_place or kernel_for(dtype, weight.device)
        found: tuple[torch.Tensor, torch.Tensor] = _LinearCrossEntropy.apply(
            hidden.to(dtype), frozen, offset, targets, in_place
        )
        return found


class TokenLoss:
    """Computes the losses of a causal language model's supervised tokens.

    `causal_lm` is the bare model (inside any wrappers). Where its output layer is not a plain frozen linear
    layer, or the model changes the logits after it (a soft cap, a scale), the model's own logits are used
    instead: slower, the same numbers. `in_chunks` says which.
    """

    def __init__(self, causal_lm: Any):
        self.causal_lm = causal_lm
        head = causal_lm.get_output_embeddings()
        plain = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
        self.head: nn.Linear | None = head if plain else None
        self.in_chunks = plain and self._head_has_the_last_word()

    def __call__(self, model: Any, inputs: dict[str, Any]) -> TokenLosses:
        """The losses of the tokens of one batch.

        Args:
            model: `causal_lm` or a wrapper around it.
            inputs: hold input_ids [b, s] and labels [b, s] (-100: not supervised; the label at position t is predicted
                by position t - 1, as everywhere in transformers), and may hold supervised, the `supervised_positions`
                of the labels.
        """
        inputs = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
        labels = inputs.pop("labels")
        inputs.setdefault("use_cache", False)
        positions = inputs.pop(SUPERVISED, None)
        rows, positions = supervised_positions(labels) if positions is None else positions
        targets = labels[rows, positions + 1]
        if self.in_chunks:
            with self._answering_losses(rows, positions, targets):
                answer = model(**inputs).logits[0]  # [n, 2]
            return TokenLosses(answer[:, 0], answer[:, 1].detach() > 0.5, rows)
        logits = model(**inputs).logits[rows, positions].float()  # [n, V]
        nll = F.cross_entropy(logits, targets, reduction="none")
        return TokenLosses(nll, logits.detach().argmax(-1) == targets, rows)

    @contextmanager
    def _answering_losses(self, rows: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor) -> Iterator[None]:
        head = self.head
        assert head is not None

        def losses(hidden: torch.Tensor) -> torch.Tensor:
            """[b, s, h] -> [1, n, 2]: nll and correct of each supervised token."""
            nll, correct = linear_cross_entropy(hidden[rows, positions], head.weight, head.bias, targets)
            return torch.stack((nll, correct.float()), -1)[None]

        head.forward = losses  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del head.forward  # the class's own again

    def _head_has_the_last_word(self) -> bool:
        """Whether what the output layer answers comes out of the model unchanged (no soft cap, no scale after it)."""
        head = self.head
        assert head is not None
        probe = torch.tensor([-1000.0, -1.0, 0.0, 1.0, 1000.0], dtype=head.weight.dtype, device=head.weight.device)
        head.forward = lambda hidden: probe[None, None]  # type: ignore[method-assign, assignment]
        try:
            with torch.no_grad():
                tokens = torch.ones(1, 2, dtype=torch.long, device=head.weight.device)
                answer = self.causal_lm(input_ids=tokens, use_cache=False).logits
        finally:
            del head.forward
        return torch.equal(answer, probe[None, None])
