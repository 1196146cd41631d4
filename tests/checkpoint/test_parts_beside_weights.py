"""What lies beside a weight in its module, or beside the model in its folder, and is not what it seems."""

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint.reader import open_checkpoint
from glmspectra.checkpoint.selection import left_out, left_out_facts, left_out_sentence, select
from glmspectra.errors import CheckpointError

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj.weight"
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
        told = left_out(checkpoint) | {record.name: record.fault for record in select(checkpoint) if record.fault}
    assert part not in sound
    assert part in told
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


def test_matrices_of_an_rnn_are_no_parts(tmp_path):
    names = [f"rnn.weight_{kind}_l0{end}" for kind in ("ih", "hh", "hr") for end in ("", "_reverse")]
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
        assert "consolidated.safetensors lies beside the weights" in left_out_sentence(checkpoint)


def test_two_sets_of_shards_are_not_mixed(tmp_path):
    for stem in ("model", "consolidated"):
        save_file({f"{stem}.weight": torch.ones(8, 8)}, tmp_path / f"{stem}-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="several sets of shards"):
        open_checkpoint(tmp_path)
