"""Which `chatglm` folders are read, as what, and which are refused in one sentence."""

import json

import pytest
from transformers import AutoConfig

from glmspectra.chatglm2 import ChatGLMConfig
from glmspectra.errors import ConfigError

PUBLISHED = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "use_cache": True,
    "torch_dtype": "float16",
    "transformers_version": "4.27.1",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GLM4 = {
    "num_layers": 40,
    "num_hidden_layers": 40,
    "padded_vocab_size": 151552,
    "vocab_size": 151552,
    "layernorm_epsilon": 1.5625e-07,
    "seq_length": 131072,
    "rope_ratio": 500,
    "classifier_dropout": None,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
    "torch_dtype": "bfloat16",
}


def read(tmp_path, **changes) -> ChatGLMConfig:
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, **changes}), encoding="utf-8")
    return AutoConfig.from_pretrained(tmp_path)


def test_the_published_configuration_is_the_default(tmp_path):
    config = read(tmp_path)
    assert type(config) is ChatGLMConfig
    for key, value in PUBLISHED.items():
        if key not in ("architectures", "auto_map", "torch_dtype", "transformers_version"):
            assert getattr(config, key) == value == getattr(ChatGLMConfig(), key), key
    assert (config.rope_theta, config.rope_position_divisor) == (10000.0, 1.0)
    assert (config.num_hidden_layers, config.vocab_size, config.head_dim) == (28, 65024, 128)
    assert config.num_key_value_heads == 2
    config.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in saved
    assert saved["num_layers"] == 28
    assert (
        AutoConfig.from_pretrained(tmp_path / "saved").to_dict().items()
        >= {"num_layers": 28, "rope_ratio": 1.0}.items()
    )


@pytest.mark.parametrize(
    ("changes", "theta", "divisor"),
    [
        ({"seq_length": 8192}, 10000.0, 1.0),  # ChatGLM3-6B
        ({"rope_ratio": 16, "_name_or_path": "THUDM/chatglm2-6b-32k"}, 10000.0, 16.0),
        ({"rope_ratio": 4}, 10000.0, 4.0),
        ({"rope_ratio": 50, "classifier_dropout": None}, 500000.0, 1.0),  # ChatGLM3-6B-32k
        ({"rope_ratio": 50}, 500000.0, 1.0),
        ({"rope_ratio": 4, "classifier_dropout": None}, 40000.0, 1.0),
        (GLM4, 5000000.0, 1.0),
        ({**GLM4, "rope_ratio": 10000, "multi_query_group_num": 4, "seq_length": 1048576}, 1e8, 1.0),
        ({"rope_ratio": 16, "rope_ratio_scales": "base"}, 160000.0, 1.0),
        ({"rope_ratio": 2, "rope_ratio_scales": "positions"}, 10000.0, 2.0),
    ],
)
def test_the_family_by_its_configuration(tmp_path, changes, theta, divisor):
    config = read(tmp_path, **changes)
    assert (config.rope_theta, config.rope_position_divisor) == (theta, divisor)
    config.save_pretrained(tmp_path / "saved")
    again = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (again.rope_theta, again.rope_position_divisor) == (theta, divisor)


CHATGLM_6B = {  # as published; the whole of it, since none of its sizes has a ChatGLM2 name
    "model_type": "chatglm",
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "gmask_token_id": 130001,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-05,
    "mask_token_id": 130000,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_layers": 28,
    "pad_token_id": 3,
    "position_encoding_2d": True,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 130528,
}


def test_chatglm_6b_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM_6B), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a configuration of ChatGLM-6B .* another architecture"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({**GLM4, "vision_config": {"image_size": 1120}}, "GLM-4V"),
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"multi_query_attention": False}, "multi_query_attention is False"),
        ({"post_layer_norm": False}, "post_layer_norm is False"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ({"fp32_residual_connection": True}, "fp32_residual_connection is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"pre_seq_len": 128}, "pre_seq_len is 128"),
        ({"num_layers": 0}, "num_layers .* above 0, not 0"),
        ({"num_layers": "28"}, "num_layers .* not '28'"),
        ({"num_layers": 27, "num_hidden_layers": 28}, "num_layers is 27 and num_hidden_layers is 28"),
        ({"multi_query_group_num": 3}, "must be a multiple of"),
        ({"kv_channels": 6}, "multiple of 4"),
        ({"rope_ratio": 0}, "rope_ratio must be above 0"),
        ({"rope_ratio_scales": "both"}, "rope_ratio_scales must be"),
        ({"quantization_bit": 3}, "quantization_bit must be 0, 4 or 8"),
    ],
)
def test_what_is_not_this_architecture_is_refused_in_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_transformers_names_say_the_same_sizes():
    config = ChatGLMConfig(num_hidden_layers=3, vocab_size=99, head_dim=16, num_key_value_heads=4, intermediate_size=8)
    assert (config.num_layers, config.padded_vocab_size, config.kv_channels) == (3, 99, 16)
    assert (config.multi_query_group_num, config.ffn_hidden_size) == (4, 8)


def test_the_ids_that_other_programs_ask_for_are_there():
    config = ChatGLMConfig()
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
