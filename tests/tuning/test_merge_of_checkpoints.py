"""A checkpoint of a run merges as the final adapter of the same step does: where a start lies is known in one place."""

import pytest
import torch
from safetensors.torch import load_file

from glmspectra.checkpoint.writing.merge import merge
from glmspectra.tuning.training.run import train
from tests.tuning.tiny_run import make_run, write_data, write_model


@pytest.mark.parametrize(
    ("finetune", "lora"),
    [({"method": "qlora"}, {"init_lora_weights": "loftq"}), ({}, {"init_lora_weights": "pissa"})],
    ids=["loftq", "pissa"],
)
def test_a_checkpoint_merges_as_the_final_adapter_of_its_step(tmp_path, finetune, lora):
    model, data = write_model(tmp_path / "model", "chatglm"), write_data(tmp_path / "data", train=16, valid=4)
    run = make_run(tmp_path, model, data, finetune, lora | {"lora_dropout": 0.0}, {"max_steps": 4, "save_steps": 4})
    train(run)
    found = {}
    for name, adapter in (
        ("final", run.settings.final_adapter),
        ("checkpoint", run.output_dir / "checkpoint-4" / "LoraAdapter"),
    ):
        merge(model, adapter, tmp_path / f"merged-{name}")
        found[name] = load_file(tmp_path / f"merged-{name}" / "model.safetensors")
    base = load_file(model / "model.safetensors")
    changed = [name for name in base if not torch.equal(base[name], found["final"][name])]
    assert changed
    for name in base:
        assert torch.equal(found["final"][name], found["checkpoint"][name]), name
