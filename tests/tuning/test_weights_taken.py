"""A base is loaded only where every weight in its files is one that the model computes with."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmspectra.checkpoint.loadable import check_loadable, check_taken
from glmspectra.errors import CheckpointError
from glmspectra.tuning.model.loading import load_base
from glmspectra.tuning.model.precision import Precision
from tests.tuning.tiny_run import write_model

QUERY = "model.layers.0.self_attn.q_proj"


def changed(folder, change, config=None):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"quantization_config": config}))


def fp8(scale_name):
    def change(tensors):
        weight = tensors[f"{QUERY}.weight"]
        scale = weight.abs().max() / 448
        tensors[f"{QUERY}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{QUERY}.{scale_name}"] = scale.reshape(1, 1)

    return change


def gptq(tensors):
    del tensors[f"{QUERY}.weight"]
    tensors[f"{QUERY}.qweight"] = torch.zeros(8, 64, dtype=torch.int32)
    tensors[f"{QUERY}.qzeros"] = torch.zeros(2, 8, dtype=torch.int32)
    tensors[f"{QUERY}.scales"] = torch.rand(2, 64).half()


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (fp8("scale"), None, "stored as fp8.*glmspectra convert"),
        (fp8("weight_scale"), None, "stored as fp8.*glmspectra convert"),
        (fp8("of_tomorrow"), None, "no scale in the files"),
        (gptq, None, "packed as GPTQ, and no quantization_config"),
        (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}, "stored as gptq:4bit.*glmspectra convert"),
        (gptq, {"quant_method": "aqlm"}, "quantized by aqlm"),
        (lambda tensors: tensors.pop(f"{QUERY}.weight"), None, f"in none of its files, {QUERY}.weight"),
        (
            lambda tensors: tensors.update({"extra.weight": torch.ones(2, 2)}),
            None,
            "no place for 1 tensors.*extra.weight",
        ),
    ],
)
def test_what_the_model_would_not_take_is_refused_by_name(change, config, said, tmp_path):
    folder = write_model(tmp_path / "base")
    changed(folder, change, config)
    with pytest.raises(CheckpointError, match=said):
        load_base(folder, Precision(torch.float32, torch.float32, None), torch.device("cpu"))


def test_whole_models_pass(tmp_path):
    for family in ("llama", "chatglm2"):
        check_loadable(write_model(tmp_path / family, family))
    check_taken(tmp_path, ["model.layers.0.self_attn.rotary_emb.inv_freq"], [])


def test_more_layers_than_the_files_hold_are_not_built(tmp_path):
    folder = write_model(tmp_path / "base")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match="num_hidden_layers 1,000,000,000 and the files hold 2 layers"):
        check_loadable(folder)
