"""Adapters that plain PEFT wrote, read without the model, against PEFT's own get_delta_weight and merge."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.checkpoint.adapter.run_folder import tuned_checkpoints
from glmspectra.errors import CheckpointError, RequestError


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(24, 36)
        self.dense = nn.Linear(36, 24)


class Tiny(nn.Module):
    """Twelve layers, so that layers.1 and layers.11 can be taken for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "tiny", "tie_word_embeddings": False}
        self.embedding = nn.Embedding(10, 24)
        self.layers = nn.ModuleList([Layer() for _ in range(12)])

    def forward(self, input_ids):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = hidden + layer.dense(layer.query_key_value(hidden).tanh())
        return hidden


def trained(config: peft.PeftConfig, seed: int = 0) -> peft.PeftModel:
    """A PEFT model whose adapter tensors all moved."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(Tiny(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def deltas_of(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def compare(model: peft.PeftModel, folder: Path, **open_options):
    adapter = open_adapter(folder, **open_options)
    expected = deltas_of(model)
    assert sorted(adapter.names) == sorted(expected)
    for name, delta in expected.items():
        torch.testing.assert_close(adapter.change(name).delta(dtype=torch.float64).float(), delta, rtol=1e-5, atol=1e-7)
    return adapter


LORA = {"r": 4, "lora_alpha": 10, "target_modules": ["query_key_value", "dense"]}


@pytest.mark.parametrize("safe", [True, False])
def test_lora_with_rank_and_alpha_patterns(tmp_path, safe):
    config = peft.LoraConfig(
        **LORA,
        rank_pattern={"layers.1.query_key_value": 7, "dense": 2, r"^layers\.11\.query_key_value": 1},
        alpha_pattern={"layers.1.query_key_value": 3, r"layers\.[45]\.dense": 9},
    )
    model = trained(config)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    adapter = compare(model, tmp_path)
    ranks = {name: adapter.change(name).allotted_rank for name in adapter.names}
    assert ranks["layers.1.query_key_value.weight"] == 7
    assert ranks["layers.11.query_key_value.weight"] == 1
    assert ranks["layers.0.query_key_value.weight"] == 4
    assert ranks["layers.11.dense.weight"] == 2
    assert adapter.names[1:4] == [
        "layers.0.query_key_value.weight",
        "layers.1.dense.weight",
        "layers.1.query_key_value.weight",
    ]
    assert adapter.peft_method == "lora"


def test_rslora(tmp_path):
    model = trained(peft.LoraConfig(**LORA, use_rslora=True, rank_pattern={"dense": 9}))
    model.save_pretrained(tmp_path)
    adapter = compare(model, tmp_path)
    assert adapter.peft_method == "rslora"
    assert adapter.change("layers.0.dense.weight").scale == pytest.approx(10 / 3)


def test_embedding_and_whole_tensors(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["embedding", "dense"], bias="lora_only")
    model = trained(config)
    model.save_pretrained(tmp_path)
    adapter = compare(model, tmp_path)
    assert adapter.change("embedding.weight").shape == (10, 24)
    assert "layers.0.dense.base_layer.bias" in adapter.whole or "layers.0.dense.bias" in adapter.whole


def adalora(tmp_path, prune: bool):
    config = peft.AdaLoraConfig(
        init_r=6, target_r=2, lora_alpha=5, tinit=1, tfinal=1, deltaT=1, total_step=8,
        target_modules=["query_key_value", "dense"],
    )  # fmt: skip
    model = trained(config)
    if prune:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for step in range(1, 9):
            model(torch.randint(0, 10, (3, 5))).square().mean().backward()
            optimizer.step()
            model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    return model


def test_adalora_before_pruning(tmp_path):
    model = adalora(tmp_path, prune=False)
    adapter = compare(model, tmp_path)
    assert adapter.peft_method == "adalora"
    assert adapter.change("layers.3.dense.weight").scale == pytest.approx(5 / (6 + 1e-5), rel=1e-12)


def test_adalora_after_pruning(tmp_path):
    model = adalora(tmp_path, prune=True)
    adapter = compare(model, tmp_path)
    masks = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, masks.values())) == 2 * 24, "the allocator pruned"
    for name in adapter.names:
        factors = adapter.change(name)
        kept = sum(masks[name.replace("weight", "lora_E")])
        assert factors.left.shape[1] == kept
        assert factors.allotted_rank == 6


def test_adalora_read_as_plain_lora_would_be_wrong(tmp_path):
    """The control: without E and ranknum the numbers are nowhere near."""
    model = adalora(tmp_path, prune=True)
    adapter = open_adapter(tmp_path)
    name = next(n for n in adapter.names if adapter.change(n).left.shape[1])
    parts = adapter.stored.factors[name.removesuffix(".weight")]
    plain = parts["lora_B"] @ parts["lora_A"] * adapter.config.lora_alpha / adapter.config.r
    right = deltas_of(model)[name]
    assert float((plain - right).norm() / right.norm()) > 0.5


def test_dora_needs_the_base_and_merges_as_peft_does(tmp_path):
    model = trained(peft.LoraConfig(**LORA, use_dora=True))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    model.save_pretrained(tmp_path)
    base = {k: v.clone() for k, v in base_weights(model).items()}
    adapter = open_adapter(tmp_path)
    assert adapter.peft_method == "dora"
    merged = model.merge_and_unload()
    for name in adapter.names:
        factors = adapter.change(name)
        expected = merged.get_parameter(name).detach()
        torch.testing.assert_close(factors.merged(base[name]), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(factors.delta(base[name]), expected - base[name], rtol=1e-4, atol=1e-6)
        with pytest.raises(RequestError, match="DoRA makes depends on the base"):
            factors.delta()


def base_weights(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_base_layer().weight.detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_base_layer") and hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_methods_that_reduce_the_base_are_read_by_their_saved_start(tmp_path, method):
    torch.manual_seed(0)
    plain = Tiny()
    published = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = peft.get_peft_model(plain, peft.LoraConfig(**LORA, init_lora_weights=method, rank_pattern={"dense": 6}))
    model.save_pretrained(tmp_path / "run" / "initial_adapter")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "run")
    adapter = open_adapter(tmp_path / "run")
    assert adapter.peft_method == method
    merged = model.merge_and_unload()
    for name in adapter.names:
        truth = merged.get_parameter(name).detach() - published[name]
        factors = adapter.change(name)
        torch.testing.assert_close(factors.delta(dtype=torch.float64).float(), truth, rtol=1e-4, atol=2e-6)
        assert factors.left.shape[1] == 2 * factors.allotted_rank
    shutil.move(tmp_path / "run" / "initial_adapter", tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="took its first factors out of the base"):
        open_adapter(tmp_path / "run")
    assert open_adapter(tmp_path / "run", initial=tmp_path / "elsewhere").names == adapter.names


def test_loftq_base_is_made_again(tmp_path):
    pytest.importorskip("bitsandbytes")
    from glmspectra.checkpoint.formats.round_trip import loftq_base, quantized_copy

    model = trained(peft.LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | {
        "init_lora_weights": "loftq",
        "loftq_config": {"loftq_bits": 4, "loftq_iter": 2},
    }
    file.write_text(json.dumps(config))
    adapter = open_adapter(tmp_path)
    factors = adapter.change("layers.0.dense.weight")
    weight = torch.randn(24, 36) * 0.02
    base = loftq_base(weight, 4, 4, 2)
    torch.testing.assert_close(factors.delta(weight), base - weight + factors.product(), rtol=1e-5, atol=1e-6)
    one = quantized_copy(weight, "nf4")
    residual = lambda q: float(torch.linalg.svdvals(weight - q)[4:].square().sum())  # noqa: E731
    assert residual(base) < residual(one), "a second round leaves less outside rank 4"
    with pytest.raises(RequestError, match="LoftQ makes depends on the base"):
        factors.delta()


def test_an_unknown_change_of_the_base_is_refused(tmp_path):
    trained(peft.LoraConfig(**LORA)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"init_lora_weights": "some_new_method"}))
    with pytest.raises(CheckpointError, match="changed the base in a way not known"):
        open_adapter(tmp_path)
    file.write_text(json.dumps(config | {"peft_type": "LOKR"}))
    with pytest.raises(CheckpointError, match="type LOKR"):
        open_adapter(tmp_path)
    file.write_text(json.dumps(config | {"r": 5}))
    with pytest.raises(CheckpointError, match=r"rank 4, but its configuration says 5"):
        open_adapter(tmp_path).change("layers.0.dense.weight")


def test_the_configuration_form_of_2023(tmp_path):
    """The original study's adapter_config.json: no rank_pattern, no use_rslora, and a .bin beside it."""
    model = trained(peft.LoraConfig(r=12, lora_alpha=24, target_modules=["query_key_value"]))
    model.save_pretrained(tmp_path, safe_serialization=False)
    old = {
        "base_model_name_or_path": "THUDM/chatglm2-6b",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 24,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 12,
        "revision": None,
        "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(old))
    adapter = compare(model, tmp_path)
    assert adapter.change("layers.0.query_key_value.weight").scale == 2.0


def test_names_in_the_base(tmp_path):
    trained(peft.LoraConfig(r=2, target_modules=["dense"])).save_pretrained(tmp_path)
    adapter = open_adapter(tmp_path)
    prefixed = [f"model.layers.{i}.dense.weight" for i in range(12)]
    shapes = dict.fromkeys(prefixed, (24, 36))
    found = adapter.changes(BaseLayout(shapes, {})).tensors
    assert found["model.layers.1.dense.weight"].adapter_name == "layers.1.dense.weight", "not layers.11"
    with pytest.raises(CheckpointError, match="of which the base has none"):
        adapter.changes(BaseLayout({name: shapes[name] for name in prefixed[:5]}, {}))


def test_a_broken_folder_is_one_sentence(tmp_path):
    with pytest.raises(RequestError, match="no adapter here"):
        open_adapter(tmp_path)
    trained(peft.LoraConfig(r=2, target_modules=["dense"])).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="was it saved whole"):
        open_adapter(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="but neither"):
        open_adapter(tmp_path)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/this_must_not_appear"),))


def test_a_bin_that_runs_code_is_not_opened(tmp_path):
    trained(peft.LoraConfig(r=2, target_modules=["dense"])).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"x": Harmful()}, tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="asks for more than tensors"):
        open_adapter(tmp_path)
    assert not Path("/tmp/this_must_not_appear").exists()


def test_states_of_a_run_are_listed_by_step(tmp_path):
    for step, place in ((100, "LoraAdapter"), (20, ""), (3, "LoraAdapter")):
        trained(peft.LoraConfig(r=2, target_modules=["dense"])).save_pretrained(tmp_path / f"checkpoint-{step}" / place)
    states = tuned_checkpoints(tmp_path)
    assert [state.step for state in states] == [3, 20, 100]
    assert [open_adapter(state.path).step for state in states] == [3, 20, 100]
    shutil.copytree(tmp_path / "checkpoint-20", tmp_path, dirs_exist_ok=True)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 120}')
    assert [state.step for state in tuned_checkpoints(tmp_path)] == [3, 20, 100, 120]
    (tmp_path / "trainer_state.json").write_text('{"global_step": 100}')
    assert len(tuned_checkpoints(tmp_path)) == 3, "the final state is the last checkpoint"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds neither"):
        tuned_checkpoints(tmp_path / "empty")


def test_adapters_of_any_name_in_a_run(tmp_path):
    adapter = trained(peft.LoraConfig(r=2, target_modules=["dense"]))
    adapter.save_pretrained(tmp_path / "run" / "checkpoint-5" / "my_name")
    adapter.save_pretrained(tmp_path / "run" / "final_adapter")
    adapter.save_pretrained(tmp_path / "run" / "initial_adapter")
    adapter.save_pretrained(tmp_path / "run" / ".final_adapter.writing")
    adapter.save_pretrained(tmp_path / "run" / "checkpoint-best" / "my_name")
    assert [state.step for state in tuned_checkpoints(tmp_path / "run" / "checkpoint-best")] == [None]
    states = tuned_checkpoints(tmp_path / "run")
    assert [state.path.name for state in states] == ["my_name", "final_adapter"]
    adapter.save_pretrained(tmp_path / "two" / "a")
    adapter.save_pretrained(tmp_path / "two" / "b")
    with pytest.raises(RequestError, match="holds several adapters"):
        tuned_checkpoints(tmp_path / "two")
