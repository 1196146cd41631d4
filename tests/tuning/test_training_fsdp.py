"""Two GPUs or two CPU processes, sharded (FSDP) or not: LoRA and QLoRA, against one process with twice the batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glmspectra.tuning.training.run import train
from tests.tuning.tiny_run import make_run, train_on_two_processes, write_args, write_data, write_model

ON_CPU = (str(Path(__file__).with_name("fsdp_on_cpu.py")),)


@pytest.mark.parametrize(
    ("device", "method"),
    [
        pytest.param("cuda", "lora", marks=pytest.mark.gpu),
        pytest.param("cuda", "qlora", marks=pytest.mark.gpu),
        pytest.param("cpu", "qlora", marks=pytest.mark.slow),  # packed weights are the harder of the two
    ],
)
def test_a_sharded_run_gives_the_losses_of_one_process(tmp_path, device, method):
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model = write_model(tmp_path / "model", "chatglm")
    data = write_data(tmp_path / "data")
    # FSDP gathers the parameters of a block together, packed bytes too, so all are stored as one type.
    finetune = {"method": method, "dtype": "float32", "bnb_4bit_quant_storage": "float32"}
    common = {"max_steps": 6, "save_steps": 3}
    one = make_run(
        tmp_path / "one", model, data, finetune, {"lora_dropout": 0.0}, common | {"per_device_train_batch_size": 8}
    )
    train(one)
    sharded = common | {
        "fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["GLMBlock"]}
    }  # fmt: skip
    args = write_args(tmp_path / "two" / "args", model, data, finetune, {"lora_dropout": 0.0}, sharded)
    program = ("-m", "glmspectra") if device == "cuda" else ON_CPU
    train_on_two_processes(tmp_path, args, device, "--quiet", program=program)
    history = json.loads((tmp_path / "two/run/trainer_state.json").read_text())["log_history"]
    found = [entry["loss"] for entry in history if "loss" in entry]
    expected = [entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry]
    tolerance = 2e-3 if device == "cuda" else 1e-5
    assert found == pytest.approx(expected, abs=tolerance)
    weights = [load_file(tmp_path / name / "run/final_adapter/adapter_model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=tolerance, rtol=0)
    parts = (tmp_path / "two/run/checkpoint-3").rglob("*")
    assert {"pytorch_model_fsdp.bin", "optimizer.bin", "adapter_model.safetensors"} <= {path.name for path in parts}


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_two_gpus_give_the_losses_of_one(tmp_path, method):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model, data = write_model(tmp_path / "model", "chatglm"), write_data(tmp_path / "data")
    finetune, lora, common = {"method": method, "dtype": "float32"}, {"lora_dropout": 0.0}, {"max_steps": 6}
    one = make_run(tmp_path / "one", model, data, finetune, lora, common | {"per_device_train_batch_size": 8})
    train(one)
    args = write_args(tmp_path / "two" / "args", model, data, finetune, lora, common)
    train_on_two_processes(tmp_path, args, "cuda", "--quiet")
    history = json.loads((tmp_path / "two/run/trainer_state.json").read_text())["log_history"]
    found = [entry["loss"] for entry in history if "loss" in entry]
    assert len(found) == 6
    assert found == pytest.approx([e["loss"] for e in one.trainer.state.log_history if "loss" in e], abs=2e-3)
