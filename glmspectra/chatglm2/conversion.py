"""Exact conversion to and from transformers' `GlmForCausalLM`, the format that transformers and vLLM read.

The two are one architecture under two sets of names. `Glm` keeps queries, keys and values in three matrices, which
here are the rows of `query_key_value` in this order; everything else is the same tensor under another name. No value
changes.
Adapters and spectra of `query_key_value` do not carry over: with three matrices LoRA has three A factors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import GlmConfig, GlmForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.modeling import ChatGLMForConditionalGeneration
from glmspectra.errors import ConfigError, RequestError

Model = TypeVar("Model", bound=PreTrainedModel)

ATTENTION_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Correspondence:
    """One tensor here, and the one or three it is in `Glm`; `rows` says how many rows each of these has."""

    name: str
    glm_names: tuple[str, ...]
    rows: tuple[int, ...] | None = None  # None: the whole tensor


def correspondences(config: ChatGLMConfig) -> Iterator[Correspondence]:
    """Every tensor of the checkpoint that a forward pass reads, in the order of the layers."""
    rows = (
        config.num_attention_heads * config.kv_channels,
        config.multi_query_group_num * config.kv_channels,
        config.multi_query_group_num * config.kv_channels,
    )
    yield Correspondence("transformer.embedding.word_embeddings.weight", ("model.embed_tokens.weight",))
    for layer in range(config.num_layers):
        here, there = f"transformer.encoder.layers.{layer}", f"model.layers.{layer}"
        for parameter in ("weight", "bias") if config.add_qkv_bias else ("weight",):
            yield Correspondence(
                f"{here}.self_attention.query_key_value.{parameter}",
                tuple(f"{there}.{part}.{parameter}" for part in ATTENTION_ROWS),
                rows,
            )
        for name, glm_name in (
            ("self_attention.dense", "self_attn.o_proj"),
            ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
            ("mlp.dense_4h_to_h", "mlp.down_proj"),
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "post_attention_layernorm"),
        ):
            yield Correspondence(f"{here}.{name}.weight", (f"{there}.{glm_name}.weight",))
    yield Correspondence("transformer.encoder.final_layernorm.weight", ("model.norm.weight",))
    yield Correspondence("transformer.output_layer.weight", ("lm_head.weight",))


def glm_config(config: ChatGLMConfig) -> GlmConfig:
    """The `GlmConfig` of the same model.

    Raises:
        ConfigError: the linear layers have biases (`add_bias_linear`), which `Glm` has no place for.
    """
    if config.add_bias_linear:
        raise ConfigError("add_bias_linear is true, and GlmForCausalLM has no bias in its dense and MLP matrices.")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 0.5}
    if config.rope_position_divisor != 1.0:
        rope |= {"rope_type": "linear", "factor": config.rope_position_divisor}
    return GlmConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        attention_bias=config.add_qkv_bias,
        attention_dropout=config.attention_dropout,
        rms_norm_eps=config.layernorm_epsilon,
        max_position_embeddings=config.seq_length,
        rope_parameters=rope,
        initializer_range=config.initializer_range,
        use_cache=config.use_cache,
        tie_word_embeddings=False,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        dtype=config.dtype,
    )


def chatglm_config(config: GlmConfig) -> ChatGLMConfig:
    """The `ChatGLMConfig` of the same model.

    Raises:
        ConfigError: the RoPE or the activation is one that ChatGLM2 does not have.
    """
    rope = dict(config.rope_parameters or {})
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ("default", "linear") or rope.get("partial_rotary_factor", 0.5) != 0.5:
        raise ConfigError(
            f"rope_parameters {rope} are not ChatGLM2's, which turns half of each head, unscaled or linear."
        )
    if config.hidden_act != "silu":
        raise ConfigError(f"hidden_act is {config.hidden_act!r}, and ChatGLM2's feed-forward part has 'silu'.")
    theta_ratio = rope.get("rope_theta", 10000.0) / 10000.0
    if rope_type == "linear" and theta_ratio != 1.0:
        raise ConfigError(
            f"rope_parameters {rope} scale both the base and the positions, and ChatGLM2 scales one of them."
        )
    return ChatGLMConfig(
        padded_vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        multi_query_group_num=config.num_key_value_heads or config.num_attention_heads,
        kv_channels=config.head_dim or config.hidden_size // config.num_attention_heads,
        add_qkv_bias=config.attention_bias,
        attention_dropout=config.attention_dropout or 0.0,
        layernorm_epsilon=config.rms_norm_eps,
        seq_length=config.max_position_embeddings,
        rope_ratio=rope["factor"] if rope_type == "linear" else theta_ratio,
        rope_ratio_scales="positions" if rope_type == "linear" else "base",
        initializer_range=config.initializer_range,
        use_cache=config.use_cache,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        dtype=config.dtype,
    )


def to_glm(model: ChatGLMForConditionalGeneration) -> GlmForCausalLM:
    """A `GlmForCausalLM` with copies of the same weights, of the same type and on the same device, in eval mode.

    Raises:
        ConfigError: as `glm_config`.
        RequestError: the weights are quantized.
    """
    source = _plain_weights(model)
    target = _empty(GlmForCausalLM, glm_config(model.config), model)
    weights = dict(target.named_parameters())
    with torch.no_grad():
        for item in correspondences(model.config):
            tensor = source[item.name]
            parts = tensor.split(item.rows) if item.rows else (tensor,)
            for glm_name, part in zip(item.glm_names, parts, strict=True):
                weights[glm_name].copy_(part)
    return target


def from_glm(model: GlmForCausalLM) -> ChatGLMForConditionalGeneration:
    """The same model as `ChatGLMForConditionalGeneration`, with copies of its weights; the inverse of `to_glm`.

    Tied embeddings are copied twice, since ChatGLM2 ties none.

    Raises:
        ConfigError: as `chatglm_config`.
        RequestError: the weights are quantized.
    """
    source = _plain_weights(model)
    source.setdefault("lm_head.weight", model.get_output_embeddings().weight)
    config = chatglm_config(model.config)
    target = _empty(ChatGLMForConditionalGeneration, config, model)
    weights = dict(target.named_parameters())
    with torch.no_grad():
        for item in correspondences(config):
            weights[item.name].copy_(torch.cat([source[name] for name in item.glm_names]))
    return target


def _plain_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The parameters by name, once it is certain that they are the weights themselves."""
    quantized = [name for name, weight in model.named_parameters() if not weight.is_floating_point()]
    if quantized or getattr(model, "is_quantized", False) or getattr(model.config, "quantization_bit", 0):
        where = quantized[0] if quantized else "its configuration"
        raise RequestError(
            f"the model is quantized ({where}), and only plain weights convert exactly: load it unquantized."
        )
    return dict(model.named_parameters())


def _empty(model_class: type[Model], config: PreTrainedConfig, like: PreTrainedModel) -> Model:
    """A model of `model_class` on the device and in the type of `like`, whose weights are still to be written."""
    config._attn_implementation = like.config._attn_implementation
    with init.no_init_weights(), like.device:
        target: Model = model_class._from_config(config, dtype=like.dtype)
    target.generation_config = like.generation_config
    written: Model = target.eval()
    return written
