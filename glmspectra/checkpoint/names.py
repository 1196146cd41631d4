"""What a tensor is, by its name. All that is known of naming is in this one file.

A name is cut into what stands before the layers, the layer's number, and what follows it:

    transformer.encoder.layers.3.self_attention.query_key_value.weight
    [prefix                  ] [3] [module                    ] [parameter]

To teach it another architecture, add a row to `ROWS` (inside a layer) or `OUTSIDE`; a name without a row is
still measured, under its own name.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# The word before the layer's number; GPT-2 says `h`, T5 `block`, GGUF `blk`.
LAYER = re.compile(r"^(?P<prefix>(?:.*?\.)??(?:layers|layer|h|blocks|block|blk))\.(?P<layer>[0-9]{1,6})\.(?P<rest>.+)$")


@dataclass(frozen=True)
class Row:
    """One type of tensor inside a layer.

    Attributes:
        pattern: a regular expression for the whole module path after the layer's number.
        matrix: the short name; None keeps the last word of the path.
        fused: `qkv` or `gate_up` when its rows are those matrices one after the other; the same letters, one
            matrix alone (`q`, `k`, `v`), when only its heads can be distinguished.
        prefix: a regular expression that the end of the prefix must match, where the module path alone is
            ambiguous.
    """

    pattern: str
    matrix: str | None = None
    fused: str | None = None
    prefix: str | None = None


# In the order of the forward pass, which is the order of depth inside a layer; the first row that matches
# counts.
ROWS: tuple[Row, ...] = (
    # norms before attention
    Row(r"input_layernorm|ln_1|attn_norm|attention_norm|norm1|layernorm_before|pre_attention_layernorm"),
    # ChatGLM2, ChatGLM3, GLM-4-9b. BLOOM, Falcon and GPT-NeoX use the same word with the heads interleaved,
    # ChatGLM-6B too: there q, k and v are no row ranges.
    Row(r"self_attention\.query_key_value", fused="qkv", prefix=r"(^|\.)transformer\.encoder\.layers"),
    Row(r"(self_attention|attention|self_attn)\.query_key_value"),
    # Llama, Qwen, Mistral, Gemma, OPT, BART, GLM (transformers' names)
    Row(r"self_attn\.q_proj", fused="q"),
    Row(r"self_attn\.k_proj", fused="k"),
    Row(r"self_attn\.v_proj", fused="v"),
    Row(r"self_attn\.qkv_proj", fused="qkv"),  # Phi-3
    # Mistral's and Meta's own names
    Row(r"attention\.wq", fused="q"),
    Row(r"attention\.wk", fused="k"),
    Row(r"attention\.wv", fused="v"),
    # BERT, RoBERTa, ViT
    Row(r"attention\.(self|attention)\.query", fused="q"),
    Row(r"attention\.(self|attention)\.key", fused="k"),
    Row(r"attention\.(self|attention)\.value", fused="v"),
    # DistilBERT, XLM
    Row(r"attention\.q_lin", fused="q"),
    Row(r"attention\.k_lin", fused="k"),
    Row(r"attention\.v_lin", fused="v"),
    # GPT-2 (stored as in_features x out_features, so that q, k, v are columns and are left together)
    Row(r"attn\.c_attn"),
    # T5
    Row(r"layer\.\d+\.SelfAttention\.[qkv]"),
    # GGUF
    Row(r"attn_q", fused="q"),
    Row(r"attn_k", fused="k"),
    Row(r"attn_v", fused="v"),
    Row(r"attn_qkv"),
    # attention output
    Row(r"(self_attention|attention|self_attn)\.dense"),
    Row(r"self_attn\.(o_proj|out_proj)"),
    Row(r"attention\.wo"),
    Row(r"attention\.output\.dense", matrix="attention.output.dense"),
    Row(r"attention\.out_lin"),
    Row(r"attn\.c_proj", matrix="attn.c_proj"),
    Row(r"layer\.\d+\.SelfAttention\.o"),
    Row(r"attn_output"),
    # norms before the feed-forward part
    Row(r"attention\.output\.LayerNorm", matrix="attention.output.LayerNorm"),
    Row(r"post_attention_layernorm|post_self_attn_layernorm|self_attn_layer_norm|sa_layer_norm"),
    Row(r"ln_2|ffn_norm|norm2|layernorm_after|pre_feedforward_layernorm"),
    # feed-forward, in
    Row(r"mlp\.dense_h_to_4h", fused="gate_up", prefix=r"(^|\.)transformer\.encoder\.layers"),
    Row(r"mlp\.dense_h_to_4h"),
    Row(r"mlp\.gate_up_proj", fused="gate_up"),  # GLM-4 (transformers' names), Phi-3
    Row(r"mlp\.gate_proj"),
    Row(r"mlp\.up_proj"),
    Row(r"feed_forward\.w1"),
    Row(r"feed_forward\.w3"),
    Row(r"intermediate\.dense", matrix="intermediate.dense"),
    Row(r"ffn\.lin1"),
    Row(r"fc1"),
    Row(r"mlp\.(c_fc|fc1|fc_in)"),
    Row(r"layer\.\d+\.DenseReluDense\.(wi|wi_0|wi_1)"),
    Row(r"ffn_gate"),
    Row(r"ffn_up"),
    # feed-forward, out
    Row(r"mlp\.dense_4h_to_h"),
    Row(r"mlp\.down_proj"),
    Row(r"feed_forward\.w2"),
    Row(r"output\.dense", matrix="output.dense"),
    Row(r"ffn\.lin2"),
    Row(r"fc2"),
    Row(r"mlp\.(fc2|fc_out)"),
    Row(r"mlp\.c_proj", matrix="mlp.c_proj"),
    Row(r"layer\.\d+\.DenseReluDense\.wo"),
    Row(r"ffn_down"),
    Row(r"output\.LayerNorm", matrix="output.LayerNorm"),
    Row(r"post_mlp_layernorm|post_feedforward_layernorm|final_layer_norm|output_layer_norm"),
)

# First parts of the names of what trainers save beside a model, and last parts of an optimizer's state of a weight.
OF_OPTIMIZERS = re.compile(
    r"^(\w+\.)?(optim|optimizers?|optimizer_states?|optimizer_state_dict|(lr_)?schedulers?|(grad_)?scaler|rng_states?)\."
    r"|^(exp_avg|exp_avg_sq|momentum_buffer)\."
    r"|\.(exp_avg|exp_avg_sq|max_exp_avg_sq|exp_inf|square_avg|grad_avg|acc_delta|momentum_buffer|grad)$"
)
AVERAGES = re.compile(
    r"^(ema|model_ema|ema_model|module_ema|ema_module|shadow|shadow_params|swa_model|averaged_model)\."
)

# Last parts of the names of tables and masks that a model computes and some files hold too.
TABLES = re.compile(
    r"(^|\.)(inv_freq|freqs_cis|(cos|sin)(_cached)?|cos_sin_cached?|((causal|attn|attention|alibi)_)?mask|alibi|slopes)$"
)

BEFORE_LAYERS, IN_LAYERS, AFTER_LAYERS, OUTPUT, UNKNOWN = range(5)

# Outside the layers: (pattern for the end of the module path, zone).
OUTSIDE: tuple[tuple[str, int], ...] = (
    (r"word_embeddings|embed_tokens|tok_embeddings|token_embd|wte|shared", BEFORE_LAYERS),
    (r"position_embeddings|embed_positions|position_embd|wpe|token_type_embeddings", BEFORE_LAYERS),
    (r"relative_attention_bias|rotary_pos_emb\.inv_freq|rope_freqs", BEFORE_LAYERS),
    (
        r"embeddings\.LayerNorm|embeddings\.layer_norm|word_embeddings_layernorm|token_embd_norm",
        BEFORE_LAYERS,
    ),
    (r"final_layernorm|final_layer_norm|ln_f|(?:^|model\.)norm|output_norm", AFTER_LAYERS),
    (r"output_layer|lm_head|embed_out|^output", OUTPUT),
)

_rows = [(re.compile(row.pattern), re.compile(f"{row.prefix}$") if row.prefix else None, row) for row in ROWS]
_outside = [(re.compile(rf"(?:^|.*\.)(?:{pattern})|(?:{pattern})"), zone) for pattern, zone in OUTSIDE]


@dataclass(frozen=True)
class ParsedName:
    """What the name of a tensor says.

    `names` are its short name first and longer ones after it, for when the short one is taken twice in a
    layer; `parameter` is `weight`, `bias` or another last word of the name.
    """

    zone: int
    layer: int | None
    names: tuple[str, ...]
    parameter: str
    order: tuple[Any, ...]
    fused: str | None
    recognized: bool


def of_trainers(names: Collection[str]) -> dict[str, str]:
    """Tensors that a trainer saved beside the model, and why they are none of its weights.

    Averages of weights are left out where the weights stand beside them; alone they are the model.
    """
    found = {name: "it is an optimizer's state and no weight" for name in names if OF_OPTIMIZERS.search(name)}
    averages = [name for name in names if AVERAGES.match(name) and name not in found]
    if len(averages) + len(found) < len(names):
        found |= dict.fromkeys(averages, "it is an average of a weight that stands beside it")
    return found


def parse_name(name: str) -> ParsedName:
    """Tell zone, layer, short name and order of a tensor from its name."""
    module, dot, parameter = name.rpartition(".")
    if not dot or parameter not in ("weight", "bias"):
        module, parameter = name, ""  # e.g. rotary_pos_emb.inv_freq: the whole name is its path
    suffix = ".bias" if parameter == "bias" else ""
    found = LAYER.match(module)
    if found:
        prefix, layer, rest = found["prefix"], int(found["layer"]), found["rest"]
        index, row = _row_of(prefix, rest)
        short = (row.matrix or rest.rpartition(".")[2]) if row else rest
        tower = ("decoder" in prefix, prefix)  # an encoder comes before its decoder
        return ParsedName(
            zone=IN_LAYERS,
            layer=layer,
            names=(short + suffix, rest + suffix, f"{prefix}.{rest}{suffix}"),
            parameter=parameter,
            order=(IN_LAYERS, *tower, layer, index, bool(suffix), natural_order(rest)),
            fused=row.fused if row and parameter == "weight" else None,
            recognized=row is not None,
        )
    for index, (pattern, zone) in enumerate(_outside):
        if pattern.fullmatch(module):
            short = module.rpartition(".")[2]
            return ParsedName(
                zone=zone,
                layer=None,
                names=(short + suffix, module + suffix),
                parameter=parameter,
                order=(zone, False, "", 0, index, bool(suffix), natural_order(module)),
                fused=None,
                recognized=True,
            )
    own = module if parameter == "weight" else name
    order = (UNKNOWN, False, "", 0, 0, bool(suffix), natural_order(name))
    return ParsedName(UNKNOWN, None, (own,), parameter, order, None, False)


def _row_of(prefix: str, module: str) -> tuple[int, Row | None]:
    for index, (pattern, end, row) in enumerate(_rows):
        if pattern.fullmatch(module) and (end is None or end.search(prefix)):
            return index, row
    return len(_rows), None


def natural_order(text: str) -> tuple[Any, ...]:
    """A sort key by which `experts.10` follows `experts.9`."""
    # Numbers are compared as text of equal length, since a name may hold thousands of digits.
    words = re.split(r"([0-9]+)", text)
    return tuple((0, len(word), word) if index % 2 else (1, 0, word) for index, word in enumerate(words))
