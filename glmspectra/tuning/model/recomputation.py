"""Activations that are computed again in backward instead of being kept (gradient checkpointing)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def enable_checkpointing(model: PreTrainedModel, arguments: dict[str, Any] | None = None) -> None:
    """Recompute each layer's activations in backward.

    Not re-entrant, so a frozen embedding needs no hook; under either name that transformers has for it.
    """
    arguments = {"use_reentrant": False, **(arguments or {})}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
