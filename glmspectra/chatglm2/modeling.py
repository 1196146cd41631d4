"""ChatGLM2 on today's transformers, under the parameter names of the published checkpoint.

What differs from a textbook decoder (Du et al. 2022, arXiv:2103.10360; Zeng et al. 2023, arXiv:2210.02414):
- RMSNorm before attention and before the feed-forward part (Zhang & Sennrich 2019, arXiv:1910.07467).
- One fused matrix `query_key_value`: rows of all query heads, then of the key groups, then of the value
  groups.
- Multi-query groups: 32 query heads share 2 key-value heads (Ainslie et al. 2023, arXiv:2305.13245).
- RoPE (Su et al. 2021, arXiv:2104.09864) turns the first half of each head only, in interleaved pairs
  (2i, 2i + 1).
- SwiGLU (Shazeer 2020, arXiv:2002.05202) with gate and up fused in `dense_h_to_4h`, gate rows first.
- Input embedding and `output_layer` are not tied.

One deliberate difference from the published code: RoPE angles are computed in float32 whatever the type of
the weights. The published code computes them in that type, which in float16 puts cos and sin off by up to
0.21 at position 511 and up to 1.03 at position 2047 (bfloat16: 2.0); its later versions, and transformers'
Glm, use float32 as is done here.

Notation of shapes: b batch, s positions of this call, k positions seen so far, H query heads, G key-value
groups, d kv_channels, e hidden_size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, StaticLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmspectra.chatglm2.chat import ChatMixin
from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.decode_graph import GraphedGeneration
from glmspectra.chatglm2.kernels import decode_kernels
from glmspectra.chatglm2.layers import RMSNorm, RotaryEmbedding, is_power_of_two, split_rotated, swiglu
from glmspectra.chatglm2.versions import CACHE


def eager_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling + mask) v with the softmax in float32.

    `query` [b, H, s, d], `key` and `value` [b, G, k, d], mask [b, 1, s, k], either added or, of type bool, true where
    a key is seen; returns the mixture [b, s, H, d] and the weights [b, H, s, k]. Query heads of a group lie together:
    head h reads group h // (H / G).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = (query * scaling) @ key.transpose(2, 3)  # scaled first: float16 ends at 65504
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = F.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Multi-query attention with rotary positions: one layer, from hidden states to hidden states [b, s, e]."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.groups = config.multi_query_group_num
        self.head_dim = config.kv_channels
        # Read by transformers' attention functions:
        self.num_key_value_groups = self.heads // self.groups
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        bias = config.add_bias_linear
        rows = (self.heads + 2 * self.groups) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=bias or config.add_qkv_bias)
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`hidden_states` [b, s, e], `rotary` of `RotaryEmbedding`; returns [b, s, e] and weights, if there are any."""
        batch, length = hidden_states.shape[:2]
        mixed = self.query_key_value(hidden_states).view(batch, length, -1, self.head_dim)  # [b, s, H + 2G, d]
        context = self._attend_by_kernels(mixed, rotary, attention_mask, cache)
        if context is not None:
            return self.dense(context.flatten(2)), None
        query, key, value = split_rotated(mixed, *rotary, self.heads, self.groups)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # [b, G, k, d]

        attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.dense(context.flatten(2)), weights

    def _attend_by_kernels(
        self,
        mixed: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        seen: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor | None:
        """One token's attention [b, 1, H, d] over a static cache by the kernels for it; None where there are none."""
        layer = cache.layers[self.layer_idx] if cache is not None and mixed.shape[1] == 1 else None
        if type(layer) is not StaticLayer or layer.keys is None or self.config._attn_implementation != "sdpa":
            return None
        if seen is None or seen.dtype != torch.bool or seen.shape[1:] != (1, 1, layer.keys.shape[2]):
            return None
        kernels = decode_kernels(mixed) if is_power_of_two(self.head_dim) and self.head_dim >= 16 else None
        if kernels is None or layer.keys.dtype != mixed.dtype:
            return None
        attended: torch.Tensor = kernels.attend_to_cache(
            mixed, *rotary, layer.keys, layer.values, layer.cumulative_length, seen, self.scaling
        )
        return attended


class MLP(nn.Module):
    """Feed-forward layer: SwiGLU between two linear layers."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        bias = config.add_bias_linear
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=bias)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = vars(self.dense_h_to_4h).get("gated")  # product and SwiGLU by one kernel (`one_token`)
        inner = swiglu(self.dense_h_to_4h(hidden_states)) if gated is None else gated(hidden_states)
        outer: torch.Tensor = self.dense_4h_to_h(inner)
        return outer


class GLMBlock(GradientCheckpointingLayer):
    """One layer of the stack: attention and MLP, each with RMSNorm before it and a residual connection around it."""

    following: RMSNorm | None = None  # the norm of what this block gives, where it is made here with the sum

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states), attention_mask, rotary, cache=cache, **kwargs
        )
        attended = F.dropout(attended, self.hidden_dropout, self.training)
        hidden_states, normed = self.post_attention_layernorm.after_adding(hidden_states, attended)
        fed = F.dropout(self.mlp(normed), self.hidden_dropout, self.training)
        if self.following is None:
            return hidden_states + fed
        self.following.made = self.following.after_adding(hidden_states, fed)
        return self.following.made[0]


class Embedding(nn.Module):
    """Holds the word embeddings under the name that the checkpoint gives them."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class GLMTransformer(nn.Module):
    """Holds the layers and the final norm under the names that the checkpoint gives them."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What the models share: configuration, initial weights, and what transformers asks of a model class."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": SelfAttention}  # noqa: RUF012
    # Some mirrors leave the buffer out; it is computed, so nothing is missing.
    _keys_to_ignore_on_load_missing = [r"rotary_pos_emb\.inv_freq"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):
            # Built on the meta device and absent from the checkpoint, a buffer would hold whatever memory
            # held.
            init.copy_(module.inv_freq, module.frequencies())


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, layers and final norm.

    It holds `output_layer` too, since the checkpoint keeps it here, and leaves its use to
    `ChatGLMForConditionalGeneration`.
    """

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.embedding = Embedding(config)
        self.rotary_pos_emb = RotaryEmbedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embedding.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the stack.

        Args:
            input_ids: [b, s]; or `inputs_embeds` [b, s, e] in their place.
            attention_mask: [b, k], 1 for a token and 0 for padding; or a mask [b, 1, s, k] that is taken as
                it stands.
            position_ids: [b, s]; absent, they count on from what the cache holds. Given without a mask and a
                cache, a position that does not follow the one before it starts a new sequence, and sequences
                packed in one row do not see each other.
            cache: keys and values seen so far.
            inputs_embeds: [b, s, e], in place of `input_ids`.
            use_cache: whether to keep keys and values; None: as the configuration says.
            past_key_values: the name of `cache` before transformers 5.24, taken too.
            **kwargs: passed on to the layers.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or the cache under both names.
            TypeError: the cache is no `Cache`: the published code's tuples of keys and values are not taken.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        if cache is not None and past_key_values is not None:
            raise ValueError("give the cache once, as cache or as past_key_values.")
        if inputs_embeds is None:
            inputs_embeds = self.embedding.word_embeddings(input_ids)
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, Cache):
            raise TypeError(f"the cache must be a Cache of transformers, as DynamicCache, not {type(cache).__name__}.")

        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            # Positions counted here are never packed, so that nothing needs to look at them.
            position_ids=position_ids,
            **{CACHE: cache},
        )
        if use_cache and cache is None:  # after the mask, which looks for packed sequences only without a cache
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            rotary_positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
        else:
            rotary_positions = position_ids
            kwargs["position_ids"] = position_ids  # flash attention finds packed sequences by them
        rotary = self.rotary_pos_emb(rotary_positions, inputs_embeds.dtype)

        hidden_states = inputs_embeds
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states, attention_mask, rotary, cache=cache, **kwargs)
        hidden_states = self.encoder.final_layernorm(hidden_states)
        carried: dict[str, Any] = {CACHE: cache}
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **carried)


class ChatGLMForConditionalGeneration(ChatMixin, GraphedGeneration, ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM2 with its output layer: loss, generation, chat. A causal decoder, under its published name."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        if config.quantization_bit:  # before the weights come: the checkpoint holds integers and scales
            from glmspectra.chatglm2.quantization import prepare_quantized_modules

            prepare_quantized_modules(self, config.quantization_bit)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def set_output_embeddings(self, value: Any) -> None:
        self.transformer.output_layer = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [b, s, padded_vocab_size], and the mean cross entropy in nats when `labels` are given.

        Args:
            input_ids: as in `ChatGLMModel.forward`.
            attention_mask: as in `ChatGLMModel.forward`.
            position_ids: as in `ChatGLMModel.forward`.
            cache: as in `ChatGLMModel.forward`.
            inputs_embeds: as in `ChatGLMModel.forward`.
            labels: [b, s], not shifted: label t is compared with the logits of position t - 1 here; -100 is
                left out. They may lie on another device. `num_items_in_batch` among `kwargs` divides the
                summed loss instead.
            use_cache: as in `ChatGLMModel.forward`.
            logits_to_keep: logits of the last so many positions only (0: of all), or of the positions in a
                tensor.
            past_key_values: as in `ChatGLMModel.forward`.
            **kwargs: passed on to `ChatGLMModel.forward`.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            past_key_values=past_key_values,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.transformer.output_layer(outputs.last_hidden_state[:, kept])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )
