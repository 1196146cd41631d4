"""The study's own machinery: jobs on one base do not touch each other, and one of them is PEFT's LoRA."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study.many_adapters import ManyAdapters, ManyLoraLinear, initial_down
from rank_study.statistics import holm, not_worse, paired, uniform_rank_of_equal_loss
from rank_study.tasks import encode, python_bodies, split

MODULES = ["q_proj", "down_proj"]


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()


def tiny_chatglm2(vocabulary=64, positions=64):
    from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "kv_channels": 8, "num_attention_heads": 4}
    groups = {"multi_query_attention": True, "multi_query_group_num": 2}
    ends = {"padded_vocab_size": vocabulary, "seq_length": positions}
    config = ChatGLMConfig(**sizes, **groups, **ends, add_qkv_bias=True, add_bias_linear=False, rmsnorm=True)
    return ChatGLMForConditionalGeneration(config).eval()


def names(model):
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.rpartition(".")[2] in MODULES]


def batch_of(seed, rows=3, length=10):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(jobs, steps=4):
    """Train (ranks, rate, seed) jobs together on their own batches; delta-W of each job a module."""
    model = tiny_llama()
    adapters = ManyAdapters(model, names(model), [j[0] for j in jobs], [j[1] for j in jobs], [j[2] for j in jobs])
    losses = []
    for step in range(steps):
        own = [batch_of(100 * seed + step) for _, _, seed in jobs]
        together = {key: torch.cat([b[key] for b in own]) for key in own[0]}
        losses.append(adapters.step(together, step / steps))
    change = {name: up @ down for name, up, down in adapters.factors()}
    return torch.stack(losses), change


def test_a_job_among_others_equals_the_job_alone():
    model = tiny_llama()
    one = dict.fromkeys(names(model), 2)
    two = {name: 4 if "q_proj" in name else 0 for name in names(model)}
    wide = dict.fromkeys(names(model), 11)  # alone the other two are half as wide
    jobs = [(one, 3e-3, 1), (two, 1e-2, 2), (wide, 5e-3, 3)]
    losses, change = train(jobs)
    for index, job in enumerate(jobs):
        alone_losses, alone = train([job])
        torch.testing.assert_close(losses[:, index], alone_losses[:, 0], atol=1e-5, rtol=0)
        for name, value in alone.items():
            torch.testing.assert_close(change[name][index], value[0], atol=1e-5, rtol=1e-4)


def test_rank_is_what_the_mask_says():
    model = tiny_llama()
    ranks = dict(zip(names(model), [1, 2, 3, 4], strict=True))
    _, change = train([(ranks, 1e-2, 5)], steps=6)
    for name, rank in ranks.items():
        assert torch.linalg.matrix_rank(change[name][0], rtol=1e-4) == rank


def test_what_fills_a_layer_up_to_whole_eights_is_never_trained():
    model = tiny_llama()
    ranks, steps = {name: 11 if "q_proj" in name else 3 for name in names(model)}, 4
    adapters = ManyAdapters(model, names(model), [ranks, dict.fromkeys(names(model), 2)], [1e-2] * 2, [1, 2])
    for step in range(steps):
        adapters.step({key: value.repeat(2, 1) for key, value in batch_of(step).items()}, step / steps)
    for name, rank in ranks.items():
        width = 16 if "q_proj" in name else 8
        for job, (seed, own) in enumerate(((1, rank), (2, 2))):
            down, up = (view[job] for view in adapters.of(adapters.master, name))
            assert down.shape[0] == up.shape[1] == width
            begin = initial_down(name, seed, width, down.shape[1])
            assert torch.equal(down[own:], begin[own:])
            assert not torch.isclose(down[:own], begin[:own]).all(1).any(), "every direction that counts has moved"
            assert not up[:, own:].any()
            assert up[:, :own].any(0).all()
            for values in (adapters.first, adapters.second, adapters.work, adapters.mask):
                down, up = (view[job] for view in adapters.of(values, name))
                assert not down[own:].any()
                assert not up[:, own:].any()


def test_one_job_follows_peft_under_adamw():
    from peft import LoraConfig, get_peft_model

    ranks = dict.fromkeys(names(tiny_llama()), 4)
    losses, change = train([(ranks, 5e-3, 3)])

    model = tiny_llama()
    starts = ManyAdapters(tiny_llama(), names(model), [ranks], [5e-3], [3])
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=MODULES))
    tuned.eval()
    for name, layer in starts.layers.items():
        tuned.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(layer.down.data[0, :4])
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    for step in range(4):
        progress = step / 4
        optimizer.param_groups[0]["lr"] = 5e-3 * min(progress / 0.05, (1 - progress) / 0.95, 1.0)
        loss = tuned(**batch_of(300 + step)).loss
        assert loss.item() == pytest.approx(losses[step, 0].item(), abs=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in change.items():
        expected = tuned.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(value[0], expected, atol=1e-5, rtol=1e-3)


def test_removing_the_adapters_gives_the_base_back():
    model = tiny_llama()
    before = model(input_ids=batch_of(0)["input_ids"]).logits
    adapters = ManyAdapters(model, names(model), [dict.fromkeys(names(model), 2)], [1e-2], [0])
    adapters.step(batch_of(0), 0.5)
    adapters.remove()
    assert not any(isinstance(module, ManyLoraLinear) for module in model.modules())
    torch.testing.assert_close(model(input_ids=batch_of(0)["input_ids"]).logits, before)


@pytest.mark.parametrize("model_type", ["llama", "chatglm"])
def test_padding_on_the_right_needs_no_mask(model_type):
    model = tiny_llama() if model_type == "llama" else tiny_chatglm2()
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n]
    rows = encode([("abc", "xyzxyz"), ("ab", "z"), ("q", "xy")], lambda t: [ord(c) - 90 for c in t], [1], 2, 16)
    whole = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        whole.detach().transpose(1, 2), rows.labels[:, 1:], reduction="none", ignore_index=-100
    ).sum(1)
    adapters = ManyAdapters(model, linears, [dict.fromkeys(linears, 1)] * 3, [1e-3] * 3, [0, 1, 2])
    for batch in (rows.take(torch.arange(3), "cpu"), {"input_ids": rows.input_ids, "labels": rows.labels}):
        total, count = adapters.losses(batch)
        torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)
        assert count.tolist() == [7, 2, 3]
    assert adapters.evaluate(rows.batches(2, "cpu")).tolist() == pytest.approx(
        [float(expected.sum()) / 12] * 3, rel=1e-6
    )


def test_rows_mask_the_prompt_and_learn_the_end():
    rows = encode([("abc", "xy"), ("p" * 40, "q" * 40)], lambda text: [ord(c) for c in text], [1], 2, 16)
    assert rows.input_ids[0, :7].tolist() == [1, 97, 98, 99, 120, 121, 2]
    assert rows.labels[0, :7].tolist() == [-100, -100, -100, -100, 120, 121, 2]
    assert (rows.labels[0, 7:] == -100).all()
    assert rows.attention_mask[0].sum() == 7
    assert rows.input_ids[1].tolist() == [1] + [112] * 7 + [113] * 8


@pytest.mark.slow
def test_splits_are_disjoint_and_python_bodies_are_many():
    pairs = python_bodies()
    training, development, test = split(pairs, 100)
    assert len(training) > 1000
    assert len(development) == len(test) == 100
    assert not {p for p, _ in training} & {p for p, _ in development + test}


def test_paired_and_holm_agree_with_scipy_and_the_paper():
    rng = np.random.default_rng(0)
    arm, uniform = rng.normal(size=10), rng.normal(size=10)
    found = paired(arm, uniform)
    assert found.p == pytest.approx(stats.ttest_rel(arm, uniform).pvalue)
    interval = stats.ttest_rel(arm, uniform).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), worked by hand
    assert not_worse(uniform, uniform + 1e-3 * rng.normal(size=10), margin=0.1) < 1e-6


def test_saving_is_read_off_the_uniform_curve_and_never_extrapolated():
    ranks, losses = [1, 2, 4, 8], [1.2, 1.1, 1.0, 0.9]
    for loss, rank, at_end in (
        (1.0, 4, False),
        (1.05, np.sqrt(8), False),
        (0.9, 8, True),
        (0.1, 8, True),
        (2, 1, True),
    ):
        found = uniform_rank_of_equal_loss(ranks, losses, loss)
        assert (found.rank, found.at_end) == (pytest.approx(rank), at_end)
    found = uniform_rank_of_equal_loss(ranks, [1.2, 1.1, 1.0, 1.1], 0.95)
    assert (found.rank, found.at_end) == (pytest.approx(4), True), "a rank that is worse than a smaller one is no point"
