"""What lies beside a weight in its module, or beside the model in its folder, and is not what it seems."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from glmspectra.checkpoint.reader import open_checkpoint
from glmspectra.checkpoint.selection import beside_sentence, left_out, left_out_facts, left_out_sentence, select
from glmspectra.errors import CheckpointError

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj.weight"
TINY = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
GOOD = {DOWN: torch.ones(4, 6)}


def opened(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


WORDS = torch.zeros(8, 2, dtype=torch.uint32)
PARTS = {
    "LoHa factors": ({f"{Q}.weight": torch.ones(8, 8)}, f"{Q}.hada_w1_a"),
    "a residual": ({f"{Q}.weight": torch.ones(8, 8)}, f"{Q}.weight_residual"),
    "the values of a sparse weight": ({}, f"{Q}.weight_sparse"),
    "branches of SVDQuant": ({f"{Q}.qweight": torch.zeros(8, 4, dtype=torch.int8)}, f"{Q}.proj_down"),
    "biases of MLX": ({f"{Q}.weight": WORDS, f"{Q}.scales": torch.ones(8, 1)}, f"{Q}.biases"),
    "zero points": ({}, f"{Q}.zp"),
    "a Hessian": ({f"{Q}.weight": torch.ones(8, 8)}, f"{Q}.hessian"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_weight_is_no_matrix(tmp_path, name):
    beside, part = PARTS[name]
    with opened(tmp_path, GOOD | beside | {part: torch.ones(8, 8)}) as checkpoint:
        sound = {record.name for record in select(checkpoint) if record.fault is None}
        results = left_out(checkpoint) | {record.name: record.fault for record in select(checkpoint) if record.fault}
    assert part not in sound
    assert part in results
    assert DOWN in sound


@pytest.mark.parametrize("scale", ["scales", "scale", "SCB", "weight_scale", "wscales"])
def test_floats_beside_the_scale_of_stored_numbers_are_not_taken_at_their_word(tmp_path, scale):
    stored = GOOD | {f"{Q}.weight": torch.ones(8, 8), f"{Q}.{scale}": torch.ones(8)}
    with opened(tmp_path, stored) as checkpoint, pytest.raises(CheckpointError, match="beside the scale"):
        checkpoint.read(f"{Q}.weight")


@pytest.mark.parametrize("scale", ["k_scale", "output_scale", "input_scale"])
def test_scales_of_a_cache_or_of_activations_say_nothing_of_the_weight(tmp_path, scale):
    with opened(tmp_path, GOOD | {f"{Q}.weight": torch.ones(8, 8), f"{Q}.{scale}": torch.ones(1)}) as checkpoint:
        assert torch.equal(checkpoint.read(f"{Q}.weight"), torch.ones(8, 8))


@pytest.mark.parametrize("name", ["attn.mask", "self_attn.rotary_emb.cos_cached", "attn.alibi", "attn.causal_mask"])
def test_a_table_that_the_model_computes_is_no_matrix(tmp_path, name):
    table = f"model.layers.0.{name}"
    with opened(tmp_path, GOOD | {table: torch.ones(8, 8), "model.mask_proj.weight": torch.ones(4, 4)}) as checkpoint:
        assert {record.name for record in select(checkpoint, matrices="all")} == {DOWN, "model.mask_proj.weight"}
        assert torch.equal(checkpoint.read(table), torch.ones(8, 8))


def test_a_module_that_peft_keeps_beside_its_trained_copy_is_not_measured(tmp_path):
    head = "base_model.model.lm_head"
    copy, kept = f"{head}.modules_to_save.default.weight", f"{head}.original_module.weight"
    with opened(tmp_path, GOOD | {copy: torch.ones(8, 8), kept: torch.ones(8, 8)}) as checkpoint:
        faults = {record.name: record.fault for record in select(checkpoint, matrices="all")}
        assert faults[copy] is None
        assert "beside a trained copy" in faults[kept]


def test_matrices_of_an_rnn_are_no_parts(tmp_path):
    names = [f"rnn.weight_{weight}_l0{end}" for weight in ("ih", "hh", "hr") for end in ("", "_reverse")]
    with opened(tmp_path, {name: torch.ones(8, 8) for name in names}) as checkpoint:
        assert {record.name for record in select(checkpoint) if record.fault is None} == set(names)


def test_packed_words_without_their_rule_are_not_measured(tmp_path):
    stored, said = GOOD | {f"{Q}.weight": WORDS}, "it holds uint32 numbers, and no scale"
    with opened(tmp_path, stored) as checkpoint, pytest.raises(CheckpointError, match=said):
        checkpoint.read(f"{Q}.weight")


def test_a_numbered_set_of_shards_is_the_model_and_what_lies_beside_it_is_told(tmp_path):
    for number, tensors in enumerate(({f"{Q}.weight": torch.ones(8, 8)}, GOOD), 1):
        save_file(tensors, tmp_path / f"model-{number:05d}-of-00002.safetensors")
    save_file({"layers.0.attention.wq.weight": torch.ones(8, 8)}, tmp_path / "consolidated.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {f"{Q}.weight", DOWN}
        assert left_out_facts(checkpoint) == {"files": ["consolidated.safetensors"], "file_count": 1}
        said = left_out_sentence(checkpoint)
        assert "consolidated.safetensors lies beside model-00001-of-00002.safetensors and is not read" in said
        assert beside_sentence(tmp_path) == said


def test_one_file_is_taken_before_an_index_as_transformers_takes_it(tmp_path):
    """`model.safetensors` left in a folder of shards: what `train` loads is what `svd` measures, and it is said."""
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    other = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    save_file(other, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    with open_checkpoint(tmp_path) as checkpoint:
        assert all(torch.equal(checkpoint.read(name), loaded[name]) for name in checkpoint.tensors)
        assert len(checkpoint.beside) == len(set(index.values())) > 1
    save_file({next(iter(index)): torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {next(iter(index)): "model.safetensors"}})
    )
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == [next(iter(index))]


OPTIMIZER = [
    "optimizer.state.0.exp_avg", f"module.optimizer.{Q}.weight", f"{Q}.weight.exp_avg_sq", f"exp_avg.{Q}.weight",
    f"optimizer_states.{Q}.weight.momentum_buffer", "lr_scheduler.table.weight",
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZER)
def test_what_an_optimizer_left_is_no_matrix_of_the_model(tmp_path, name):
    with opened(tmp_path, GOOD | {name: torch.ones(8, 8)}) as checkpoint:
        assert [record.name for record in select(checkpoint, matrices="all")] == [DOWN]
        assert left_out(checkpoint) == {name: "it is an optimizer's state and no weight"}


def test_a_file_of_an_optimizer_alone_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no weights; optimizer.state.0.exp_avg: it is an optimizer's state"
    ):
        opened(tmp_path, {"optimizer.state.0.exp_avg": torch.ones(8, 8)})


@pytest.mark.parametrize("prefix", ["ema.", "model_ema.", "shadow_params."])
def test_averages_of_weights_are_left_out_beside_the_weights_and_measured_alone(tmp_path, prefix):
    averages = {f"{prefix}{DOWN}": torch.ones(8, 8), f"{prefix}{Q}.weight": torch.ones(8, 8)}
    with opened(tmp_path, GOOD | averages) as checkpoint:
        assert [record.name for record in select(checkpoint, matrices="all")] == [DOWN]
        assert left_out(checkpoint).keys() == averages.keys()
        assert "2 tensors are left out" in left_out_sentence(checkpoint)
    with opened(tmp_path, averages) as checkpoint:
        assert {record.name for record in select(checkpoint, matrices="all")} == averages.keys()


@pytest.mark.parametrize("word", ["master", "noise", "fisher"])
def test_what_stands_under_the_name_of_a_weight_is_a_part_of_it(tmp_path, word):
    with opened(tmp_path, GOOD | {f"{DOWN}.{word}": torch.ones(8, 8)}) as checkpoint:
        faults = {record.name: record.fault for record in select(checkpoint, matrices="all")}
        assert faults[DOWN] is None
        assert f"a part of {DOWN}" in faults[f"{DOWN}.{word}"]


def test_two_sets_of_shards_are_not_mixed(tmp_path):
    for stem in ("model", "consolidated"):
        save_file({f"{stem}.weight": torch.ones(8, 8)}, tmp_path / f"{stem}-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="several sets of shards"):
        open_checkpoint(tmp_path)
