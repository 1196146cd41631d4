"""Bases of the rank study in little, with random weights."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study.bases import EOS, Base, byte_tokens, layer_linears
from rank_study.third_base import neox_config


def tiny_neox() -> Base:
    """Two layers of 32 over bytes."""
    from transformers import GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = neox_config()
    config.update({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48})
    model = GPTNeoXForCausalLM(config).eval()
    return Base("neox", model, byte_tokens, [1], EOS, layer_linears(model), 64, "tiny")
