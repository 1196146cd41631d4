"""Controls of the study: step sizes apart from ranks, cut adapters, the portfolio's tests and its picks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study import controls
from rank_study.bases import EOS, Base, byte_tokens, layer_linears
from rank_study.control_arms import CONTROLS, CUT, CUT_CONTINUED, FLOOR, MENU
from rank_study.cutting import keep_leading, singular_directions
from rank_study.facts import Facts
from rank_study.many_adapters import ManyAdapters
from rank_study.plan import Job
from rank_study.tasks import encode
from rank_study.third_base import neox_config
from rank_study.workers import run_cut, run_group, run_truncated


@pytest.fixture(scope="module")
def base():
    from transformers import GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = neox_config()
    config.update({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48})
    model = GPTNeoXForCausalLM(config).eval()
    return Base("neox", model, byte_tokens, [1], EOS, layer_linears(model), 64, "tiny")


@pytest.fixture(scope="module")
def rows(base):
    chance = np.random.default_rng(0)
    pairs = [(f"{n}: {chance.integers(1e6)}?", f"{chance.integers(1e3)}.") for n in range(60)]
    parts = {"train": pairs[:40], "development": pairs[40:50], "test": pairs[50:]}
    return {name: encode(part, base.tokens, base.prefix, base.eos, base.length) for name, part in parts.items()}


@pytest.fixture(scope="module")
def facts(base, rows, tmp_path_factory):
    return Facts(base, rows["train"], "medical", tmp_path_factory.mktemp("facts"), 2e-3, 12, 2, own_pilots=controls.SEEDS)


def job(arm, seed=300, budget=2, part="test", rate=4e-3):
    return Job("neox", "medical", arm, budget, seed, rate, part)


def test_all():
    pass


def lines_of(text):
    import json

    return [json.loads(line) for line in text.splitlines()]


def test_groups(base, rows, facts):
    ordinary = [name for name, c in CONTROLS.items() if c.lengths == 1 and name not in controls.CUTS]
    found = lines_of(run_group(base, rows, facts, [job(arm) for arm in ordinary], 4, 2))
    whole = 2 * sum(t.cost for t in facts.targets)
    for line in found:
        print(line["arm"], line["loss"], line["parameters"] / whole, line["adapted"])
    cut = [job(arm, seed, budget) for seed in (300, 301) for budget in (2, 4) for arm in controls.CUTS]
    for line in lines_of(run_cut(base, rows, facts, cut, 4, 2)):
        print(line)
    tests = [job(arm, seed, part="truncated") for seed in (300, 301) for arm in MENU]
    for line in lines_of(run_truncated(base, rows, facts, tests, 4, 2)):
        print(line)
