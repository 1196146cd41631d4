"""How an adapter's names and factors lie in one base: which tensor, which way round, and which tensors are tied."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from glmspectra.checkpoint.adapter.stored import shortened
from glmspectra.checkpoint.names import OUTPUT, parse_name
from glmspectra.checkpoint.reader import Checkpoint
from glmspectra.errors import CheckpointError

# Layers that transformers makes of its Conv1D, which stores (in_features, out_features): by model_type, last name.
CONV1D = {
    "gpt2": {"c_attn", "q_attn", "c_proj", "c_fc"},
    "imagegpt": {"c_attn", "q_attn", "c_proj", "c_fc"},
    "decision_transformer": {"c_attn", "q_attn", "c_proj", "c_fc"},
    "openai-gpt": {"c_attn", "c_proj", "c_fc"},
    "clvp": {"c_fc", "c_proj"},
    "clvp_decoder": {"c_fc", "c_proj"},
}
EMBEDDING = re.compile(r"(?:^|\.)(?:word_embeddings|embed_tokens|tok_embeddings|wte|embed_in|shared)\.weight$")


@dataclass(frozen=True)
class BaseLayout:
    """Shapes of a base's tensors by name, and its config.json."""

    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "BaseLayout":
        """The layout of an opened checkpoint."""
        return cls({name: record.shape for name, record in checkpoint.tensors.items()}, checkpoint.config)

    def with_shape(self, name: str, shape: tuple[int, ...]) -> "BaseLayout":
        """The same with another shape of one tensor."""
        return BaseLayout({**self.shapes, name: shape}, self.config)

    def find(self, name: str) -> list[str]:
        """The base's tensors that an adapter's name can mean.

        That is the tensor of that name, or those that a wrapper's prefix tells apart from it.
        """
        if name in self.shapes:
            return [name]
        shorter = [name[dot + 1 :] for dot in _dots(name)]
        return self._by_ending.get(name, []) + [end for end in shorter if "." in end and end in self.shapes]

    @cached_property
    def _by_ending(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.shapes:
            for dot in _dots(name):
                found[name[dot + 1 :]].append(name)
        return found

    def resolve(self, name: str, origin: str, base_model: str | None) -> tuple[str, str]:
        """The name of the tensor in a merged checkpoint, and that of the base's tensor it comes from.

        The two differ where the tensor is tied to another one and not stored itself.

        Raises:
            CheckpointError: The base has none, or several could be meant.
        """
        fits = self.find(name)
        if not fits and (source := self._source_of_tied(name)):
            return name, source
        if len(fits) != 1:
            raise CheckpointError(
                f"{origin}: the adapter changes {name!r}, of which the base has "
                f"{'none' if not fits else shortened(fits)}; it was trained on {base_model or 'another base'}."
            )
        return fits[0], fits[0]

    @cached_property
    def tied(self) -> dict[str, str]:
        """Tensor -> the stored one that it is tied to (the output layer to the embedding), where the base ties."""
        if self.config.get("tie_word_embeddings", True) is False:
            return {}
        found = {}
        for name, source in _tied_names(self.config).items():
            sources, stored = self.find(source), self.find(name)
            if len(sources) == 1 and (not stored or self.config.get("tie_word_embeddings") is True):
                found[stored[0] if stored else name] = sources[0]
        return found

    def _source_of_tied(self, name: str) -> str | None:
        if name in self.tied:
            return self.tied[name]
        if self.config.get("tie_word_embeddings", True) is False or parse_name(name).zone != OUTPUT:
            return None
        embeddings = [other for other in self.shapes if EMBEDDING.search(other)]
        return embeddings[0] if len(embeddings) == 1 and name.endswith(".weight") else None

    def is_conv1d(self, module: str) -> bool | None:
        """Whether the layer stores (in, out); None for an architecture that transformers does not have."""
        types = {str(config.get("model_type")) for config in (self.config, *_nested(self.config))} - {"None"}
        leaf = module.rpartition(".")[2]
        if any(leaf in CONV1D.get(name, ()) for name in types):
            return True
        return False if types else None


def is_transposed(layout: BaseLayout, module: str, product: tuple[int, int], weight: str, flag: bool) -> bool:
    """Whether B A of shape `product` (out, in) is added to the base's tensor `weight` the other way round.

    The shape decides; for a square weight the class of the layer; only for an architecture not known here the
    `fan_in_fan_out` of the configuration, which PEFT saves as the last layer needed it.

    Raises:
        CheckpointError: The factors fit neither way, or not the way that the layer stores its weight.
    """
    shape = tuple(layout.shapes[weight])
    conv1d = layout.is_conv1d(module)
    straight, turned = shape == product, shape == product[::-1]
    if not straight and not turned:
        raise CheckpointError(
            f"{module}: the adapter changes a weight of shape {product}, the base holds {shape}; was it trained on "
            "this base?"
        )
    if not turned:
        if conv1d:
            raise CheckpointError(
                f"{module}: the layer stores (in, out) = {shape}, and the factors multiply to {product} as they are: "
                "PEFT's own start (OLoRA, LoftQ) does not fit such a layer, and PEFT cannot run or merge it."
            )
        return False
    if not straight:
        return True
    return flag if conv1d is None else conv1d


def _dots(name: str) -> list[int]:
    return [index for index, letter in enumerate(name) if letter == "."]


def _nested(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [value for value in config.values() if isinstance(value, dict) and "model_type" in value]


def _tied_names(config: Mapping[str, Any]) -> dict[str, str]:
    """What transformers' class of this architecture ties: tensor -> the one that it shares."""
    architectures = config.get("architectures") or []
    if not architectures:
        return {}
    import transformers

    try:
        keys = getattr(getattr(transformers, str(architectures[0]), None), "_tied_weights_keys", None)
    except (ImportError, RuntimeError):  # a class whose own libraries are not installed
        return {}
    if not isinstance(keys, dict):
        return {}
    return {name: source for name, source in keys.items() if not re.search(r"[\\^$*+?()\[\]|]", name + source)}
