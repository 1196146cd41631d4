"""Names of many architectures are placed by one table; selections by layer, matrix and glob."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.names import AFTER_LAYERS, BEFORE_LAYERS, IN_LAYERS, OUTPUT, UNKNOWN, parse_name
from glmspectra.errors import CheckpointError, RequestError
from tests.checkpoint.made_checkpoints import CONFIG, chatglm2_tensors, write

PLACES = [
    # ChatGLM2
    ("transformer.encoder.layers.27.self_attention.query_key_value.weight", IN_LAYERS, 27, "query_key_value", "qkv"),
    ("transformer.encoder.layers.0.mlp.dense_h_to_4h.weight", IN_LAYERS, 0, "dense_h_to_4h", "gate_up"),
    ("transformer.encoder.layers.0.mlp.dense_4h_to_h.weight", IN_LAYERS, 0, "dense_4h_to_h", None),
    ("transformer.encoder.layers.0.self_attention.query_key_value.bias", IN_LAYERS, 0, "query_key_value.bias", None),
    ("transformer.embedding.word_embeddings.weight", BEFORE_LAYERS, None, "word_embeddings", None),
    ("transformer.encoder.final_layernorm.weight", AFTER_LAYERS, None, "final_layernorm", None),
    ("transformer.output_layer.weight", OUTPUT, None, "output_layer", None),
    # BLOOM, Falcon, GPT-NeoX: fused with interleaved heads, so no row ranges
    ("transformer.h.3.self_attention.query_key_value.weight", IN_LAYERS, 3, "query_key_value", None),
    ("gpt_neox.layers.3.attention.query_key_value.weight", IN_LAYERS, 3, "query_key_value", None),
    ("transformer.h.3.mlp.dense_h_to_4h.weight", IN_LAYERS, 3, "dense_h_to_4h", None),
    ("gpt_neox.layers.3.mlp.dense_h_to_4h.weight", IN_LAYERS, 3, "dense_h_to_4h", None),
    # ChatGLM-6B
    ("transformer.layers.5.attention.query_key_value.weight", IN_LAYERS, 5, "query_key_value", None),
    # Llama, Qwen, Mistral, GLM-4 in transformers' form, Phi-3
    ("model.layers.31.self_attn.q_proj.weight", IN_LAYERS, 31, "q_proj", "q"),
    ("model.layers.31.self_attn.k_proj.bias", IN_LAYERS, 31, "k_proj.bias", None),
    ("model.layers.0.self_attn.o_proj.weight", IN_LAYERS, 0, "o_proj", None),
    ("model.layers.0.mlp.down_proj.weight", IN_LAYERS, 0, "down_proj", None),
    ("model.layers.0.mlp.gate_up_proj.weight", IN_LAYERS, 0, "gate_up_proj", "gate_up"),
    ("model.layers.0.self_attn.qkv_proj.weight", IN_LAYERS, 0, "qkv_proj", "qkv"),
    ("model.layers.0.self_attn.q_norm.weight", IN_LAYERS, 0, "self_attn.q_norm", None),
    ("model.embed_tokens.weight", BEFORE_LAYERS, None, "embed_tokens", None),
    ("model.norm.weight", AFTER_LAYERS, None, "norm", None),
    ("lm_head.weight", OUTPUT, None, "lm_head", None),
    ("layers.2.attention.wq.weight", IN_LAYERS, 2, "wq", "q"),
    ("layers.2.feed_forward.w1.weight", IN_LAYERS, 2, "w1", None),
    ("output.weight", OUTPUT, None, "output", None),
    # experts
    ("model.layers.4.mlp.experts.17.gate_proj.weight", IN_LAYERS, 4, "mlp.experts.17.gate_proj", None),
    # BERT, RoBERTa, DistilBERT, ViT
    ("bert.encoder.layer.11.attention.self.query.weight", IN_LAYERS, 11, "query", "q"),
    ("encoder.layer.11.attention.output.dense.weight", IN_LAYERS, 11, "attention.output.dense", None),
    ("encoder.layer.11.output.dense.weight", IN_LAYERS, 11, "output.dense", None),
    ("distilbert.transformer.layer.1.attention.q_lin.weight", IN_LAYERS, 1, "q_lin", "q"),
    ("vit.encoder.layer.0.attention.attention.key.weight", IN_LAYERS, 0, "key", "k"),
    ("roberta.embeddings.position_embeddings.weight", BEFORE_LAYERS, None, "position_embeddings", None),
    # GPT-2
    ("transformer.h.7.attn.c_attn.weight", IN_LAYERS, 7, "c_attn", None),
    ("h.7.mlp.c_fc.weight", IN_LAYERS, 7, "c_fc", None),
    ("transformer.wte.weight", BEFORE_LAYERS, None, "wte", None),
    ("transformer.ln_f.bias", AFTER_LAYERS, None, "ln_f.bias", None),
    # OPT, T5
    ("model.decoder.layers.2.fc1.weight", IN_LAYERS, 2, "fc1", None),
    ("encoder.block.3.layer.0.SelfAttention.q.weight", IN_LAYERS, 3, "q", None),
    # GGUF
    ("blk.9.attn_q.weight", IN_LAYERS, 9, "attn_q", "q"),
    ("blk.9.ffn_down.weight", IN_LAYERS, 9, "ffn_down", None),
    ("token_embd.weight", BEFORE_LAYERS, None, "token_embd", None),
    ("output_norm.weight", AFTER_LAYERS, None, "output_norm", None),
    # no pattern
    ("controller.wheel.weight", UNKNOWN, None, "controller.wheel", None),
    ("pooler.dense.weight", UNKNOWN, None, "pooler.dense", None),
    ("model.layers.3.mixer.in_proj.weight", IN_LAYERS, 3, "mixer.in_proj", None),
]


@pytest.mark.parametrize(("name", "zone", "layer", "matrix", "fused"), PLACES, ids=[p[0] for p in PLACES])
def test_what_a_name_says(name, zone, layer, matrix, fused):
    parsed = parse_name(name)
    assert (parsed.zone, parsed.layer, parsed.names[0], parsed.fused) == (zone, layer, matrix, fused)


def opened(folder, names, shape=(4, 4), config=None):
    folder.mkdir(exist_ok=True)
    save_file({name: torch.zeros(shape) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return open_checkpoint(folder)


def test_names_taken_twice_in_a_layer_become_longer_everywhere(tmp_path):
    names = [
        f"{tower}.block.{layer}.layer.0.SelfAttention.{word}.weight"
        for layer in (0, 1)
        for tower in ("encoder", "decoder")
        for word in "qo"
    ]
    names += [f"encoder.block.{layer}.layer.1.DenseReluDense.wi.weight" for layer in (0, 1)]
    with opened(tmp_path, names) as checkpoint:
        keys = [(record.layer, record.matrix) for record in checkpoint.tensors.values()]
        order = list(checkpoint.tensors)
    assert len(set(keys)) == len(keys)
    assert (0, "encoder.block.layer.0.SelfAttention.q") in keys
    assert (1, "wi") in keys  # not ambiguous: stays short
    assert order.index("encoder.block.1.layer.0.SelfAttention.o.weight") < order.index(
        "decoder.block.0.layer.0.SelfAttention.q.weight"
    )


def test_experts_sort_by_number_and_are_found_by_their_last_word(tmp_path):
    names = [f"model.layers.0.mlp.experts.{i}.{word}_proj.weight" for i in range(12) for word in ("gate", "down")]
    with opened(tmp_path, names) as checkpoint:
        gates = [record.name for record in select(checkpoint, matrices="gate_proj")]
    assert gates == [f"model.layers.0.mlp.experts.{i}.gate_proj.weight" for i in range(12)]


def test_heads_of_unfused_matrices_follow_grouped_attention(tmp_path):
    prefix = "model.layers.0.self_attn."
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    folder = tmp_path / "m"
    folder.mkdir()
    save_file(
        {prefix + "q_proj.weight": torch.zeros(32, 32), prefix + "k_proj.weight": torch.zeros(16, 32)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"text_config": config}))
    with open_checkpoint(folder) as checkpoint:
        query = checkpoint.tensors[prefix + "q_proj.weight"].parts("heads")
        key = checkpoint.tensors[prefix + "k_proj.weight"].parts("heads")
    assert [part.name for part in query] == ["whole", "q.head_0", "q.head_1", "q.head_2", "q.head_3"]
    assert [(part.name, part.row_start, part.row_stop) for part in key[1:]] == [("k.head_0", 0, 8), ("k.head_1", 8, 16)]


@pytest.fixture
def checkpoint(tmp_path):
    with open_checkpoint(write(tmp_path, chatglm2_tensors(layers=9), "safetensors", config=CONFIG)) as opened:
        yield opened


def layers_of(records):
    return sorted({record.layer for record in records})


MATRICES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def test_the_default_is_every_matrix_of_the_layers_in_depth_order(checkpoint):
    records = select(checkpoint)
    assert [(record.layer, record.matrix) for record in records] == [(i, m) for i in range(9) for m in MATRICES]
    assert all(record.is_layer_matrix and record.is_matrix for record in records)


def test_all_matrices_adds_embedding_and_output(checkpoint):
    records = select(checkpoint, matrices="all")
    assert (records[0].matrix, records[-1].matrix) == ("word_embeddings", "output_layer")
    assert len(records) == 9 * 4 + 2


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", list(range(9))),
        ("0-3,7,-1", [0, 1, 2, 3, 7, 8]),
        ("-3--1", [6, 7, 8]),
        ("2, 2 ,4", [2, 4]),
        ("7--1", [7, 8]),
        ("0", [0]),
    ],
)
def test_layers(checkpoint, layers, expected):
    assert layers_of(select(checkpoint, layers)) == expected


@pytest.mark.parametrize("layers", ["9", "3-12", "-10", "5-2", "x", "1,,2", "", "1-2-3"])
def test_layers_that_cannot_be(checkpoint, layers):
    with pytest.raises(RequestError, match="--layers"):
        select(checkpoint, layers)


def test_matrices_by_name_list_and_glob(checkpoint):
    assert {record.matrix for record in select(checkpoint, matrices="dense,query_key_value")} == {
        "dense",
        "query_key_value",
    }
    assert {record.matrix for record in select(checkpoint, matrices=["dense_*"])} == {"dense_h_to_4h", "dense_4h_to_h"}
    assert [record.matrix for record in select(checkpoint, matrices="output_layer")] == ["output_layer"]


def test_include_and_exclude(checkpoint):
    records = select(checkpoint, include=["*.layers.3.*", "*output_layer*"], exclude=["*mlp*"])
    assert [(record.layer, record.matrix) for record in records] == [
        (3, "query_key_value"),
        (3, "dense"),
        (None, "output_layer"),
    ]


@pytest.mark.parametrize(
    "selection",
    [
        {"matrices": "q_proj"},
        {"include": ["nothing*"]},
        {"exclude": ["*"]},
        {"layers": "2", "matrices": "output_layer"},
    ],
)
def test_a_selection_that_matches_nothing_lists_what_there_is(checkpoint, selection):
    with pytest.raises(RequestError) as caught:
        select(checkpoint, **selection)
    message = str(caught.value)
    assert "layers 0 to 8" in message
    assert all(matrix in message for matrix in [*MATRICES, "word_embeddings", "output_layer"])
    assert len(message) < 600


def test_what_no_row_knows_is_measured_under_its_own_name(tmp_path):
    with opened(tmp_path, ["controller.wheel.weight", "axle", "model.layers.0.odd.thing", "wte.weight"]) as checkpoint:
        assert [(r.layer, r.matrix) for r in select(checkpoint)] == [
            (0, "odd.thing"),
            (None, "axle"),
            (None, "controller.wheel"),
        ]


def test_integers_without_scales_are_no_matrices(tmp_path):
    """A table of indices is no matrix; packed words are the weight that they hold, and say what is missing of it."""
    save_file({"model.layers.0.routing": torch.zeros(4, 4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(RequestError, match="1 tensors are of int32"):
        select(checkpoint)
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}
    save_file(packed, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"up_proj\.qzeros is missing"):
        select(checkpoint)


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "\u0663"], ids=["superscript", "long", "arabic"])
def test_digits_that_are_no_layer_number(number):
    """Superscripts, digits of other scripts, numbers of thousands of digits: no layer, and no crash."""
    assert parse_name(f"layers.{number}.x.weight").layer is None
