"""LoRA as diffusion programs save it: one safetensors file without a configuration, its names those of the program.

Which programs' names are read stands in `lora_names`. The scale is alpha / rank with the file's own alpha for
each module; where it has none, all of these programs take 1. Convolutions are the products of their flattened kernels.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from glmspectra.checkpoint.adapter.adapter import Adapter
from glmspectra.checkpoint.adapter.config import AdapterConfig
from glmspectra.checkpoint.adapter.convolutions import as_factors
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.checkpoint.adapter.lora_names import module_and_part, refused
from glmspectra.checkpoint.adapter.stored import StoredAdapter, load_safetensors, shortened
from glmspectra.checkpoint.names import natural_order
from glmspectra.errors import CheckpointError
from glmspectra.language import listed, text

# Component of a Kohya name -> what may stand before the module in the base, dots as underscores.
_CONTAINERS = {
    "unet": ("unet", "model_diffusion_model", "diffusion_model"),
    "transformer": ("transformer", "model_diffusion_model", "diffusion_model"),
    "te": ("text_encoder", "cond_stage_model_transformer", "conditioner_embedders_0_transformer"),
    "te1": ("text_encoder", "cond_stage_model_transformer", "conditioner_embedders_0_transformer"),
    "te2": ("text_encoder_2", "conditioner_embedders_1_model"),
    "te3": ("text_encoder_3",),
}
_COMPONENT = re.compile(r"^lora_(?P<component>unet|te\d?|transformer)_(?P<rest>.+)$")


def open_lora_file(path: Path) -> Adapter:
    """Open such a file. Its names stay as they are until a base tells which of its tensors they mean.

    Raises:
        CheckpointError: It cannot be read, holds a method that is no product of two factors, or a tensor that is not
            known here.
    """
    tensors, metadata = load_safetensors(path)
    for key in tensors:
        if what := refused(key):
            raise CheckpointError(f"{path}: holds {key}: {what}; it is not read.")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        parsed = module_and_part(key)
        if parsed is None:
            raise CheckpointError(f"{path}: the tensor {key!r} is not known here; it may change what the weights are.")
        module, part = parsed
        parts = found.setdefault(module, {})
        if part in parts:
            raise CheckpointError(f"{path}: {key} is there twice, under two names; which one counts cannot be known.")
        parts[part] = tensor
    alphas = _alphas_of(path, metadata)
    stored = StoredAdapter({module: _checked(path, module, parts, alphas) for module, parts in found.items()})
    names = [f"{module}.weight" for module in sorted(stored.factors, key=natural_order)]
    return Adapter(path, AdapterConfig(peft_type="LORA", r=1, lora_alpha=1.0), names, None, None, stored)


def _alphas_of(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """Component -> alpha of its modules, where diffusers wrote the adapter's configuration beside the tensors.

    Raises:
        CheckpointError: It says more than one alpha and rank a component, so that each module's is not known here.
    """
    stated = metadata.get("lora_adapter_metadata")
    if stated is None:
        return {}
    try:
        settings = json.loads(stated)
        if any(
            settings.get(key) for key in settings if key.endswith((".rank_pattern", ".alpha_pattern", ".use_rslora"))
        ):
            raise CheckpointError(
                f"{path}: its metadata gives single modules an alpha or a rank of their own, or rsLoRA, which is not "
                "read of such a file; load it with PEFT and save the adapter with its configuration."
            )
        return {
            key.removesuffix(".lora_alpha"): float(settings[key]) for key in settings if key.endswith(".lora_alpha")
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata lora_adapter_metadata cannot be read ({error}).") from None


def _checked(
    path: Path, module: str, parts: Mapping[str, torch.Tensor], alphas: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """A module's factors as matrices, kernels flattened: A (rank, in kh kw) and B (out, rank); and its alpha."""
    missing = [part for part in ("lora_A", "lora_B") if part not in parts]
    if missing:
        raise CheckpointError(f"{path}: {module} lacks {' and '.join(missing)}; it was not saved whole.")
    for what, tensor in parts.items():
        if not tensor.is_floating_point() and what != "alpha":
            raise CheckpointError(f"{path}: {what} of {module} holds {tensor.dtype}, no floating point.")
    up, down = parts["lora_B"], parts["lora_A"]
    factors = as_factors(up, down)
    if factors is None:
        raise CheckpointError(
            f"{path}: {module} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)}; linear layers and "
            "convolutions whose second factor is 1 x 1 are read."
        )
    rank = down.shape[0]
    alpha = parts.get("alpha", torch.tensor(alphas.get(module.split(".")[0], float(rank))))
    if alpha.numel() != 1 or not torch.isfinite(alpha.float()).all():
        raise CheckpointError(f"{path}: alpha of {module} is no number.")
    return {"lora_A": factors[1], "lora_B": factors[0], "alpha": alpha}


def name_in(base: BaseLayout, name: str) -> list[str]:
    """The base's tensors that a name of such a file can mean; of Kohya's, those that are equal with underscores."""
    match = _COMPONENT.match(name.removesuffix(".weight"))
    if match is None:
        return base.find(name)
    wanted = {match["rest"], *(f"{before}_{match['rest']}" for before in _CONTAINERS.get(match["component"], ()))}
    return [other for other in base.shapes if other.removesuffix(".weight").replace(".", "_") in wanted]


def bring_to(adapter: Adapter, base: BaseLayout) -> list[str]:
    """Rename the modules of a file's adapter to the base's; notes on components that the base does not have.

    One file changes a U-Net and its text encoders, which are models of their own: what belongs to a component of which
    the base has no module is left out. Convolutions are left out too: the base stores them with more than two axes.

    Raises:
        CheckpointError: A module of a component that the base has is not in it, or could be several.
    """
    found = {name: name_in(base, name) for name in adapter.names}
    there = {_component_of(name) for name, fits in found.items() if fits}
    if not there:
        raise CheckpointError(
            f"{adapter.path}: changes {shortened(adapter.names)}, none of which the base has; name the model that it "
            "was trained on, or leave the base out: its factors are measured alone."
        )
    notes, modules, kernels = [], {}, []
    for name, fits in found.items():
        if len(fits) != 1 and _component_of(name) in there:
            raise CheckpointError(
                f"{adapter.path}: {name} is {'none' if not fits else shortened(fits)} of the base's tensors; was it "
                "trained on this base?"
            )
        if fits and len(base.shapes[fits[0]]) > 2:
            kernels.append(fits[0])
        elif fits:
            modules[name.removesuffix(".weight")] = fits[0].removesuffix(".weight")
    absent = sorted({_component_of(name) for name in adapter.names} - there)
    if absent:
        notes.append(text("adapter-other-models", adapter=adapter.path.name, models=listed(absent)))
    if kernels:
        notes.append(
            text("adapter-convolutions", adapter=adapter.path.name, count=len(kernels), names=shortened(kernels))
        )
    adapter.rename_modules(modules)
    return notes


def _component_of(name: str) -> str:
    match = _COMPONENT.match(name)
    return match["component"] if match else name.split(".")[0]
