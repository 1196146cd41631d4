"""Merging an extended vocabulary, and the check after every merge: it can fail."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from glmspectra.checkpoint.writing import merge as merging
from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import CheckpointError
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
