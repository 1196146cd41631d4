"""Small checkpoints in ChatGLM2's shape, written in every form."""

import json

import pytest
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, FFN, HEADS, GROUPS, SIZE, VOCABULARY = 3, 32, 48, 4, 2, 8, 64
CONFIG = {
    "model_type": "chatglm",
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": FFN,
    "num_attention_heads": HEADS,
    "kv_channels": SIZE,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "padded_vocab_size": VOCABULARY,
}


def chatglm2_tensors(dtype=torch.float16, layers=LAYERS):
    """Random weights under ChatGLM2's own names, in an order that is not the depth's."""
    torch.manual_seed(0)
    qkv = (HEADS + 2 * GROUPS) * SIZE
    tensors = {
        "transformer.output_layer.weight": torch.randn(VOCABULARY, HIDDEN),
        "transformer.encoder.final_layernorm.weight": torch.ones(HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": torch.rand(SIZE // 4),
    }
    for layer in reversed(range(layers)):
        prefix = f"transformer.encoder.layers.{layer}."
        tensors |= {
            prefix + "mlp.dense_4h_to_h.weight": torch.randn(HIDDEN, FFN),
            prefix + "mlp.dense_h_to_4h.weight": torch.randn(2 * FFN, HIDDEN),
            prefix + "post_attention_layernorm.weight": torch.ones(HIDDEN),
            prefix + "self_attention.dense.weight": torch.randn(HIDDEN, HIDDEN),
            prefix + "self_attention.query_key_value.bias": torch.randn(qkv),
            prefix + "self_attention.query_key_value.weight": torch.randn(qkv, HIDDEN),
            prefix + "input_layernorm.weight": torch.ones(HIDDEN),
        }
    tensors["transformer.embedding.word_embeddings.weight"] = torch.randn(VOCABULARY, HIDDEN)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write(folder, tensors, form, shards=1, config=CONFIG):
    """Save tensors as a checkpoint of one file, or of several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = {"safetensors": ("model", ".safetensors"), "bin": ("pytorch_model", ".bin")}[form]
    save = save_file if form == "safetensors" else torch.save
    if shards == 1:
        save(tensors, folder / f"{stem}{suffix}")
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}{suffix}"
        mine = names[shard::shards]
        save({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def run_command(*arguments):
    """Run the command line in this process; its exit status."""
    from glmspectra.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code
