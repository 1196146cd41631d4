"""The configuration of ChatGLM2 under the published key names, and which other `chatglm` it also is.

Several families of checkpoints say `model_type: chatglm`. What their configurations tell:

| checkpoint             | seen by                                     | here                                    |
|------------------------|---------------------------------------------|-----------------------------------------|
| ChatGLM-6B             | `position_encoding_2d`, `inner_hidden_size` | refused: another architecture           |
| ChatGLM2-6B, ChatGLM3  | no `rope_ratio`                             | run as it is                            |
| ChatGLM2-6B-32k        | `rope_ratio` up to 16                       | run: positions divided by the ratio     |
| ChatGLM3-32k, GLM-4-9b | `rope_ratio` 50, 500, 10000                 | run: base 10000 multiplied by the ratio |
| GLM-4V                 | `vision_config`                             | refused: has an image encoder           |
"""

import math
from typing import Any

from transformers import PreTrainedConfig

from glmspectra.errors import ConfigError

# What a ChatGLM-6B configuration has and a ChatGLM2 one never has.
_FIRST_GENERATION_KEYS = ("position_encoding_2d", "inner_hidden_size", "max_sequence_length")

# Architecture switches of the published configuration that no published checkpoint of the family turns.
_FIXED: dict[str, tuple[Any, str]] = {
    "multi_query_attention": (True, "rows of query_key_value are ordered by key-value groups"),
    "rmsnorm": (True, "the norms are RMSNorm"),
    "post_layer_norm": (True, "the stack ends in final_layernorm"),
    "apply_residual_connection_post_layernorm": (False, "the residual is taken before the norm"),
    "fp32_residual_connection": (False, "the residual stream has the type of the weights"),
    "tie_word_embeddings": (False, "input embedding and output layer are two matrices"),
}

MOST_LAYERS = 10_000  # a damaged number must not keep the machine busy with making layers

_NUMBERS = ("layernorm_epsilon", "rope_ratio", "hidden_dropout", "attention_dropout", "initializer_range")
_SIZES = (
    "num_layers",
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "kv_channels",
    "num_attention_heads",
    "multi_query_group_num",
    "seq_length",
)


class ChatGLMConfig(PreTrainedConfig):
    """Sizes and switches of a ChatGLM2 model; the defaults are those of THUDM/chatglm2-6b.

    Every field has the name it has in the published `config.json`; transformers' own names
    (`num_hidden_layers`, `vocab_size`, `head_dim`, ...) lead to the same values. `auto_map` is dropped, so that
    a saved folder asks for no remote code. `rope_ratio_scales` says what `rope_ratio` does: `"base"` multiplies
    the RoPE base 10000 by it, `"positions"` divides positions by it; left out, it is read from the ratio (table
    above). `quantization_bit` 4 or 8 says that the linear weights are stored in ChatGLM2's own integer format.

    Raises:
        ConfigError: a size is not a positive integer, sizes do not fit each other, or the configuration belongs
            to another architecture that also says `chatglm`.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  (transformers reads a class attribute)
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "head_dim": "kv_channels",
        "num_key_value_heads": "multi_query_group_num",
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    seq_length: int = 32768
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layernorm_epsilon: float = 1e-5
    rmsnorm: bool = True
    post_layer_norm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    add_bias_linear: bool = False
    add_qkv_bias: bool = True
    # Switches of the published code that change no exact result, kept so that a saved configuration has them:
    # scores are scaled once and their softmax is always taken in float32 here; no forward pass read the others.
    apply_query_key_layer_scaling: bool = True
    attention_softmax_in_fp32: bool = True
    bias_dropout_fusion: bool = True
    original_rope: bool = True
    fp32_residual_connection: bool = False
    rope_ratio: float = 1.0
    rope_ratio_scales: str | None = None
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_other_architectures(kwargs)
        if self.rope_ratio_scales is None and self.rope_ratio != 1:
            self.rope_ratio_scales = _scaled_by(self.rope_ratio, kwargs)
        kwargs.pop("auto_map", None)
        # GLM-4 writes transformers' names beside the published ones: one fact, which must not be said in two ways.
        for alias, name in self.attribute_map.items():
            value = kwargs.pop(alias, getattr(self, name))
            if value != getattr(self, name) and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r} and {alias} is {value!r} in this ChatGLM configuration, "
                    "and both name the same size: take one of them out."
                )
            setattr(self, name, value)
        super().__post_init__(**kwargs)
        self._check()

    def _refuse_other_architectures(self, other_keys: dict[str, Any]) -> None:
        found = [key for key in _FIRST_GENERATION_KEYS if key in other_keys]
        if found:
            raise ConfigError(
                f"this is a configuration of ChatGLM-6B ({', '.join(found)}), another architecture than ChatGLM2"
                " although both say model_type chatglm: give a ChatGLM2, ChatGLM3 or GLM-4-9b folder."
            )
        if "vision_config" in other_keys:
            raise ConfigError(
                "this configuration has a vision_config (GLM-4V), and only the text models of the family can be "
                "loaded: give a ChatGLM2, ChatGLM3 or GLM-4-9b folder."
            )
        if self.pre_seq_len:
            raise ConfigError(
                f"pre_seq_len is {self.pre_seq_len}: prefix tuning (P-Tuning v2) is not built here, "
                "take the key out to load the base model without its prefix."
            )

    def _check(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} in the ChatGLM configuration must be a whole number above 0, not {value!r}.")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ConfigError(f"{name} in the ChatGLM configuration must be a finite number, not {value!r}.")
        if self.num_layers > MOST_LAYERS:
            raise ConfigError(f"num_layers in the ChatGLM configuration is above {MOST_LAYERS:,}: it is damaged.")
        for name, (needed, why) in _FIXED.items():
            if getattr(self, name) is not needed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r} in this configuration, but {why} in every ChatGLM2 "
                    f"checkpoint: only {needed!r} can be loaded."
                )
        if self.num_attention_heads % self.multi_query_group_num:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"multi_query_group_num ({self.multi_query_group_num})."
            )
        if self.kv_channels % 4:
            raise ConfigError(
                f"kv_channels ({self.kv_channels}) must be a multiple of 4: RoPE turns pairs in the first half "
                "of a head."
            )
        if not self.rope_ratio > 0:
            raise ConfigError(f"rope_ratio must be above 0, not {self.rope_ratio!r}.")
        if self.rope_ratio_scales not in (None, "base", "positions"):
            raise ConfigError(f"rope_ratio_scales must be 'base' or 'positions', not {self.rope_ratio_scales!r}.")
        if self.quantization_bit not in (0, 4, 8):
            raise ConfigError(f"quantization_bit must be 0, 4 or 8, not {self.quantization_bit!r}.")

    @property
    def rope_theta(self) -> float:
        """The base of the RoPE frequencies: 10000, times `rope_ratio` where the ratio scales the base."""
        return 10000.0 * (self.rope_ratio if self._scales == "base" else 1.0)

    @property
    def rope_position_divisor(self) -> float:
        """What positions are divided by: `rope_ratio` where it scales positions (interpolation), else 1."""
        return float(self.rope_ratio) if self._scales == "positions" else 1.0

    @property
    def _scales(self) -> str:
        # Read anew where it was not said: a ratio may be set after the configuration was read.
        return self.rope_ratio_scales or _scaled_by(self.rope_ratio, {})


def _scaled_by(rope_ratio: float, other_keys: dict[str, Any]) -> str:
    """Tell ChatGLM2-6B-32k, which divides positions by its ratio, from later models, which multiply the base.

    Interpolated positions (Chen et al. 2023, arXiv:2306.15595) bring 32768 down to the 8192 or 2048 that the model had
    learnt, by 4 or 16. The later models' ratios are 50, 500 and 10000, and their configurations have the key
    `classifier_dropout`.
    """
    return "positions" if 1 < rope_ratio <= 16 and "classifier_dropout" not in other_keys else "base"
