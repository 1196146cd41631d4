"""LoRA on convolutions and on stacked experts, as PEFT makes it, merges it and runs it."""

import copy
import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.checkpoint.reader import open_checkpoint
from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.loop.squeeze import squeeze_adapter

TEXT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def whisper():
    return transformers.WhisperModel(
        transformers.WhisperConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=16,
            max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip


def resnet():
    return transformers.ConvNextModel(
        transformers.ConvNextConfig(num_channels=3, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, image_size=16)
    )


def gpt_oss(square=False):
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **TEXT, intermediate_size=16 if square else 12, num_local_experts=3, num_experts_per_tok=2, head_dim=8,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TEXT, intermediate_size=12, num_local_experts=3, tie_word_embeddings=False)
    )


def qwen_moe():
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            **TEXT, intermediate_size=24, moe_intermediate_size=12, num_experts=3, num_experts_per_tok=2, head_dim=8,
            decoder_sparse_step=1, tie_word_embeddings=False,
        )
    )  # fmt: skip


BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = {
    "conv1d": (whisper, {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "conv1d, rsLoRA and patterns": (
        whisper,
        {"target_modules": ["conv1", "conv2"], "use_rslora": True, "rank_pattern": {"conv2": 2}},
    ),
    "conv1d, DoRA": (whisper, {"target_modules": ["conv1", "conv2"], "use_dora": True}),
    "conv1d, bias": (whisper, {"target_modules": ["conv1"], "lora_bias": True}),
    "conv2d": (resnet, {"target_modules": ["patch_embeddings", "downsampling_layer.1", "pwconv1"]}),
    "conv2d, DoRA": (resnet, {"target_modules": ["patch_embeddings"], "use_dora": True}),
    "experts, inputs first": (gpt_oss, {"target_parameters": BOTH, "target_modules": ["q_proj"]}),
    "experts, inputs first, one": (gpt_oss, {"target_parameters": BOTH[1:], "target_modules": []}),
    "experts, inputs first, square": (
        lambda: gpt_oss(square=True),
        {"target_parameters": BOTH[1:], "target_modules": []},
    ),
    "experts, patterns": (
        gpt_oss,
        {"target_parameters": BOTH, "target_modules": [], "rank_pattern": {"experts.down_proj": 3}, "use_rslora": True},
    ),
    "experts that lie apart, w1 w2 w3": (mixtral, {"target_parameters": BOTH, "target_modules": ["q_proj"]}),
    "experts that lie apart": (qwen_moe, {"target_parameters": BOTH, "target_modules": []}),
}  # fmt: skip


def made(tmp_path, build, **settings):
    """A base and a trained adapter on the disk; PEFT's model."""
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 6, **settings})
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    wrapped.save_pretrained(tmp_path / "adapter")
    return wrapped.eval()


@pytest.mark.parametrize("case", CASES)
def test_merge_and_spectrum_are_those_of_pefts_merge(case, tmp_path):
    build, settings = CASES[case]
    wrapped = made(tmp_path, build, **settings)
    before = tensors(tmp_path / "base")
    report = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert report.changed
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "peft")
    expected, found = tensors(tmp_path / "peft"), tensors(tmp_path / "merged")
    assert expected.keys() == found.keys()
    changed = 0
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6), name
        changed += not torch.equal(tensor, before[name])
    assert changed
    with open_checkpoint(tmp_path / "base") as base:
        changes = open_adapter(tmp_path / "adapter").changes(BaseLayout.of(base))
    for name, change in changes.tensors.items():
        if change.all_factors:  # one matrix, or one an expert
            matrices = before[name].reshape(len(change.all_factors), -1)
            deltas = [f.delta(w.reshape(f.shape)) for f, w in zip(change.all_factors, matrices, strict=True)]
            ours = torch.cat([delta.flatten() for delta in deltas])
            assert torch.allclose(ours, (expected[name] - before[name]).flatten(), atol=1e-5), name


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_experts_of_one_shape_are_told_apart_by_their_order(tmp_path):
    """Both parameters (experts, 16, 16): only the order in which PEFT wraps them says which factors are whose."""
    class_of = transformers.Qwen3MoeForCausalLM
    wrapped = made(tmp_path, lambda: class_of(square_config()), target_parameters=BOTH, target_modules=[])
    assert all(shape == (3, 16, 16) for shape in shapes_of(wrapped))
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "peft")
    expected, found = tensors(tmp_path / "peft"), tensors(tmp_path / "merged")
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in expected.items())


def square_config():
    return transformers.Qwen3MoeConfig(
        **TEXT, intermediate_size=24, moe_intermediate_size=8, num_experts=3, num_experts_per_tok=2, head_dim=8,
        decoder_sparse_step=1, tie_word_embeddings=False,
    )  # fmt: skip


def shapes_of(wrapped):
    experts = wrapped.base_model.model.model.layers[0].mlp.experts.get_base_layer()
    return [tuple(experts.gate_up_proj.shape), (3, experts.down_proj.shape[1], 2 * experts.down_proj.shape[2])]


def edited(tmp_path, change):
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(path)
    change(stored)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    made(tmp_path, gpt_oss, target_parameters=BOTH, target_modules=[])
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(config_file.read_text())
    for change, said in (
        ({"target_parameters": ["mlp.experts.down_proj"]}, "names 1 parameters"),
        ({"target_parameters": ["mlp.experts.down_proj", "mlp.experts.other"]}, "none of that name"),
        ({"r": 3}, "factors of rank 2"),
        ({"use_dora": True}, "together with use_dora"),
        ({"init_lora_weights": "pissa"}, "together with pissa"),
    ):
        config_file.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=said):
            merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    config_file.write_text(json.dumps(config))
    with pytest.raises(RequestError, match="stack of experts"):
        squeeze_adapter(tmp_path / "adapter", tmp_path / "cut", "50%")
    edited(tmp_path, lambda stored: stored.update({next(iter(stored)): torch.ones(5, 16)}))
    with pytest.raises(CheckpointError, match="do not fit its parameters"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_a_convolution_in_groups_or_of_another_kernel_is_refused(tmp_path):
    made(tmp_path, resnet, target_modules=["patch_embeddings"])
    base = tmp_path / "base" / "model.safetensors"
    stored = load_file(base)
    name = next(name for name in stored if "patch_embeddings.weight" in name)
    grouped = copy.copy(stored) | {name: stored[name][:, :1].contiguous()}
    save_file(grouped, base)
    with pytest.raises(CheckpointError, match="in groups"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    save_file(stored | {name: stored[name][..., :1].contiguous()}, base)
    with pytest.raises(CheckpointError, match="has a weight of shape"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_targets_without_factors_are_told(tmp_path):
    made(tmp_path, qwen_moe, target_modules=["q_proj", "k_proj"])
    edited(tmp_path, lambda stored: [stored.pop(name) for name in list(stored) if "layers.1.self_attn.k_proj" in name])
    report = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert any("1 module that target_modules names has no factors" in line for line in report.lines())


def test_one_token_twice_is_refused(tmp_path):
    made(tmp_path, qwen_moe, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(config_file.read_text())
    for tokens, said in (([3, 3], "names token 3"), ([3, -2], "trains token -2"), ([3, 40], "trains token 40")):
        config_file.write_text(json.dumps(config | {"trainable_token_indices": tokens}))
        with pytest.raises(CheckpointError, match=said):
            merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
