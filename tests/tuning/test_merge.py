"""Merging: equal to the model with its adapter, in the base's precision, streamed, for every PEFT method."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.tuning.training.run import train
from tests.tuning.tiny_run import ADALORA, make_run, write_data, write_model

TOKENS = torch.arange(3, 23)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.float()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), train=16, valid=4)


def trained(root, model, data, finetune=None, lora=None):
    run = make_run(root, model, data, finetune, lora, {"max_steps": 8, "save_strategy": "no"})
    train(run)
    return run.settings.final_adapter


@pytest.mark.parametrize(
    ("finetune", "lora"),
    [
        ({}, {"rank_pattern": {"layers.1.self_attention.query_key_value": 2}, "use_rslora": True}),
        ({}, {"use_dora": True, "modules_to_save": ["final_layernorm"]}),
        ({}, {"init_lora_weights": "pissa"}),
        ({"method": "adalora"}, ADALORA | {"lora_alpha": 64}),
    ],
    ids=["rslora", "dora", "pissa", "adalora"],
)
def test_merged_checkpoint_equals_the_model_with_its_adapter(tmp_path, model, data, finetune, lora):
    adapter = trained(tmp_path, model, data, finetune, lora)
    report = merge(model, adapter, tmp_path / "merged", shard_bytes=60_000)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    expected = logits(loaded)
    base = logits(AutoModelForCausalLM.from_pretrained(model))
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert (expected - base).abs().max() > 1e-3
    assert torch.allclose(merged, expected, atol=3e-5)
    assert report.changed == 2
    assert report.whole == (1 if "use_dora" in lora else 0)
    assert len(report.files) > 1  # shards
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    assert not list(tmp_path.glob(".merged*"))
    assert report.lines()[0].endswith("the adapter was added to the base's original weights, not to a quantized copy.")


def test_a_qlora_adapter_merges_into_the_original_precision(tmp_path, model, data):
    # Merging into the 4-bit base, PEFT's way, loses what this keeps.
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(model).to(torch.float16).save_pretrained(half)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (half / name).write_bytes((model / name).read_bytes())
    adapter = trained(tmp_path, half, data, {"method": "qlora"})
    report = merge(half, adapter, tmp_path / "merged")
    name = "transformer.encoder.layers.1.self_attention.query_key_value"
    with (
        safe_open(tmp_path / "merged/model.safetensors", "pt") as merged,
        safe_open(half / "model.safetensors", "pt") as base,
    ):
        assert {merged.get_tensor(key).dtype for key in merged.keys()} == {torch.float16}  # noqa: SIM118
        change = merged.get_tensor(f"{name}.weight").float() - base.get_tensor(f"{name}.weight").float()
        same = merged.get_tensor("transformer.encoder.layers.1.mlp.dense_h_to_4h.weight")
        assert torch.equal(same, base.get_tensor("transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"))
    with safe_open(adapter / "adapter_model.safetensors", "pt") as factors:
        b, a = (factors.get_tensor(f"base_model.model.{name}.lora_{x}.weight") for x in "BA")
    exact = 2.0 * b @ a
    lost = (change - exact).norm() / exact.norm()
    assert lost < 0.05
    assert report.lost[1] < 0.05
    assert report.dtype == "float16"


def test_a_loftq_start_is_not_merged_as_if_it_were_learnt(tmp_path, model, data):
    adapter = trained(tmp_path, model, data, {"method": "qlora"}, {"init_lora_weights": "loftq", "lora_dropout": 0.0})
    merge(model, adapter, tmp_path / "merged")
    key = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
    with (
        safe_open(tmp_path / "merged/model.safetensors", "pt") as merged,
        safe_open(model / "model.safetensors", "pt") as base,
    ):
        change = merged.get_tensor(key) - base.get_tensor(key)
    factors = {}
    for place in (adapter, adapter / "initial_adapter"):
        with safe_open(place / "adapter_model.safetensors", "pt") as file:
            b, a = (file.get_tensor("base_model.model." + key.replace("weight", f"lora_{x}.weight")) for x in "BA")
        factors[place.name] = 2.0 * b @ a
    assert factors["initial_adapter"].norm() > 0.05  # it makes up for the error of NF4
    assert torch.allclose(change, factors[adapter.name] - factors["initial_adapter"], atol=1e-6)


def test_adapters_of_plain_peft_and_of_this_package_are_the_same_thing(tmp_path, model, data):
    adapter = trained(tmp_path, model, data)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    into = AutoModelForCausalLM.from_pretrained(model)
    into.load_adapter(str(adapter))  # transformers' own way, into a model that never had an adapter
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    assert torch.allclose(logits(into), logits(ours), atol=1e-6)

    torch.manual_seed(1)
    plain = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=3, target_modules=["query_key_value"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    plain.save_pretrained(tmp_path / "plain")
    # The keys that a file of 2023 has, and no others.
    config = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    old = [
        *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights"),
        *("layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save"),
        *("peft_type", "r", "revision", "target_modules", "task_type"),
    ]
    (tmp_path / "plain/adapter_config.json").write_text(json.dumps({key: config[key] for key in old}))
    from glmspectra.tuning.inference.evaluation import load_adapter

    loaded = load_adapter(AutoModelForCausalLM.from_pretrained(model), tmp_path / "plain")
    assert torch.allclose(logits(loaded), logits(plain), atol=1e-6)
    merge(model, tmp_path / "plain", tmp_path / "merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(plain), atol=3e-5)


def test_what_cannot_be_merged_is_refused(tmp_path, model, data):
    adapter = trained(tmp_path, model, data)
    with pytest.raises(RequestError, match="the base model's own folder"):
        merge(model, adapter, model)
    with pytest.raises(RequestError, match="there is no such file or folder"):
        merge(tmp_path / "absent", adapter, tmp_path / "merged")
    other = write_model(tmp_path / "llama")
    with pytest.raises(CheckpointError, match="of which the base has none"):
        merge(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
