"""adapter_config.json by type first, then key by key: understood, without effect, or refused by name."""

import json

import pytest
import torch
from peft.tuners.lora.config import LoraConfig
from peft.utils.peft_types import PeftType
from safetensors.torch import save_file

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.config import OTHER_TYPES, REFUSED, WITHOUT_EFFECT, AdapterConfig
from glmspectra.checkpoint.adapter.run_folder import tuned_checkpoints
from glmspectra.errors import CheckpointError

FACTORS = {"base_model.model.q.lora_A.weight": torch.ones(2, 6), "base_model.model.q.lora_B.weight": torch.ones(4, 2)}
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}


def write(folder, config, tensors=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    default = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 6),
        "base_model.model.q.lora_B.weight": torch.ones(4, 2),
    }
    save_file(default if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def test_every_type_of_peft_is_told_what_it_is(tmp_path):
    assert {member.value for member in PeftType} == {"LORA", "ADALORA", *OTHER_TYPES}
    for name, what in OTHER_TYPES.items():
        with pytest.raises(CheckpointError, match=f"type {name} .*only LORA and ADALORA") as caught:
            open_adapter(write(tmp_path / name, {"peft_type": name}))
        assert what in str(caught.value)
        assert "missing" not in str(caught.value)


def test_every_key_of_peft_is_in_one_of_the_three_lists():
    keys = set(LoraConfig(r=2).to_dict()) | {"runtime_config"}
    read = set(AdapterConfig.model_fields)
    assert keys <= read | WITHOUT_EFFECT | set(REFUSED)
    assert not read & set(REFUSED)


@pytest.mark.parametrize(("key", "value"), [(key, [1]) for key in REFUSED] + [("a_key_of_tomorrow", 3)])
def test_a_key_that_changes_weights_in_a_way_not_read_is_refused_by_name(tmp_path, key, value):
    with pytest.raises(CheckpointError, match=key):
        open_adapter(write(tmp_path, PLAIN | {key: value}))


def test_a_key_that_is_switched_off_is_not(tmp_path):
    off = dict.fromkeys(REFUSED) | {"a_key_of_tomorrow": False, "another": {}}
    assert open_adapter(write(tmp_path, PLAIN | off)).names == ["q.weight"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": "2"}, "r: input should be a valid integer"),
        ({"r": 0}, "r: input should be greater"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": {"q": 1.5}}, "rank_pattern gives 'q' the rank 1.5"),
        ({"rank_pattern": {"(?=q)": 1}}, "rank_pattern key"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"use_dora": True, "kasa_config": {"beta": 1}}, "exclude each other"),
        ({"loftq_config": {"loftq_bitz": 4}}, "loftq_bitz"),
        ({"use_dora": True}, "q lacks lora_magnitude_vector"),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path, change, said):
    with pytest.raises(CheckpointError) as caught:
        open_adapter(write(tmp_path, PLAIN | change)).change("q.weight")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_factors_that_zero_left_in_shards_are_said(tmp_path):
    empty = {"base_model.model.q.lora_A.weight": torch.ones(0), "base_model.model.q.lora_B.weight": torch.ones(0)}
    with pytest.raises(CheckpointError, match=r"empty factors .* ZeRO-3"):
        open_adapter(write(tmp_path, PLAIN, empty)).change("q.weight")


def test_lora_of_other_programs_under_pefts_configuration_is_refused_by_name(tmp_path):
    kohya = {"lora_unet_q.lora_down.weight": torch.ones(2, 6), "lora_unet_q.lora_up.weight": torch.ones(4, 2)}
    with pytest.raises(CheckpointError, match="Kohya's sd-scripts"):
        open_adapter(write(tmp_path / "with_config", PLAIN, kohya))
    save_file(kohya, tmp_path / "kohya.safetensors")
    assert tuned_checkpoints(tmp_path / "kohya.safetensors")[0].is_adapter  # of itself it is read: `lora_file`


def test_a_tensor_of_an_unknown_variant_is_refused(tmp_path):
    more = {"base_model.model.q.lora_new.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"lora_new.* variant of LoRA"):
        open_adapter(write(tmp_path, PLAIN, FACTORS | more))


def test_conv1d_layers_are_those_of_transformers():
    """The table of layers that store (in, out), against the classes that transformers makes."""
    from transformers import CONFIG_MAPPING, GPT2Model, ImageGPTModel, OpenAIGPTModel
    from transformers.pytorch_utils import Conv1D

    from glmspectra.checkpoint.adapter.layout import CONV1D

    small = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 8, "n_positions": 8}
    for name, model in (("gpt2", GPT2Model), ("imagegpt", ImageGPTModel), ("openai-gpt", OpenAIGPTModel)):
        made = model(CONFIG_MAPPING[name](**small))
        found = {key.rpartition(".")[2] for key, module in made.named_modules() if isinstance(module, Conv1D)}
        assert found <= CONV1D[name]
        linear = {key.rpartition(".")[2] for key, module in made.named_modules() if type(module) is torch.nn.Linear}
        assert not linear & CONV1D[name]


def test_loftq_in_eight_bits_rounds_as_bitsandbytes_does():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from glmspectra.checkpoint.formats.round_trip import loftq_base

    torch.manual_seed(0)
    weight = torch.randn(12, 32) * 0.02
    stored = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False).to("cpu")
    expected = bitsandbytes.functional.int8_vectorwise_dequant(stored.data, stored.SCB)
    assert torch.equal(loftq_base(weight, 8, 4, 1), expected)
