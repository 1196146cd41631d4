"""The embedded checkpoint: it is what the script makes, and it is trained enough to look like a trained model."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmspectra.chatglm2  # noqa: F401  (registers the Auto classes)
from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.spectra import spectra_of, summarize_spectrum

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "data" / "corpus"
SCRIPTS = ROOT / "scripts" / "nano"


def documents(name):
    return [json.loads(line)["text"] for line in (CORPUS / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()


def encode(tokenizer, text):
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


class Trigram:
    """Interpolated trigram model (Jelinek & Mercer 1980): a fixed mixture of trigram, bigram, unigram and uniform."""

    def __init__(self, rows, vocabulary):
        self.vocabulary = vocabulary
        self.counts = [Counter(), Counter(), Counter()]
        self.contexts = [Counter(), Counter(), Counter()]
        for row in rows:
            for place in range(2, len(row)):
                for order in range(3):
                    context = tuple(row[place - order : place])
                    self.counts[order][(*context, row[place])] += 1
                    self.contexts[order][context] += 1

    def loss(self, rows, weights):
        """Mean -log p in nats over the tokens after the two of the prefix."""
        total = count = 0
        for row in rows:
            for place in range(2, len(row)):
                p = weights[3] / self.vocabulary
                for order in range(3):
                    context = tuple(row[place - order : place])
                    seen = self.contexts[order][context]
                    if seen:
                        p += weights[2 - order] * self.counts[order][(*context, row[place])] / seen
                total -= math.log(p)
                count += 1
        return total / count


def test_it_is_small_half_precision_and_fit_for_nf4():
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        matrices = select(checkpoint)
        assert len(matrices) == 8 * 4
        assert all(record.dtype == "float16" for record in matrices)
        assert all(rows % 64 == 0 and cols % 64 == 0 for rows, cols in (record.shape for record in matrices))
        assert sum(record.nbytes for record in checkpoint.tensors.values()) < 5e6


@pytest.mark.slow
def test_heldout_loss_is_below_the_best_trigram_mixture(model, tokenizer):
    training = [encode(tokenizer, text) for text in documents("train.jsonl")]
    heldout = [encode(tokenizer, text) for text in documents("heldout.jsonl")][:150]
    trigram = Trigram(training, len(tokenizer))
    # The mixture is chosen on the held-out text itself, which can only help the trigram model.
    mixtures = [(t, (1 - t) * 0.7, (1 - t) * 0.299, (1 - t) * 0.001) for t in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)]
    best = min(trigram.loss(heldout, weights) for weights in mixtures)

    total = count = 0
    with torch.no_grad():
        for row in heldout:
            logits = model(input_ids=torch.tensor([row])).logits[0, 1:-1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(row[2:]), reduction="sum").item()
            count += len(row) - 2
    assert total / count < best, f"nano {total / count:.4f}, trigram {best:.4f} nats a token"


def test_more_spikes_than_the_same_matrices_shuffled():
    generator = torch.Generator().manual_seed(0)
    trained = shuffled = 0
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        for record in select(checkpoint, matrices=["dense", "dense_4h_to_h"]):
            weight = checkpoint.read(record.name).float()
            mixed = weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight)
            trained += summarize_spectrum(spectra_of(weight)["whole"])["mp_spikes"]
            shuffled += summarize_spectrum(spectra_of(mixed)["whole"])["mp_spikes"]
    assert shuffled <= 16  # at most one a matrix: noise
    assert trained > 3 * max(shuffled, 1)


def test_it_answers_a_question_like_those_it_learnt(model, tokenizer):
    answer, history = model.chat(tokenizer, "咳嗽、发烧应该看什么科？", do_sample=False)
    assert "科" in answer
    assert len(answer) < 200
    assert history


def test_the_text_is_what_its_script_writes(tmp_path):
    sys.path.insert(0, str(SCRIPTS))
    try:
        import write_corpus
    finally:
        sys.path.remove(str(SCRIPTS))
    training, heldout = write_corpus.documents()
    assert training == documents("train.jsonl")
    assert heldout == documents("heldout.jsonl")
    assert not set(training) & set(heldout)


@pytest.mark.slow
def test_the_script_repeats_its_recorded_first_loss_and_the_tokenizer(tmp_path):
    """The first ten steps of the same schedule, to 0.5 %, since another processor sums in another order."""
    command = [
        sys.executable,
        str(SCRIPTS / "train.py"),
        "--work",
        str(tmp_path),
        "--stop-after",
        "10",
        "--threads",
        "1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    recorded, repeated = (
        [entry["loss"] for entry in json.loads(path.read_text())["log_history"] if "loss" in entry][:1]
        for path in (EMBEDDED_MODEL / "trainer_state.json", tmp_path / "trainer_state.json")
    )
    assert len(repeated) == 1
    np.testing.assert_allclose(repeated, recorded, rtol=5e-3)
    assert (tmp_path / "tokenizer.model").read_bytes() == (EMBEDDED_MODEL / "tokenizer.model").read_bytes()
