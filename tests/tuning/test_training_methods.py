"""All four methods on nano and the project's own sample data, to an adapter that helps on rows not trained
on."""

import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModelForCausalLM
from tiny_run import REPOSITORY_DATA, write_args
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmspectra.checkpoint import EMBEDDED_MODEL
from glmspectra.tuning.evaluation import evaluate, paired_interval
from glmspectra.tuning.settings import load_settings
from glmspectra.tuning.training import prepare_run, train

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
