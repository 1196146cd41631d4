"""LoRA files of diffusion programs, against what PEFT adds to the layers they came from, and the convolutions."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glmspectra.checkpoint.adapter.lora_file import open_lora_file
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.sweep.delta import measure_change
from glmspectra.sweep.delta_plan import DeltaOptions
from tests.delta.test_delta_sweep import sigma_of

peft = pytest.importorskip("peft")
RANK, ALPHA = 3, 5.0
QUIET = {"device": "cpu", "quiet": True}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(16, 16, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(16, 12)])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = Attention()
        self.proj_in = nn.Conv2d(8, 16, 1)
        self.conv_1 = nn.Conv2d(8, 10, 3)


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_blocks = nn.ModuleList([Block(), Block()])


TARGETS = ["to_q", "to_out.0", "proj_in", "conv_1"]


def trained():
    """A U-Net in small with PEFT's LoRA on linear layers and convolutions; module -> what PEFT adds, float64."""
    torch.manual_seed(0)
    base = Unet()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False)
    tuned = peft.get_peft_model(base, settings)
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in tuned.named_modules()
        if "default" in getattr(layer, "lora_A", {})
    }
    added = {name: layer.get_delta_weight("default").detach().double() for name, layer in layers.items()}
    factors = {
        name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        for name, layer in layers.items()
    }
    return weights, factors, added


def kohya(factors, component="unet", alpha=ALPHA):
    tensors = {}
    for module, (down, up) in factors.items():
        name = f"lora_{component}_{module.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors |= {f"{name}.alpha": torch.tensor(alpha)} if alpha is not None else {}
    return tensors


def processors(factors):
    """diffusers' first form: the attention's processor holds the layers."""
    tensors = {}
    for module, (down, up) in factors.items():
        if "attn1" in module:
            head, _, leaf = module.removesuffix(".0").rpartition(".")
            name = f"unet.{head}.processor.{leaf}_lora"
            tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    return tensors


def diffusers_now(factors, prefix="unet."):
    return {
        f"{prefix}{module}.lora_{side}.weight": tensor
        for module, pair in factors.items()
        for side, tensor in zip("AB", pair, strict=True)
    }


def saved(path, tensors, **metadata):
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


def test_kohyas_factors_are_what_peft_adds_also_to_convolutions(tmp_path):
    _, factors, added = trained()
    assert len(added) == 8
    adapter = open_lora_file(saved(tmp_path / "lora.safetensors", kohya(factors)))
    assert len(adapter.names) == 8
    for module, change in added.items():
        found = adapter.change(f"lora_unet_{module.replace('.', '_')}.weight").product(torch.float64)
        torch.testing.assert_close(found.reshape(change.shape), change, rtol=1e-5, atol=1e-7)


def test_a_flattened_kernel_is_the_two_convolutions_one_after_the_other(tmp_path):
    _, factors, _ = trained()
    module = "down_blocks.0.conv_1"
    down, up = factors[module]
    adapter = open_lora_file(saved(tmp_path / "lora.safetensors", kohya({module: (down, up)}, alpha=RANK * 0.5)))
    kernel = adapter.change(adapter.names[0]).product().reshape(10, 8, 3, 3)
    inputs = torch.randn(2, 8, 7, 7)
    expected = 0.5 * nn.functional.conv2d(nn.functional.conv2d(inputs, down), up)
    torch.testing.assert_close(nn.functional.conv2d(inputs, kernel), expected, rtol=1e-4, atol=1e-5)


def test_without_alpha_the_scale_is_one(tmp_path):
    _, factors, added = trained()
    adapter = open_lora_file(saved(tmp_path / "lora.safetensors", kohya(factors, alpha=None)))
    for module, change in added.items():
        found = adapter.change(f"lora_unet_{module.replace('.', '_')}.weight").product(torch.float64)
        torch.testing.assert_close(found.reshape(change.shape), change * RANK / ALPHA, rtol=1e-5, atol=1e-7)


METADATA = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA, "unet.r": RANK, "unet.rank_pattern": {}})}
FORMS = {
    "kohya": (kohya, {}),
    "processors": (processors, {}),
    "diffusers": (diffusers_now, METADATA),
}


@pytest.mark.parametrize("prefix", ["", "unet.", "model.diffusion_model."])
@pytest.mark.parametrize("form", FORMS)
def test_delta_finds_the_bases_names_and_the_dense_spectrum(tmp_path, form, prefix):
    """On a base stored as a component, a pipeline, or one file of the original program."""
    if form != "kohya" and prefix == "model.diffusion_model.":
        pytest.skip("diffusers' names are never beside the original program's")
    weights, factors, added = trained()
    (tmp_path / "base").mkdir()
    saved(tmp_path / "base" / "model.safetensors", {f"{prefix}{name}": tensor for name, tensor in weights.items()})
    write, metadata = FORMS[form]
    file = saved(tmp_path / "lora.safetensors", write(factors), **metadata)
    run, result = measure_change(tmp_path / "base", file, tmp_path / "tables", DeltaOptions(**QUIET))
    linear = {module: change for module, change in added.items() if change.ndim == 2}
    assert len(linear) == 4
    assert set(run.matrices["name"]) == {f"{prefix}{module}.weight" for module in linear}
    for module, change in linear.items():
        expected = torch.linalg.svdvals(change).numpy()[:RANK]
        np.testing.assert_allclose(sigma_of(run, f"{prefix}{module}.weight"), expected, rtol=1e-5)
    convolutions = [note for note in result.notes if "convolutions" in note]
    assert len(convolutions) == (form != "processors")


def test_without_a_base_all_is_measured_under_the_files_names_in_a_folder_too(tmp_path):
    _, factors, added = trained()
    (tmp_path / "lora").mkdir()
    saved(tmp_path / "lora" / "pytorch_lora_weights.safetensors", kohya(factors))
    run, _ = measure_change(None, tmp_path / "lora", tmp_path / "tables", DeltaOptions(**QUIET))
    assert len(run.matrices) == 8
    name = "lora_unet_down_blocks_1_conv_1.weight"
    expected = torch.linalg.svdvals(added["down_blocks.1.conv_1"].flatten(1)).numpy()[:RANK]
    np.testing.assert_allclose(sigma_of(run, name), expected, rtol=1e-5)


def test_a_text_encoder_in_the_same_file_is_left_out_by_name_on_the_unet(tmp_path):
    weights, factors, _ = trained()
    (tmp_path / "base").mkdir()
    saved(tmp_path / "base" / "model.safetensors", weights)
    text = {"text_model.encoder.layers.0.self_attn.q_proj": factors["down_blocks.0.attn1.to_q"]}
    file = saved(tmp_path / "lora.safetensors", kohya(factors) | kohya(text, "te1"))
    run, result = measure_change(tmp_path / "base", file, tmp_path / "tables", DeltaOptions(**QUIET))
    assert len(run.matrices) == 4
    assert any("also changes te1, of which this base has nothing" in note for note in result.notes)


def test_a_module_that_the_base_lacks_is_refused(tmp_path):
    weights, factors, _ = trained()
    (tmp_path / "base").mkdir()
    saved(tmp_path / "base" / "model.safetensors", weights)
    for module, text in (("down_blocks.7.attn1.to_q", "none of the base's tensors"), (None, "none of which the base")):
        own = {module: factors["down_blocks.0.attn1.to_q"]} | factors if module else {"other.to_q": factors[
            "down_blocks.0.attn1.to_q"]}  # fmt: skip
        file = saved(tmp_path / "lora.safetensors", kohya(own))
        with pytest.raises(CheckpointError, match=text):
            measure_change(tmp_path / "base", file, tmp_path / "tables", DeltaOptions(**QUIET))


MORE = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lora_mid.weight": "LoCon",
    "dora_scale": "DoRA",
    "oft_blocks": "OFT",
    "diff": "whole tensors",
    "on_input": "not known here",
}


@pytest.mark.parametrize("part", MORE)
def test_other_methods_and_tensors_are_refused_by_name(tmp_path, part):
    _, factors, _ = trained()
    tensors = kohya(factors) | {f"lora_unet_down_blocks_0_attn1_to_q.{part}": torch.randn(3, 3)}
    with pytest.raises(CheckpointError, match=MORE[part]):
        measure_change(None, saved(tmp_path / "lora.safetensors", tensors), tmp_path, DeltaOptions(**QUIET))


@pytest.mark.parametrize("part", ["hada_w1_a", "lokr_w1"])
def test_a_file_of_lycoris_alone_is_refused_by_name(tmp_path, part):
    file = saved(tmp_path / "lora.safetensors", {f"lycoris_layer.{part}": torch.randn(3, 3)})
    with pytest.raises(CheckpointError, match=MORE[part]):
        measure_change(None, file, tmp_path, DeltaOptions(**QUIET))


def test_half_a_pair_and_two_files_in_a_folder_are_refused(tmp_path):
    _, factors, _ = trained()
    tensors = kohya(factors)
    tensors.pop("lora_unet_down_blocks_0_attn1_to_q.lora_up.weight")
    with pytest.raises(CheckpointError, match="down_blocks_0_attn1_to_q lacks lora_B"):
        open_lora_file(saved(tmp_path / "one.safetensors", tensors))
    saved(tmp_path / "two.safetensors", kohya(factors))
    with pytest.raises(RequestError, match=r"several adapters \("):
        measure_change(None, tmp_path, tmp_path / "tables", DeltaOptions(**QUIET))


def test_metadata_with_ranks_of_single_modules_is_refused(tmp_path):
    _, factors, _ = trained()
    results = json.dumps({"unet.lora_alpha": ALPHA, "unet.rank_pattern": {"to_q": 2}})
    with pytest.raises(CheckpointError, match="single modules"):
        open_lora_file(saved(tmp_path / "a.safetensors", diffusers_now(factors), lora_adapter_metadata=results))
