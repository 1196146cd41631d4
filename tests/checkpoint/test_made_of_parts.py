"""Weights that torch keeps in parts, settings beside config.json, and what is no weight at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.selection import left_out
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.errors import CheckpointError
from tests.checkpoint.test_written_by_libraries import WRITTEN, sigma_difference

LAYER = "model.layers.0.self_attn."


def folder_with(path, tensors, config=None, beside=None):
    path.mkdir(exist_ok=True)
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path / "model.safetensors"
    )
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | (config or {})))
    for name, content in (beside or {}).items():
        (path / name).write_text(json.dumps(content))
    return path


def old_spectral_norm(layer):
    return nn.utils.spectral_norm(layer)


MADE = {
    "weight norm, a row": lambda: parametrizations.weight_norm(nn.Linear(24, 16)),
    "weight norm, whole": lambda: parametrizations.weight_norm(nn.Linear(24, 16), dim=None),
    "weight norm, a column of a convolution": lambda: parametrizations.weight_norm(nn.Conv1d(8, 16, 3), dim=2),
    "weight norm of before torch 2": lambda: nn.utils.weight_norm(nn.Linear(24, 16)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(24, 16)),
    "spectral norm of before": lambda: old_spectral_norm(nn.Linear(24, 16)),
    "spectral norm, transposed convolution": lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(8, 16, 3)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(24, 16), "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("made", MADE)
def test_a_weight_that_torch_makes_of_parts_is_the_one_it_makes(made, tmp_path):
    torch.manual_seed(0)
    layer = MADE[made]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        for _ in range(3):  # spectral norm finds its vectors on the way
            layer(torch.randn(2, 8, 24) if "onv" in made else torch.randn(2, 24))
    layer.eval()
    if "onv" not in made:
        layer(torch.randn(2, 24))
    expected = layer.weight.detach()
    stored = {f"{LAYER}conv.{name}": tensor for name, tensor in layer.state_dict().items()}
    with open_checkpoint(folder_with(tmp_path / "model", stored)) as checkpoint:
        (record,) = select(checkpoint, matrices="all")
        assert record.name == f"{LAYER}conv.weight"
        assert torch.allclose(checkpoint.read(record.name), expected, rtol=1e-5, atol=1e-7)
        if made != "pruned":
            with pytest.raises(CheckpointError, match="parts that the model's class expects"):
                convert(checkpoint, tmp_path / "out", "float32")


def test_another_parametrization_is_refused_by_name(tmp_path):
    layer = parametrizations.orthogonal(nn.Linear(16, 16))
    stored = {f"{LAYER}q_proj.{name}": tensor for name, tensor in layer.state_dict().items()}
    with (
        open_checkpoint(folder_with(tmp_path / "model", stored)) as checkpoint,
        pytest.raises(CheckpointError, match="parametrization of torch"),
    ):
        select(checkpoint)


@pytest.mark.parametrize(
    ("written", "file", "content"),
    [
        ("gptq_4bit_act_order", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": True, "sym": False}),
        ("awq_4bit", "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
    ],
)
def test_settings_in_a_file_of_their_own(written, file, content, tmp_path):
    tensors = load_file(WRITTEN / f"{written}.safetensors")
    expected = tensors.pop("expected")
    with open_checkpoint(folder_with(tmp_path / "model", tensors, beside={file: content})) as checkpoint:
        (record,) = select(checkpoint)
        assert sigma_difference(checkpoint.read(record.name), expected) < 2e-7
        convert(checkpoint, tmp_path / "out", "float16")
    assert not (tmp_path / "out" / file).exists(), "the written weights are plain"


def test_settings_in_a_file_of_their_own_are_checked(tmp_path):
    beside = {"hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A8_AWQ"}}}
    folder = folder_with(tmp_path / "model", {LAYER + "q_proj.weight": torch.randn(8, 8)}, beside=beside)
    with pytest.raises(CheckpointError, match=r"hf_quant_config.json.*quant_algo.*W4A8_AWQ"):
        open_checkpoint(folder)


def test_settings_of_a_part_of_the_model(tmp_path):
    config = {"text_config": {"quantization_config": {"quant_method": "aqlm"}}}
    folder = folder_with(tmp_path / "model", {LAYER + "q_proj.weight": torch.randn(8, 8)}, config)
    with pytest.raises(CheckpointError, match=r"text_config: the weights are quantized by aqlm"):
        open_checkpoint(folder)
    config["quantization_config"] = {"quant_method": "fp8"}
    folder = folder_with(tmp_path / "model", {LAYER + "q_proj.weight": torch.randn(8, 8)}, config)
    with pytest.raises(CheckpointError, match="different things of quantization"):
        open_checkpoint(folder)


def test_what_is_no_matrix_under_the_name_of_one_is_told(tmp_path):
    """FSDP's and ZeRO's shards, packed words and scales under names of a writer's own."""
    tensors = {
        LAYER + "q_proj.weight": torch.randn(64),
        "model.layers.0.input_layernorm.weight": torch.randn(8),
        LAYER + "k_proj.weight": torch.randn(8, 8),
        LAYER + "k_proj.weight_quantizer_scale_factors": torch.randn(8, 8),
        LAYER + "v_proj.trellis": torch.zeros(8, 8, dtype=torch.int16),
        "model.layers.0.mlp.experts.down_proj": torch.zeros(2, 8, 8, dtype=torch.int8),
    }
    with open_checkpoint(folder_with(tmp_path / "model", tensors)) as checkpoint:
        results = left_out(checkpoint)
        assert [record.name for record in select(checkpoint, matrices="all")] == [
            LAYER + "k_proj.weight",
            "model.layers.0.mlp.experts.down_proj",
        ]
        assert "no scale" in checkpoint.tensors["model.layers.0.mlp.experts.down_proj"].fault
    assert results.keys() == {name for name in tensors if "weight" in name or "trellis" in name} - {
        LAYER + "k_proj.weight",
        "model.layers.0.input_layernorm.weight",
    }
    assert "no matrix's" in results[LAYER + "q_proj.weight"]


def test_nested_tensors_have_a_row(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    pieces = [torch.randn(4, 8), torch.randn(3, 8)]
    stored = {
        LAYER + "q_proj.weight": torch.randn(8, 8),
        LAYER + "k_proj.weight": torch.nested.nested_tensor(pieces),
        LAYER + "v_proj.weight": torch.nested.nested_tensor(pieces, layout=torch.jagged),
    }
    torch.save(stored, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        faults = {record.name: record.fault for record in select(checkpoint)}
    assert faults.pop(LAYER + "q_proj.weight") is None
    assert all("nested tensor" in fault for fault in faults.values())
    assert len(faults) == 2


def test_base_and_factors_side_by_side_are_no_matrices(tmp_path):
    tensors = {
        LAYER + "q_proj.base_layer.weight": torch.randn(8, 8),
        LAYER + "q_proj.lora_A.default.weight": torch.randn(2, 8),
        LAYER + "q_proj.lora_B.default.weight": torch.randn(8, 2),
    }
    with open_checkpoint(folder_with(tmp_path / "model", tensors)) as checkpoint:
        faults = {record.name: record.fault for record in select(checkpoint)}
    assert faults.pop(LAYER + "q_proj.base_layer.weight") is None
    assert all("base and adapter side by side" in fault for fault in faults.values())
    assert len(faults) == 2
