"""Models and adapters that somebody else wrote, as transformers and PEFT would read them: answered or refused, in time.

No test asserts a time: a pattern that runs for hours is ended by the suite's timeout.
"""

import json
import os
import shutil
import zipfile
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.chatglm2 import convert_folder
from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.errors import CheckpointError, ConfigError, GlmspectraError
from glmspectra.tuning.model.loading import load_base, load_config, load_tokenizer
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.model.saved_adapter import load_adapter
from glmspectra.tuning.model.targets import resolve_targets
from glmspectra.tuning.settings.models import LoraArgs

CPU = torch.device("cpu")
PLAIN = Precision(torch.float32, torch.float32, None)
EVIL = "(([a-z_.0-9])+)+!"  # runs for ever in `re` over a name of 40 letters
MODULE = "transformer.encoder.layers.0.self_attention.query_key_value"


def edited(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")


def nested(levels):
    return json.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": ["chatglm"]},
        {"model_type": "x" * 100_000},
        {"quantization_config": [1]},
        {"text_config": [1, 2]},
        {"more": nested(900)},
        {"hidden_size": 2**62},
        {"layernorm_epsilon": "small"},
        {"rope_ratio": "1"},
        {"rope_ratio": 10**400},
        {"multi_query_group_num": 10**12},
    ],
)
def test_a_configuration_of_wrong_types_is_one_sentence_of_ours(folder, tmp_path, values):
    edited(folder / "config.json", **values)
    with pytest.raises(GlmspectraError) as refused:
        load_base(folder, PLAIN, CPU)
    assert len(str(refused.value)) < 2000
    for read in (load_config, load_tokenizer, lambda path: convert_folder(path, tmp_path / "out")):
        with suppress(GlmspectraError):  # an answer will do too, of what does not need the wrong key
            read(folder)


def test_a_type_of_numbers_that_torch_has_not(folder, tmp_path):
    edited(folder / "config.json", dtype="system")
    for read in (load_config, load_tokenizer, lambda path: convert_folder(path, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=r"cannot be read: .*system"):
            read(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
def test_a_pipe_among_the_files_of_a_model_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for read in (load_config, load_tokenizer):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            read(folder)


@pytest.fixture(scope="module")
def base():
    return load_base(EMBEDDED_MODEL, PLAIN, CPU)


@pytest.mark.parametrize(
    "values",
    [{"target_modules": EVIL}, {"target_modules": ["dense"], "exclude_modules": EVIL},
     {"target_modules": ["dense"], "layers_to_transform": [0], "layers_pattern": EVIL}],
)  # fmt: skip
def test_an_expression_of_the_settings_runs_in_linear_time(base, values):
    with pytest.raises(ConfigError):
        resolve_targets(base, LoraArgs(**values))


def test_expressions_choose_what_peft_chooses(base):
    chosen = resolve_targets(
        base, LoraArgs(target_modules=r".*\.(dense|query_key_value)", exclude_modules=r".*\.1\..*")
    )
    names = [name for name, _ in base.named_modules()]
    expected = [name for name in names if name.endswith((".dense", ".query_key_value")) and ".1." not in name]
    assert chosen == expected


@pytest.fixture
def adapter(tmp_path, base):
    place = tmp_path / "adapter"
    place.mkdir()
    layer = base.get_submodule(MODULE)
    factors = {"lora_A": torch.ones(4, layer.in_features), "lora_B": torch.ones(layer.out_features, 4)}
    tensors = {f"base_model.model.{MODULE}.{name}.weight": value for name, value in factors.items()}
    save_file(tensors, place / "adapter_model.safetensors")
    value = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": [MODULE]}
    (place / "adapter_config.json").write_text(json.dumps(value))
    return place


@pytest.mark.parametrize(
    "values",
    [{"r": 10**6}, {"r": 2, "rank_pattern": {MODULE: 10**9}}, {"rank_pattern": {"(": 4}}, {"modules_to_save": [EVIL]},
     {"peft_type": ["LORA"]}, {"peft_type": "NONE"}, {"rank_pattern": [4]}, {"more": nested(900)}, {"r": 10**400}],
)  # fmt: skip
def test_an_adapter_that_asks_for_too_much_is_not_built(adapter, values):
    edited(adapter / "adapter_config.json", **values)
    model = load_base(EMBEDDED_MODEL, PLAIN, CPU)
    with pytest.raises(GlmspectraError) as refused:
        load_adapter(model, adapter)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    "values",
    [{"target_modules": EVIL}, {"exclude_modules": EVIL}, {"rank_pattern": {EVIL: 2}, "alpha_pattern": {EVIL: 9}},
     {"layers_to_transform": [0], "layers_pattern": EVIL}, {}],
)  # fmt: skip
def test_expressions_of_an_adapter_are_not_run_by_re(adapter, values):
    """The factors in the file say which modules have some; an expression that matches none of them changes nothing."""
    edited(adapter / "adapter_config.json", **values)
    model = load_adapter(load_base(EMBEDDED_MODEL, PLAIN, CPU), adapter)
    layer = model.get_submodule(f"base_model.model.{MODULE}")
    assert torch.equal(layer.lora_A["default"].weight, torch.ones(4, layer.in_features))
    assert layer.scaling["default"] == 2


def as_bin(adapter, tensors):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.ones(4, 8).to_sparse(), "sparse"),
        (lambda: torch.nested.nested_tensor([torch.ones(4), torch.ones(2)]), "nested"),
        (lambda: torch.empty(4, 8, device="meta"), "meta"),
    ],
)
def test_tensors_without_numbers_in_an_adapter_are_refused_by_name(adapter, make, said):
    as_bin(adapter, {f"base_model.model.{MODULE}.lora_A.weight": make()})
    with pytest.raises(CheckpointError, match=said):
        open_adapter(adapter)


def test_a_pickle_of_millions_of_opcodes_as_an_adapter(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with zipfile.ZipFile(adapter / "adapter_model.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"(" * 2_000_000 + b".")
        archive.writestr("x/version", "3\n")
    with pytest.raises(CheckpointError, match="beyond the bound"):
        open_adapter(adapter)
    with pytest.raises(CheckpointError, match="beyond the bound"):
        load_adapter(load_base(EMBEDDED_MODEL, PLAIN, CPU), adapter)


@pytest.mark.parametrize("values", [{"loftq_iter": 10**9}, {"loftq_bits": 10**9}])
def test_a_start_that_would_take_for_ever_is_refused(adapter, values):
    edited(adapter / "adapter_config.json", init_lora_weights="loftq", loftq_config=values)
    with pytest.raises(CheckpointError, match="loftq_config"):
        open_adapter(adapter)
