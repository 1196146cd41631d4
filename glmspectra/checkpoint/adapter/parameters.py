"""LoRA on bare parameters (`target_parameters`): the stacked experts of a mixture, which are no module each.

PEFT 0.21 (`lora.ParamWrapper`) keeps one A (experts x rank, in) and one B (out, rank x experts) for a parameter of
(experts, out, in); expert e has A[e rank : (e + 1) rank] and the columns e, e + experts, ... of B. Several parameters
of one module are wrapped around each other: their names hold `base_layer` once for each wrapper around them, and none
says which parameter it is of.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import torch

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.config import AdapterConfig
from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.errors import CheckpointError

Parts = Mapping[str, torch.Tensor]

MOST = 6  # parameters of one module
# In the order in which transformers' classes hold them, so that PEFT wraps the first one innermost.
ORDER = ("gate_up_proj", "w1", "v1", "w2", "down_proj")
# Parameter -> the matrices that older files hold of each expert, whose rows it has one after the other.
APART = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
# Families whose classes say is_transposed: (experts, in, out).
INPUTS_FIRST = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")


def parameter_changes(
    path: Path, config: AdapterConfig, stored: Mapping[str, Mapping[int, Parts]], base: BaseLayout
) -> Iterator[TensorChange]:
    """The changes of a base's tensors that the factors of bare parameters make.

    Raises:
        CheckpointError: The base has no such parameter, or which factors are whose cannot be known.
    """
    for module, wrappers in stored.items():
        keys = [key for key in config.target_parameters or [] if f".{module}".endswith(f".{key.rpartition('.')[0]}")]
        names = sorted({key.rpartition(".")[2] for key in keys}, key=_position)
        if not 0 < len(names) == len(wrappers) <= MOST or sorted(wrappers) != list(range(len(names))):
            raise CheckpointError(
                f"{path}: target_parameters names {len(names)} parameters of {module}, and the adapter has factors for "
                f"{len(wrappers)}; it was not saved whole."
            )
        stacks = [_Experts(path, base, module, name) for name in names]
        for stack, parts in _assigned(path, module, stacks, wrappers):
            yield from stack.changes(_experts(path, config, f"{module}.{stack.parameter}", stack, parts))


def _position(parameter: str) -> tuple[int, str]:
    return (ORDER.index(parameter) if parameter in ORDER else len(ORDER), parameter)


class _Experts:
    """Where a base keeps one parameter of a module: stacked in one tensor, or each expert on its own."""

    def __init__(self, path: Path, base: BaseLayout, module: str, parameter: str):
        self.path, self.base, self.parameter = path, base, parameter
        self.stacked: str | None = None
        self.apart: list[list[str]] = []
        found = base.find(f"{module}.{parameter}")
        if len(found) == 1 and len(base.shapes[found[0]]) in (2, 3):
            self.stacked = found[0]
            shape = tuple(base.shapes[self.stacked])
            self.experts, self.shape = (shape[0], shape[1:]) if len(shape) == 3 else (1, shape)
            self.inputs_first = len(shape) == 3 and base.config.get("model_type") in INPUTS_FIRST
            return
        self.apart = self._one_by_one(module)
        if not self.apart:
            raise CheckpointError(
                f"{path}: the adapter changes the parameter {module}.{parameter}, and the base has none of that name "
                f"{'' if not found else 'alone '}and no experts of their own in its place."
            )
        shapes = {tuple(base.shapes[name]) for names in self.apart for name in names}
        if len(shapes) != 1:
            raise CheckpointError(f"{path}: the experts of {module} in the base have different shapes.")
        rows, columns = shapes.pop()
        self.experts, self.shape, self.inputs_first = len(self.apart), (rows * len(self.apart[0]), columns), False

    def _one_by_one(self, module: str) -> list[list[str]]:
        stems = (module, module.replace(".mlp.experts", ".block_sparse_moe.experts"))
        for stem in dict.fromkeys(stems):
            for leaves in APART.get(self.parameter, ()):
                found: list[list[str]] = []
                while all(self.base.find(f"{stem}.{len(found)}.{leaf}.weight") for leaf in leaves):
                    names = [self.base.find(f"{stem}.{len(found)}.{leaf}.weight") for leaf in leaves]
                    found.append([name[0] for name in names])
                if found:
                    return found
        return []

    def fits(self, parts: Parts) -> bool:
        """Whether these factors can be of this parameter, by their shapes."""
        if "lora_A" not in parts or "lora_B" not in parts:
            return False
        out, inputs = self.shape[::-1] if self.inputs_first else self.shape
        left, right = parts["lora_B"], parts["lora_A"]
        rank = right.shape[0]
        fit = left.ndim == right.ndim == 2 and left.shape == (out, rank) and right.shape == (rank, inputs)
        return fit and rank > 0 and rank % self.experts == 0

    def changes(self, factors: list[Factors]) -> Iterator[TensorChange]:
        if self.stacked is not None:
            change = TensorChange(self.stacked, self.stacked, str(self.path), adapter_name=factors[0].name)
            turned = [replace(each.turned(), transposed=True) if self.inputs_first else each for each in factors]
            if len(self.base.shapes[self.stacked]) == 3:
                change.experts = tuple(turned)
            else:
                change.factors = turned[0]
            yield change
            return
        for names, each in zip(self.apart, factors, strict=True):
            for name, left in zip(names, each.left.chunk(len(names)), strict=True):
                yield TensorChange(
                    name, name, str(self.path), adapter_name=each.name, factors=replace(each, left=left.contiguous())
                )


def _assigned(
    path: Path, module: str, stacks: list[_Experts], wrappers: Mapping[int, Parts]
) -> Iterator[tuple[_Experts, Parts]]:
    """Which wrapper is of which parameter: by shapes, and by the order of the class where these leave it open."""
    innermost_first = [wrappers[depth] for depth in sorted(wrappers, reverse=True)]
    orders = [
        order
        for order in permutations(innermost_first)
        if all(stack.fits(parts) for stack, parts in zip(stacks, order, strict=True))
    ]
    if not orders:
        shapes = "; ".join(
            ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in parts.items()) for parts in innermost_first
        )
        raise CheckpointError(
            f"{path}: the factors of {module} ({shapes}) do not fit its parameters in the base: "
            + ", ".join(f"{stack.parameter} of {stack.experts} x {list(stack.shape)}" for stack in stacks)
            + "."
        )
    if len(orders) > 1 and not all(stack.parameter in ORDER for stack in stacks):
        raise CheckpointError(
            f"{path}: the parameters {', '.join(stack.parameter for stack in stacks)} of {module} have one shape, and "
            "which factors are whose cannot be known."
        )
    yield from zip(stacks, orders[0], strict=True)  # permutations begin with the order itself


def _experts(path: Path, config: AdapterConfig, name: str, stack: _Experts, parts: Parts) -> list[Factors]:
    """The factors of each expert, as the layer multiplies: (out, rank) and (rank, in)."""
    further = sorted(parts.keys() - {"lora_A", "lora_B"})
    if further:
        raise CheckpointError(f"{path}: {name} has {', '.join(further)}, which PEFT does not give a bare parameter.")
    right, left = parts["lora_A"], parts["lora_B"]
    rank = right.shape[0] // stack.experts
    expected, key = config.rank_of(name)
    if expected != rank:
        said = "" if key is None else f" (rank_pattern {key!r})"
        raise CheckpointError(
            f"{path}: {name} has factors of rank {rank}, but its configuration says {expected}{said}; PEFT would "
            "refuse to load it."
        )
    scale = config.scale_of(name, rank)
    ups = left.reshape(left.shape[0], rank, stack.experts).permute(2, 0, 1).contiguous()
    downs = right.reshape(stack.experts, rank, right.shape[1])
    return [Factors(name, up, down, scale, rank) for up, down in zip(ups, downs, strict=True)]
