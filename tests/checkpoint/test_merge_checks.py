"""Merging an extended vocabulary, and the check after every merge: it can fail."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.checkpoint.writing import merge as merging
from glmspectra.checkpoint.writing.agreement import agreement
from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import CheckpointError
from glmspectra.tuning.inference.merged_check import LogitsApart, compare_logits
from glmspectra.tuning.model.saved_adapter import load_adapter
from tests.delta.peft_matrix import Case, Matrix, logits_of

PLAIN = Case("llama", "square", "lora", "plain", tied=False)


def extended(folder, matrix, tied, saved):
    """An adapter of a model with four tokens more than its base."""
    base = matrix.base("llama", tied)
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(52, mean_resizing=False)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return base, logits_of(tuned.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
def test_an_extended_vocabulary_is_said_in_the_configuration(tmp_path, tied):
    base, expected = extended(tmp_path / "adapter", Matrix(tmp_path), tied, ["embed_tokens", "lm_head"])
    report = merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert report.vocabulary == (48, 52)
    assert json.loads((tmp_path / "merged/config.json").read_text())["vocab_size"] == 52
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits_of(loaded), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_output_layer_that_does_not_follow_the_vocabulary_is_refused(tmp_path):
    base, _ = extended(tmp_path / "adapter", Matrix(tmp_path), False, ["embed_tokens"])
    with pytest.raises(CheckpointError, match=r"from 48 to 52 tokens and leaves lm_head\.weight at 48"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_result_that_is_not_base_and_adapter_is_not_kept(tmp_path, monkeypatch):
    matrix = Matrix(tmp_path)
    made, base = matrix.make(PLAIN), matrix.base("llama", False)
    right = merging._Merge._result

    def wrong(self, types, name):
        result = right(self, types, name)
        return result * 1.001 if name == "model.layers.1.self_attn.q_proj.weight" else result

    monkeypatch.setattr(merging._Merge, "_result", wrong)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj.*is not base and adapter together"):
        merge(base, made.adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    monkeypatch.undo()
    report = merge(base, made.adapter, tmp_path / "merged")
    assert 0 < report.checked[1] < 1e-5
    found, before = load_file(tmp_path / "merged/model.safetensors"), load_file(base / "model.safetensors")
    assert {name for name in found if not torch.equal(found[name], before[name])} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)
    }


FAULTS = {
    "left out": lambda before, after: before,
    "at half its scale": lambda before, after: before + (after - before) / 2,
    "twice": lambda before, after: after + (after - before),
    "with its sign turned": lambda before, after: before - (after - before),
    "in rows that are not its own": lambda before, after: before + (after - before).roll(1, 0),
    "missing in one row": lambda before, after: torch.cat([before[:1] * 1.1, after[1:]]),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_change_of_one_percent_is_seen_to_be_there_in_every_type(fault, dtype):
    """Half precision rounds by up to 0.4 % of a weight: a check as coarse as that would miss a small change."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, rank = 96, 128, 4
    sizes = torch.logspace(-2, 0, rows)[:, None]  # rows of unequal size: a small one must not hide behind a large one
    before = (torch.randn(rows, columns, generator=generator) * sizes).to(dtype)
    left, right = torch.randn(rows, rank, generator=generator) * sizes, torch.randn(rank, columns, generator=generator)
    share = 0.01 * before.float().norm() / (left @ right).norm()
    change = TensorChange("w", "w", "adapter", factors=Factors("w", left, right, float(share), rank))
    after = change.merged(before)
    assert 0.009 < float((after - before.float()).norm() / before.float().norm()) < 0.011
    written = (after if fault is None else FAULTS[fault](before.float(), after)).to(dtype)
    seen = agreement(change, written, before, torch.Generator().manual_seed(1))
    assert seen.holds == (fault is None), seen


def test_what_is_replaced_is_the_same_to_the_bit():
    before, trained = torch.randn(6, 4), torch.randn(6, 4)
    change = TensorChange("w", "w", "adapter", replaced=trained)
    generator = torch.Generator().manual_seed(0)
    assert agreement(change, trained.bfloat16(), before, generator).holds
    off = trained.bfloat16()
    off[2, 1] *= 1 + 2**-7
    assert not agreement(change, off, before, generator).holds


SPECIAL = {
    "tied, embedding trained": {"targets": "saved-embedding", "variant": "lora", "tied": True},
    "tied, both by factors": {"targets": "embedding+output", "variant": "lora", "tied": True},
    "DoRA": {"targets": "oblong", "variant": "dora", "tied": False},
    "tokens of a tied embedding": {"targets": "square", "variant": "lora", "option": "tokens", "tied": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("special", [*SPECIAL, "extended vocabulary"])
def test_the_comparison_of_logits_sees_a_change_that_is_missing(special, tmp_path):
    """A merged folder in which one changed tensor is the base's again: its logits are not those of the adapter."""
    matrix = Matrix(tmp_path)
    if special == "extended vocabulary":
        base, _ = extended(tmp_path / "adapter", matrix, True, ["embed_tokens", "lm_head"])
        adapter = tmp_path / "adapter"
    else:
        case = Case("llama", **{"option": "plain"} | SPECIAL[special])
        adapter, base = matrix.make(case).adapter, matrix.base("llama", case.tied)
    merge(base, adapter, tmp_path / "merged")
    if special == "extended vocabulary":
        with pytest.raises(CheckpointError, match="has 52 tokens, and this base 48; merge"):
            load_adapter(LlamaForCausalLM.from_pretrained(base), adapter)
    right = compare_logits(base, adapter, tmp_path / "merged")
    assert right.fault(torch.float32) is None
    assert right.apart < 1e-5
    assert (right.moved is None) == (special == "extended vocabulary")
    file = tmp_path / "merged" / "model.safetensors"
    found, before = load_file(file), load_file(base / "model.safetensors")
    changed = [
        name for name in found if name in before and not torch.equal(found[name], before[name][: len(found[name])])
    ]
    for name in changed:
        rows = before[name].shape[0]
        save_file(found | {name: torch.cat([before[name], found[name][rows:]])}, file, {"format": "pt"})
        wrong = compare_logits(base, adapter, tmp_path / "merged")
        assert wrong.fault(torch.float32), name
        assert wrong.moved is None or wrong.moved > 1e-3


def test_a_change_that_is_missing_is_seen_below_the_limit_of_its_type():
    assert LogitsApart(apart=0.05, moved=0.05).fault(torch.bfloat16)
    assert LogitsApart(apart=0.02, moved=0.05).fault(torch.bfloat16) is None
    assert LogitsApart(apart=0.2, moved=1.0).fault(torch.bfloat16)
    assert LogitsApart(apart=float("nan"), moved=0.1).fault(torch.bfloat16)
