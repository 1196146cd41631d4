"""A cut adapter against the dense truncated SVD of the change that PEFT itself makes, and loaded by PEFT."""

import json

import numpy as np
import pytest
import torch

from glmspectra.cli.main import main
from glmspectra.errors import RequestError
from glmspectra.loop.squeeze import squeeze_adapter

peft = pytest.importorskip("peft")


def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).eval()


def adapter_of(tmp_path, **settings):
    """An adapter with random factors of uneven sizes, saved by PEFT; its folder, and each module's change by PEFT."""
    settings = {"r": 8, "lora_alpha": 24, "target_modules": ["q_proj", "down_proj", "v_proj"], **settings}
    made = peft.get_peft_model(model(), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for place, (name, parameter) in enumerate(made.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 + place % 5))
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", changes(made)


def changes(made):
    layers = {name: layer for name, layer in made.named_modules() if hasattr(layer, "get_delta_weight")}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").double()
        for name, layer in layers.items()
    }


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 3}}]
)
def test_each_matrix_is_its_dense_truncated_svd_in_peft(tmp_path, settings):
    folder, before = adapter_of(tmp_path, **settings)
    found = squeeze_adapter(folder, tmp_path / "small", "like:r=3")
    after = changes(peft.PeftModel.from_pretrained(model(), tmp_path / "small"))
    assert {name for name, rank in found.ranks.items() if rank} == set(after)
    cost = {name: sum(change.shape) for name, change in before.items()}
    assert found.parameters == sum(found.ranks[name] * cost[name] for name in before) <= 3 * sum(cost.values())
    error = whole = 0.0
    for name, change in before.items():
        left, sigma, right = torch.linalg.svd(change)
        rank = found.ranks[name]
        dense = (left[:, :rank] * sigma[:rank]) @ right[:rank]
        if rank:
            torch.testing.assert_close(after[name], dense, rtol=1e-5, atol=1e-5 * float(sigma[0]))
        error += float(sigma[rank:].square().sum())
        whole += float(sigma.square().sum())
    assert found.relative_error == pytest.approx(np.sqrt(error / whole), rel=1e-5)
    largest_cut = max(float(torch.linalg.svdvals(c)[found.ranks[n]]) for n, c in before.items() if found.ranks[n] < 5)
    assert found.threshold >= largest_cut * (1 - 1e-6)


def test_a_budget_above_the_adapter_loses_nothing(tmp_path):
    folder, before = adapter_of(tmp_path)
    found = squeeze_adapter(folder, tmp_path / "same", "like:r=20")
    assert found.kept_energy == pytest.approx(1.0, abs=1e-12)
    for name, change in changes(peft.PeftModel.from_pretrained(model(), tmp_path / "same")).items():
        torch.testing.assert_close(change, before[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"use_dora": True}, "cannot be cut exactly"),
        ({"modules_to_save": ["lm_head"]}, "trained .*lm_head.* as a whole"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.* as a whole"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(tmp_path, settings, sentence):
    folder, _ = adapter_of(tmp_path, **settings)
    with pytest.raises(RequestError, match=sentence):
        squeeze_adapter(folder, tmp_path / "small", "like:r=3")
    assert not (tmp_path / "small").exists()


def test_the_command_says_what_it_kept_and_overwrites_nothing(tmp_path, capsys):
    folder, _ = adapter_of(tmp_path)
    arguments = ["squeeze", str(folder), "--budget", "like:r=2", "--out", str(tmp_path / "small"), "--json"]
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code in (0, None)
    results = json.loads(capsys.readouterr().out)
    assert results["max_lora_rank"] == max(results["ranks"].values())
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert "holds an adapter already" in capsys.readouterr().err
