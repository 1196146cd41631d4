"""FSDP over two GPUs: LoRA and QLoRA, against one process with twice the batch."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_run, train_on_two_processes, write_args, write_data, write_model

from glmspectra.tuning.training import train


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_sharded_run_gives_the_losses_of_one_process(tmp_path, method):
    if torch.cuda.device_count() < 2:
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
    train_on_two_processes(tmp_path, args, "cuda", "--quiet")
    history = json.loads((tmp_path / "two/run/trainer_state.json").read_text())["log_history"]
    found = [entry["loss"] for entry in history if "loss" in entry]
    expected = [entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx(expected, abs=2e-3)
    weights = [load_file(tmp_path / name / "run/final_adapter/adapter_model.safetensors") for name in ("one", "two")]
    assert {name: value.shape for name, value in weights[0].items()} == {n: v.shape for n, v in weights[1].items()}
    assert (tmp_path / "two/run/checkpoint-3/LoraAdapter/adapter_model.safetensors").is_file()
