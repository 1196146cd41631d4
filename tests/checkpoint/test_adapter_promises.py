"""An adapter's file against its configuration: what PEFT leaves out without a word, or cannot load, is refused."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import save_file

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.errors import CheckpointError
from tests.checkpoint.test_adapter_config import write

Q, K = "model.layers.{}.attn.q", "model.layers.{}.attn.k"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
BASE = BaseLayout(
    {f"{name.format(layer)}.{what}": shape for name in (Q, K) for layer in (0, 1)
     for what, shape in (("weight", (4, 6)), ("bias", (4,)))} | {"lm_head.weight": (9, 6), "embed.weight": (9, 6)},
    {},
)  # fmt: skip


def factors(*modules, adapter=""):
    return {
        f"base_model.model.{module}.lora_{side}{adapter}.weight": torch.ones(shape)
        for module in modules
        for side, shape in (("A", (2, 6)), ("B", (4, 2)))
    }


PLAIN = factors(Q.format(0), Q.format(1))
OTHER = factors(K.format(0))

TARGETS = [
    {"target_modules": ["q"]},
    {"target_modules": ["attn.q", "attn.k"]},
    {"target_modules": ["model.layers.1.attn.q", "k"]},
    {"target_modules": r".*layers\.1\..*"},
    {"target_modules": ["q", "k"], "layers_to_transform": [1]},
    {"target_modules": [Q.format(0), "k"], "layers_to_transform": 1},
    {"target_modules": ["q", "k"], "exclude_modules": ["layers.0.attn.k"]},
    {"target_modules": ["q", "k"], "exclude_modules": r".*\.k"},
    {"target_modules": ["q", "k"], "modules_to_save": ["layers.0"]},
]


@pytest.mark.parametrize("change", TARGETS)
@pytest.mark.parametrize("module", [Q.format(0), Q.format(1), K.format(0)])
def test_factors_count_where_peft_would_make_some(tmp_path, change, module):
    config = CONFIG | change
    folder = write(tmp_path, config, factors(module))
    if check_target_module_exists(LoraConfig(**change), module):
        assert open_adapter(folder).names == [f"{module}.weight"]
    else:
        with pytest.raises(CheckpointError, match=f"has factors of {module}, which .* does not target"):
            open_adapter(folder)


def test_the_tied_layer_that_peft_adds_need_not_be_targeted(tmp_path):
    tied = CONFIG | {"target_modules": ["q", "embed"], "ensure_weight_tying": True}
    folder = write(tmp_path, tied, PLAIN | factors("lm_head"))
    assert "lm_head.weight" in open_adapter(folder).names
    with pytest.raises(CheckpointError, match="has factors of lm_head"):
        open_adapter(write(tmp_path, tied | {"ensure_weight_tying": False}, PLAIN | factors("lm_head")))


BOTH = {"target_modules": ["q", "k"]}
HEAD = "base_model.model.lm_head.modules_to_save"
REFUSED = {
    "two adapters' names": (PLAIN | factors(K.format(0), adapter=".other"), BOTH, "several adapters .*other"),
    "two adapters' heads": (
        PLAIN | {f"{HEAD}.default.weight": torch.ones(9, 6), f"{HEAD}.other.weight": torch.ones(9, 6)},
        {"modules_to_save": ["lm_head"]},
        "there twice",
    ),
    "a head that was not saved": (PLAIN, {"modules_to_save": ["lm_head"]}, "no tensor of lm_head"),
    "tokens that were not saved": (PLAIN, {"trainable_token_indices": [1, 2]}, "no trained tokens of the embedding"),
    "tokens of one of two": (PLAIN, {"trainable_token_indices": {"embed": [1]}}, "no trained tokens of embed"),
    "biases that were not saved": (PLAIN, {"bias": "all"}, "no bias, such as model"),
    "a lora_bias that was not saved": (PLAIN, {"lora_bias": True}, r"lacks lora_B\.bias"),
    "a base weight that PEFT would not load": (
        PLAIN | {f"base_model.model.{Q.format(0)}.weight": torch.ones(4, 6)},
        {},
        r"beside factors of that weight.*base_layer\.weight alone",
    ),
    "a magnitude of another length": (
        PLAIN | {f"base_model.model.{Q.format(layer)}.lora_magnitude_vector": torch.ones(6) for layer in (0, 1)},
        {"use_dora": True},
        r"4 outputs and a lora_magnitude_vector of \[6\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_file_and_configuration_disagree_on_is_refused(tmp_path, name):
    tensors, change, said = REFUSED[name]
    with pytest.raises(CheckpointError, match=said):
        open_adapter(write(tmp_path, CONFIG | change, tensors)).changes(BASE)


def test_what_the_base_does_not_have_need_not_be_saved(tmp_path):
    """PEFT itself names score and classifier in every classifier's configuration, of which a model has one."""
    folder = write(tmp_path, CONFIG | {"modules_to_save": ["score", "classifier"], "bias": "all"}, PLAIN)
    bare = BaseLayout({name: shape for name, shape in BASE.shapes.items() if name.endswith("weight")}, {})
    assert len(open_adapter(folder).changes(bare).tensors) == 2


def test_a_second_file_of_weights_is_told(tmp_path):
    folder = write(tmp_path / "mine", CONFIG, PLAIN)
    assert open_adapter(folder).changes(BASE).notes == []
    torch.save(OTHER, folder / "adapter_model.bin")
    assert open_adapter(folder).changes(BASE).notes == [
        "mine: adapter_model.bin lies beside adapter_model.safetensors and is not read."
    ]
    save_file(OTHER, folder / "unrelated.safetensors")
    assert len(open_adapter(folder).changes(BASE).notes) == 1


def test_a_trained_output_layer_that_the_selection_leaves_out_is_told(tmp_path):
    from glmspectra.sweep.delta_plan import DeltaOptions, plan_delta

    weights = {name: torch.ones(shape) for name, shape in BASE.shapes.items()}
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, 6),
        "base_model.model.lm_head.lora_B.weight": torch.ones(9, 2),
    }
    folder = write(tmp_path / "tuned", CONFIG | {"target_modules": ["q", "lm_head"]}, PLAIN | head)
    for matrices, results in ((None, True), ("all", False)):
        plan = plan_delta(tmp_path / "base", folder, DeltaOptions(device="cpu", quiet=True, matrices=matrices))
        plan.close()
        assert any("lm_head.weight; --matrices all" in note for note in plan.notes) == results
        assert ("lm_head.weight" in [record.name for record in plan.matrices]) != results
