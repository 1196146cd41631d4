"""The ranks file and the exports, applied by PEFT itself: exactly the suggested ranks, scale and parameters."""

import json
import math
import shlex
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from glmspectra.errors import GlmspectraError, StoreError
from glmspectra.json_files import write_json
from glmspectra.peft_rules import matched_by, module_pattern
from glmspectra.ranks import Limits, gather, lora_args, parse_budget, ranks_file, suggest
from glmspectra.ranks.exports import export
from glmspectra.ranks.peft_patterns import scale_of, target_modules, verify
from tests.ranks.made_evidence import SHAPES, base_run, delta_run

LAYERS = 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        for module, (rows, cols) in SHAPES.items():
            parent, name = module.split(".")
            if not hasattr(self, parent):
                setattr(self, parent, nn.Module())
            setattr(getattr(self, parent), name, nn.Linear(cols, rows, bias=False))


class Model(nn.Module):
    """The module names of the made-up tables, layers 0 to 11."""

    def __init__(self):
        super().__init__()
        self.config = {"model_type": "made"}
        self.transformer = nn.Module()
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList([Block() for _ in range(LAYERS)])

    def prepare_inputs_for_generation(self):
        """PEFT asks for it where the task is CAUSAL_LM."""


@pytest.fixture(scope="module")
def evidence():
    return gather(base_run(LAYERS), [delta_run(LAYERS)])


@pytest.fixture(scope="module")
def suggestion(evidence):
    return suggest(evidence, "delta-threshold", parse_budget("like:r=2", evidence), Limits())


@pytest.fixture(scope="module")
def allocation(suggestion):
    return suggestion.chosen


def adapted(config):
    model = peft.get_peft_model(Model(), config)
    found = {
        f"{name.removeprefix('base_model.model.')}.weight": module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return found, trainable


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_gives_every_module_its_rank_and_the_same_scale(suggestion, allocation, rslora):
    assert min(allocation.ranks.values()) == 0, "some matrices leave the targets"
    assert len(set(allocation.ranks.values())) > 3
    arguments = ranks_file(suggestion, scale=1.5, rslora=rslora)["lora_args"]
    layers, trainable = adapted(peft.LoraConfig(**arguments))
    assert {name: m.r["default"] for name, m in layers.items()} == {n: r for n, r in allocation.ranks.items() if r}
    assert {round(m.scaling["default"], 9) for m in layers.values()} == {1.5}
    assert trainable == allocation.parameters


def test_unanchored_patterns_would_have_been_wrong(evidence, allocation):
    """The control: the short keys that people write give other ranks than they say."""
    arguments = lora_args(allocation, evidence)
    short = {pattern.replace("\\", "").split("layers.")[1]: rank for pattern, rank in arguments["rank_pattern"].items()}
    sloppy = {key.split(".", 1)[1]: rank for key, rank in short.items()}
    layers, _ = adapted(peft.LoraConfig(**{**arguments, "rank_pattern": sloppy}))
    wrong = [n for n, m in layers.items() if m.r["default"] != allocation.ranks[n]]
    assert wrong


def test_a_pattern_matches_one_module_and_no_other():
    modules = [
        "layers.1.dense",
        "layers.11.dense",
        "xlayers.1.dense",
        "model.layers.1.dense",
        "layers.1.dense_h",
        "layers_1_dense",
    ]
    assert matched_by(module_pattern("layers.1.dense"), modules) == ["layers.1.dense"]
    assert len(matched_by("layers.1.dense", modules)) > 1
    with pytest.raises(GlmspectraError, match="instead of one module"):
        verify({"dense": 3}, {"layers.1.dense": 3}, modules)
    assert target_modules(["layers.1.dense"], ["layers.1.dense", "layers.11.dense"]) == ["layers.1.dense"]
    as_text = target_modules(["layers.1.dense"], modules)
    assert isinstance(as_text, str), "model.layers.1.dense ends in the target's name"
    from peft.tuners.tuners_utils import check_target_module_exists

    hit = [m for m in modules if check_target_module_exists(peft.LoraConfig(target_modules=as_text), m)]
    assert hit == ["layers.1.dense"]


def test_the_ranks_file_says_whose_ranks_they_are(suggestion, allocation):
    content = json.loads(json.dumps(ranks_file(suggestion)))
    assert content["glmspectra_ranks"] == 1
    assert content["base"] == {"name": "base", "fingerprint": "0123456789abcdef"}
    assert content["ranks"] == allocation.ranks
    assert content["budget"]["used"] == allocation.parameters <= content["budget"]["parameters"]
    adalora = content["adalora"]
    assert adalora["init_r"] == max(adalora["start_ranks"].values())
    used = {name.removesuffix(".weight"): rank for name, rank in allocation.ranks.items() if rank}
    assert adalora["target_r"] == round(sum(used.values()) / len(used))
    assert all(start == min(math.ceil(1.5 * used[m]), 48) for m, start in adalora["start_ranks"].items())
    arguments = {key: value for key, value in adalora.items() if key != "start_ranks"}
    peft.AdaLoraConfig(**arguments, total_step=100, target_modules=content["lora_args"]["target_modules"])


def test_train_reads_the_ranks_file(suggestion, tmp_path):
    settings_ranks = pytest.importorskip("glmspectra.tuning.settings.ranks")
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(ranks_file(suggestion)))
    found = settings_ranks.read_ranks(path)
    assert found.base.fingerprint == "0123456789abcdef"
    assert found.lora_args.rank_pattern == ranks_file(suggestion)["lora_args"]["rank_pattern"]


def test_the_rule_of_alpha_is_the_users_own_and_stands_in_the_file(suggestion, tmp_path):
    settings_files = pytest.importorskip("glmspectra.tuning.settings.files")
    settings_ranks = pytest.importorskip("glmspectra.tuning.settings.ranks")
    assert scale_of(tmp_path) == (2.0, False)
    mine = tmp_path / "lora_args.json"
    mine.write_text(json.dumps({"r": 16, "lora_alpha": 16}))
    assert scale_of(tmp_path) == (1.0, False)
    mine.write_text(json.dumps({"r": 16, "lora_alpha": 16, "use_rslora": True}))
    assert scale_of(tmp_path) == (4.0, True)
    for broken in ("[1]", "{", '{"r": 0, "lora_alpha": 1}', '{"r": "x", "lora_alpha": 1}'):
        mine.write_text(broken)
        assert scale_of(tmp_path) == (2.0, False)
    path = write_json(tmp_path / "deep" / "ranks.json", ranks_file(suggestion, 3.0))
    lora = settings_files.Section("lora")
    for key, value in (("use_rslora", True), ("r", 16), ("lora_alpha", 16)):
        lora.put(key, value, "lora_args.json")
    settings_ranks.apply_ranks(settings_ranks.read_ranks(path), str(path), False, lora)
    assert lora.values["use_rslora"] is False, "the alphas of the file are of the plain rule"


def test_a_place_that_cannot_be_written_is_one_sentence(suggestion, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "ranks.json", tmp_path):
        with pytest.raises(StoreError, match=r"cannot be (created|written)"):
            write_json(place, ranks_file(suggestion))


def test_exports_for_plain_peft_axolotl_llama_factory_and_ms_swift(evidence, allocation, tmp_path):
    import yaml
    from safetensors.torch import load_file

    arguments = lora_args(allocation, evidence)
    written = [
        p
        for trainer in ("peft", "axolotl", "llama-factory", "ms-swift")
        for p in export(trainer, tmp_path, arguments, allocation, evidence)
    ]
    assert all(path.is_file() for path in written)
    layers, trainable = adapted(peft.LoraConfig.from_pretrained(tmp_path / "peft"))
    assert {n: m.r["default"] for n, m in layers.items()} == {n: r for n, r in allocation.ranks.items() if r}
    settings = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())
    assert settings["lora_rank_pattern"] == arguments["rank_pattern"]
    assert settings["lora_alpha_pattern"] == arguments["alpha_pattern"]
    assert settings["lora_target_modules"] == arguments["target_modules"]
    # LLaMA-Factory goes on from an adapter: PEFT opens it with the ranks in place, and it changes nothing
    # yet.
    untrained = tmp_path / "llama_factory" / "untrained_adapter"
    model = peft.PeftModel.from_pretrained(Model(), untrained, is_trainable=True)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable == allocation.parameters
    tensors = load_file(untrained / "adapter_model.safetensors")
    assert all(not t.any() for name, t in tensors.items() if "lora_B" in name)
    assert len(tensors) == 2 * sum(rank > 0 for rank in allocation.ranks.values())
    for name, a in tensors.items():
        if "lora_A" in name:  # as PEFT starts it: uniform between -1 and 1 over the root of its columns
            assert 0.5 < a.abs().max() * a.shape[1] ** 0.5 <= 1, name
            assert a.min() < 0 < a.max(), name
    # ms-swift goes on from the same adapter, which its `--adapters` names.
    words = shlex.split((tmp_path / "ms_swift" / "ms_swift.sh").read_text().splitlines()[1])
    started = load_file(Path(words[words.index("--adapters") + 1]) / "adapter_model.safetensors")
    assert all(torch.equal(started[name], tensor) for name, tensor in tensors.items())
    assert started.keys() == tensors.keys()
    assert (
        yaml.safe_load((tmp_path / "llama_factory" / "llama_factory.yaml").read_text())["create_new_adapter"] is False
    )
