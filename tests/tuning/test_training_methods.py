"""All four methods on nano and the project's own sample data, to an adapter that helps on rows not trained
on."""

import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.tuning.inference.evaluation import evaluate, paired_interval
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.training.run import prepare_run, train
from tests.tuning.tiny_run import REPOSITORY_DATA, write_args

METHODS = {
    "lora": {"r": 8, "lora_alpha": 16},
    "qlora": {"r": 8, "lora_alpha": 16},
    "adalora": {"init_r": 12, "target_r": 8, "lora_alpha": 32, "orth_reg_weight": 0.1},
    "qadalora": {"init_r": 12, "target_r": 8, "lora_alpha": 32, "orth_reg_weight": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_method_lowers_the_loss_on_rows_not_trained_on(tmp_path, method):
    targets = ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"]
    args = write_args(
        tmp_path / "args",
        EMBEDDED_MODEL,
        REPOSITORY_DATA,
        {"method": method, "seed": 3, "max_length": 128},
        {"target_modules": targets, "lora_dropout": 0.05} | METHODS[method],
        {"max_steps": 16, "per_device_train_batch_size": 8, "learning_rate": 6e-3, "save_strategy": "no"},
    )
    settings = load_settings(args)
    run = prepare_run(settings, device="cpu", quiet=True)
    result = train(run)
    assert result["steps"] == 16
    found = evaluate(settings, settings.final_adapter, device="cpu")
    assert found.difference["rows"] == len(run.data.valid)
    assert found.difference["high"] < 0, found.difference
    assert found.tuned["perplexity"] == pytest.approx(math.exp(found.tuned["loss"]))
    if method.endswith("adalora"):
        assert sum(result["ranks"].values()) == 8 * len(result["ranks"])
        history = (run.output_dir / "rank_history.jsonl").read_text().splitlines()
        assert json.loads(history[-1])["ranks"] == result["ranks"]
    if method == "lora":
        check_by_hand(found, settings, run.data.valid)


def check_by_hand(found, settings, rows):
    """The losses of `evaluate`, once more from plain PEFT and the rows alone."""
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    model = PeftModelForCausalLM.from_pretrained(base, settings.final_adapter).eval()
    losses = {"tuned": [], "base": []}
    total, tokens = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            losses["tuned"].append(float(model(input_ids=ids, labels=labels).loss))
            with model.disable_adapter():
                losses["base"].append(float(model(input_ids=ids, labels=labels).loss))
        count = int((labels[:, 1:] != -100).sum())
        total, tokens = total + losses["tuned"][-1] * count, tokens + count
    assert found.tuned["loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert found.tuned["tokens"] == tokens
    expected = paired_interval(np.array(losses["base"]), np.array(losses["tuned"]))
    assert found.difference == pytest.approx(expected, abs=1e-5)
    # Inference as the original study does it.
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    answer, history = model.chat(tokenizer, "头痛怎么办？", history=[], do_sample=False, max_length=64)
    assert isinstance(answer, str)
    assert len(history) == 1


@pytest.mark.slow
@pytest.mark.shared
def test_the_original_studys_files_run_but_for_the_paths(tmp_path, shared):
    study = shared / "reference" / "study_runs"
    settings = load_settings(
        study / "args_file",
        overrides=[
            f"finetune.dataset_path={REPOSITORY_DATA}",
            f"finetune.model_path={EMBEDDED_MODEL}",
            f"finetune.final_model_path={tmp_path / 'final'}",
            f"train.output_dir={tmp_path / 'run'}",
            "train.max_steps=2",
        ],
    )
    assert any("evaluation_strategy" in note for note in settings.notes)
    run = prepare_run(settings, device="cpu", quiet=True)
    # What the files say, and nothing of ours in its place.
    config = run.model.peft_config["LoraAdapter"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (12, 48, 0.05)
    assert all(name.endswith("query_key_value") for name in config.target_modules)
    assert run.precision.compute == run.precision.weights == torch.float32
    assert run.trainer.args.learning_rate == 2e-5
    assert train(run)["steps"] == 2
    # Its adapter_config.json of 2023, beside factors of this model, loads.
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((study / "qlora" / "adapter_config.json").read_bytes())
    weights = tmp_path / "final" / "adapter_model.safetensors"
    (folder / weights.name).write_bytes(weights.read_bytes())
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    old = PeftModelForCausalLM.from_pretrained(base, folder)
    assert (old.peft_config["default"].r, old.peft_config["default"].lora_alpha) == (12, 24)
