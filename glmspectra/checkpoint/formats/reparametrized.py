"""Weights that torch keeps as the parts it makes them of: weight norm, spectral norm, pruning.

Weight norm (Salimans and Kingma 2016): W = g v / ||v||, the norm over every axis that g has one entry of; stored as
`X.weight_g` and `X.weight_v`, and since torch 2 as `X.parametrizations.weight.original0` and `original1`. Spectral norm
(Miyato et al. 2018): `X.weight_orig` over u^T W v, the two vectors beside it. Pruning: `X.weight_orig` times
`X.weight_mask`. Any other parametrization is a function that only the model's code holds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike

if TYPE_CHECKING:
    import torch

PARAMETRIZED = "parametrizations.weight."
WORDS = ("weight_v", "weight_orig", PARAMETRIZED + "original1", PARAMETRIZED + "original")
REMADE = ("weight_norm", "spectral_norm")  # the model's class expects the parts under their own names
REFUSED_PARTS = "is stored by {}, as parts that the model's class expects, and the weight alone would not load."


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of a `weight_v`, `weight_orig` or `parametrizations.weight.original`."""
    if len(files.stored[name].shape) < 2:
        return None
    found = _recognize(name, files)
    return None if found is None else replace(found, undivided=True)


def _recognize(name: str, files: Files) -> Logical | None:
    word = next((word for word in WORDS if name == word or name.endswith("." + word)), None)
    if word is None:
        is_scale = name.endswith(PARAMETRIZED + "original0") and name[:-1] + "1" in files.stored
        return _unknown(name, files) if ".parametrizations." in name and not is_scale else None
    module = name.removesuffix(word)
    if word in ("weight_v", WORDS[2]):
        scale = module + ("weight_g" if word == "weight_v" else PARAMETRIZED + "original0")
        if scale in files.stored:
            return _weight_norm(name, scale, files)
        return None if word == "weight_v" else _unknown(name, files)
    mask = module + "weight_mask"
    if word == "weight_orig" and mask in files.stored:
        return _pruned(name, mask, files)
    left, right = (
        (module + "weight_u", module + "weight_v")
        if word == "weight_orig"
        else (module + PARAMETRIZED + "0._u", module + PARAMETRIZED + "0._v")
    )
    if left in files.stored and right in files.stored:
        return _spectral_norm(name, left, right, files)
    return _unknown(name, files)


def weight_of(name: str) -> str | None:
    """The name of the weight that a part of this name is the first of; None where it is no such part."""
    word = next((word for word in WORDS if name == word or name.endswith("." + word)), None)
    return None if word is None else name.removesuffix(word) + "weight"


def _unknown(name: str, files: Files) -> Logical:
    fault = "it is a part of a parametrization of torch, whose function is in the model's code and not in the files"
    return files.weight(files.stored[name].shape, "parametrized", [name], fault=fault)


def _weight_norm(name: str, scale: str, files: Files) -> Logical:
    shape, sizes = files.stored[name].shape, files.stored[scale].shape
    whole = math.prod(sizes) == 1
    if not whole and (len(sizes) != len(shape) or any(g not in (1, n) for g, n in zip(sizes, shape, strict=True))):
        return files.weight(shape, "weight_norm", [name, scale], fault=unlike("weight norm", files, name, scale))
    over = tuple(range(len(shape))) if whole else tuple(axis for axis, size in enumerate(sizes) if size == 1)

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        direction = tensors[name].float()
        norm = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
        factor = tensors[scale].float().reshape([1] * len(shape) if whole else sizes)
        scaled: torch.Tensor = direction * (factor / norm)
        return scaled

    return files.weight(shape, "weight_norm", [name, scale], dequantize)


def _spectral_norm(name: str, left: str, right: str, files: Files) -> Logical:
    shape = files.stored[name].shape
    rows, columns = math.prod(files.stored[left].shape), math.prod(files.stored[right].shape)
    axis = next((axis for axis in (0, 1) if rows == shape[axis] and rows * columns == math.prod(shape)), None)
    if axis is None:
        fault = unlike("spectral norm", files, name, left, right)
        return files.weight(shape, "spectral_norm", [name, left, right], fault=fault)

    def dequantize(tensors: Tensors) -> torch.Tensor:
        weight = tensors[name].float()
        matrix = weight.movedim(axis, 0).reshape(rows, columns)
        sigma = tensors[left].float().flatten() @ (matrix @ tensors[right].float().flatten())
        divided: torch.Tensor = weight / sigma
        return divided

    return files.weight(shape, "spectral_norm", [name, left, right], dequantize)


def _pruned(name: str, mask: str, files: Files) -> Logical:
    shape = files.stored[name].shape
    if files.stored[mask].shape != shape:
        return files.weight(shape, "pruned", [name, mask], fault=unlike("a pruned weight", files, name, mask))
    return files.weight(shape, "pruned", [name, mask], lambda tensors: tensors[name].float() * tensors[mask].float())
