"""Gradients of the loss with respect to frozen weights over a few batches, without making the weights trainable.

The gradient of a linear layer's weight is the sum over tokens of (dL/dy)^T x. Both are at hand in a backward pass
whatever the weight is stored as, so this also works on a 4-bit base, whose weights have no gradient of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from glmspectra.errors import RequestError, TrainingError

Inputs = tuple[torch.Tensor, ...]  # of a layer, as its forward hook gets them

GROUP_BYTES = 2 << 30  # float32 gradients that are held at once


def weight_gradients(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    modules: Sequence[str],
    group_bytes: int = GROUP_BYTES,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (module, dL/dW) for linear layers of a causal language model, the mean over the batches.

    modules: full names. dL/dW: (rows, cols) float32 on the model's device, valid until the next is asked for. The
    batches are gone through once for every `group_bytes` of gradients. The model is put into eval mode (no dropout) and
    its parameters stay frozen. Raises RequestError for a name that is no linear layer, TrainingError where the loss or
    a gradient is not finite.
    """
    layers = dict(model.named_modules())
    for module in modules:
        if module not in layers or not hasattr(layers[module], "in_features"):
            raise RequestError(f"{module} is no linear layer of the model, so it has no gradient to measure.")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for group in _groups(modules, layers, group_bytes):
        sums = {
            module: torch.zeros(layers[module].out_features, layers[module].in_features, device=_device(model))
            for module in group
        }
        for batch in batches:
            _one_batch(model, batch, {module: layers[module] for module in group}, sums)
        for module in group:
            gradient = sums.pop(module) / len(batches)
            if not torch.isfinite(gradient).all():
                raise TrainingError(f"the gradient of {module} is not finite; load the model in float32.")
            yield module, gradient


def _groups(modules: Sequence[str], layers: Mapping[str, Any], group_bytes: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for module in modules:
        nbytes = 4 * layers[module].in_features * layers[module].out_features
        if group and size + nbytes > group_bytes:
            yield group
            group, size = [], 0
        group.append(module)
        size += nbytes
    if group:
        yield group


def _one_batch(
    model: nn.Module, batch: Mapping[str, torch.Tensor], layers: Mapping[str, nn.Module], sums: dict[str, torch.Tensor]
) -> None:
    """Add the gradients of one batch to `sums`, by hooks on the layers' inputs and their outputs' gradients."""

    def watch(module: str) -> Callable[[nn.Module, Inputs, torch.Tensor], None]:
        def hook(layer: nn.Module, inputs: Inputs, output: torch.Tensor) -> None:
            seen = inputs[0].detach()

            def add(gradient: torch.Tensor) -> None:
                tokens = gradient.reshape(-1, gradient.shape[-1]).float()
                sums[module] += tokens.T @ seen.reshape(-1, seen.shape[-1]).float()

            output.register_hook(add)

        return hook

    def let_gradients_through(layer: nn.Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        # All parameters are frozen: the graph has to begin at the embedding's output.
        return output.requires_grad_(True)

    with ExitStack() as stack:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        handles = [embedding.register_forward_hook(let_gradients_through)]
        handles += [layer.register_forward_hook(watch(module)) for module, layer in layers.items()]
        for handle in handles:
            stack.callback(handle.remove)
        moved = {key: value.to(_device(model)) for key, value in batch.items()}
        with torch.enable_grad():
            loss = model(**moved, use_cache=False).loss
            if not torch.isfinite(loss):
                raise TrainingError("the loss of a batch is not finite; load the model in bfloat16 or float32.")
            loss.backward()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
