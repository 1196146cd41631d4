"""The trainer against a plain loop, against full logits, against accumulation and against two processes."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, set_seed

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmspectra.errors import ConfigError
from glmspectra.tuning.data import PackedCollator, PaddingCollator
from glmspectra.tuning.data.batching import REAL_TOKENS, SUPERVISED, TrainingCollator
from glmspectra.tuning.data.packing import pack_dataset
from glmspectra.tuning.training import token_loss as token_loss_module
from glmspectra.tuning.training.run import train
from glmspectra.tuning.training.sampling import EpochSampler
from glmspectra.tuning.training.throughput import PEAK_FLOPS, Throughput
from glmspectra.tuning.training.token_loss import TokenLoss, linear_cross_entropy
from tests.faults.commands import begin_two
from tests.tuning.tiny_run import make_run, tokenizer, write_args, write_data, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "chatglm")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def logged(run, key="loss"):
    return [entry[key] for entry in run.trainer.state.log_history if key in entry]


# Loss


def test_chunked_loss_and_gradient_equal_those_of_full_logits(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator).requires_grad_()
    weight, bias = torch.randn(50, 16, generator=generator), torch.randn(50, generator=generator)
    targets = torch.randint(0, 50, (23,), generator=generator)
    scale = torch.rand(23, generator=generator)  # any weighting of tokens
    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits, targets, reduction="none")
    (wanted,) = torch.autograd.grad((expected * scale).sum(), hidden)
    monkeypatch.setattr(token_loss_module, "CHUNK_BYTES", 4 * 50 * 5)  # five rows at a time, three in the last
    found, correct = linear_cross_entropy(hidden, weight, bias, targets)
    (gradient,) = torch.autograd.grad((found * scale).sum(), hidden)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, wanted, atol=1e-6)
    assert torch.equal(correct, logits.argmax(-1) == targets)


def test_a_model_that_caps_its_logits_is_found_out():
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, vocab_size=60,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).requires_grad_(False)
    loss = TokenLoss(model)
    assert not loss.in_chunks
    tokens = torch.randint(0, 60, (2, 9))
    found = loss(model, {"input_ids": tokens, "labels": tokens})
    assert torch.allclose(found.nll.mean(), model(input_ids=tokens, labels=tokens).loss, atol=1e-5)


def test_padding_side_and_mask_change_no_loss(model):
    # What training feeds (padding on the right, no mask) against what the published tokenizer gives (on the left,
    # with mask and positions).
    glm = AutoModelForCausalLM.from_pretrained(model).requires_grad_(False).eval()
    loss = TokenLoss(glm)
    draw = torch.Generator().manual_seed(1)
    examples = []
    for length in (5, 17, 9):
        ids = torch.randint(3, 60, (length,), generator=draw).tolist()
        examples.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    padding = [17 - len(row["input_ids"]) for row in examples]
    left = {
        "input_ids": [[0] * pad + row["input_ids"] for pad, row in zip(padding, examples, strict=True)],
        "labels": [[-100] * pad + row["labels"] for pad, row in zip(padding, examples, strict=True)],
        "attention_mask": [[0] * pad + [1] * (17 - pad) for pad in padding],
        "position_ids": [[0] * pad + list(range(17 - pad)) for pad in padding],
    }
    left = {name: torch.tensor(values) for name, values in left.items()}
    moved = TrainingCollator(PaddingCollator(0))(examples)
    assert moved.pop(REAL_TOKENS).tolist() == [5 + 17 + 9]
    assert set(moved) == {"input_ids", "labels", SUPERVISED}
    assert moved[SUPERVISED].tolist() == [[0] * 3 + [1] * 15 + [2] * 7, [*range(1, 4), *range(1, 16), *range(1, 8)]]
    assert moved["input_ids"].tolist() == [row["input_ids"] + [0] * (17 - len(row["input_ids"])) for row in examples]
    assert moved["labels"].tolist() == [row["labels"] + [-100] * (17 - len(row["labels"])) for row in examples]
    with torch.no_grad():
        expected = loss(glm, left)
        found = loss(glm, moved)
        without = loss(glm, {name: values for name, values in moved.items() if name != SUPERVISED})
    assert torch.equal(found.nll, without.nll)
    assert torch.equal(expected.rows, found.rows)
    assert torch.allclose(expected.nll, found.nll, atol=1e-5)


@pytest.mark.parametrize("family", ["chatglm", "llama"])
def test_packed_rows_give_each_example_its_own_loss(tmp_path, family):
    from datasets import Dataset

    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path, family)).requires_grad_(False).eval()
    loss = TokenLoss(model)
    draw = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, 60, (length,), generator=draw).tolist() for length in (9, 14, 6, 11)]
    rows = [{"input_ids": row, "labels": [-100, *row[1:]], "length": len(row)} for row in ids]
    packed = pack_dataset(Dataset.from_list(rows), 23)
    assert len(packed) == 2
    with torch.no_grad():
        found = loss(model, PackedCollator(0)(list(packed))).nll
        single = [loss(model, PaddingCollator(0)([row])).nll for row in rows]
    expected = {round(float(nll), 4) for row in single for nll in row}
    assert len(found) == sum(len(row) for row in single)
    assert torch.allclose(found.sort().values, torch.cat(single).sort().values, atol=1e-5), expected


# Order


def test_order_is_a_function_of_seed_and_epoch_and_groups_by_length():
    lengths = [(index * 37) % 101 for index in range(330)]
    sampler = EpochSampler(lengths, 8, seed=3, strategy="group_by_length")
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(first) == list(range(330))
    sampler.set_epoch(1)
    assert list(sampler) != first
    batches = [[lengths[index] for index in first[start : start + 8]] for start in range(0, 328, 8)]
    assert max(batches[0]) == max(lengths)
    spread = sum(max(batch) - min(batch) for batch in batches) / len(batches)
    assert spread < 10  # random batches of 8 spread over some 79 of 101
    other = EpochSampler(lengths, 8, seed=4, strategy="group_by_length")
    assert list(other) != first
    assert list(EpochSampler(lengths, 8, 3, "sequential")) == list(range(330))


# Whole runs


def test_accumulation_changes_no_number(tmp_path, model, data):
    runs = []
    for name, batch, steps in (("whole", 8, 1), ("parts", 2, 4)):
        run = make_run(
            tmp_path / name, model, data, lora={"lora_dropout": 0.0},
            train={"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 5},
        )  # fmt: skip
        train(run)
        runs.append(run)
    assert logged(runs[0]) == pytest.approx(logged(runs[1]), abs=1e-6)
    assert logged(runs[0], "grad_norm") == pytest.approx(logged(runs[1], "grad_norm"), rel=1e-5)


def test_evaluation_is_over_tokens_not_batches(tmp_path, model, data):
    run = make_run(tmp_path, model, data, train={"eval_strategy": "steps", "per_device_eval_batch_size": 3})
    metrics = run.trainer.evaluate()
    base = run.trainer.token_loss.causal_lm
    nll, tokens, correct = 0.0, 0, 0
    for row in run.data.valid:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = base(input_ids=ids).logits[0, :-1].double()
        kept = labels[1:] != -100
        picked = logits.log_softmax(-1)[kept].gather(1, labels[1:][kept, None])
        nll, tokens = nll - float(picked.sum()), tokens + int(kept.sum())
        correct += int((logits[kept].argmax(-1) == labels[1:][kept]).sum())
    assert metrics["eval_tokens"] == tokens
    assert metrics["eval_loss"] == pytest.approx(nll / tokens, abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-6)
    assert metrics["eval_token_accuracy"] == pytest.approx(correct / tokens)


@pytest.mark.slow
@pytest.mark.shared
def test_a_run_on_the_real_data_equals_a_plain_loop(tmp_path, shared):
    # Real tokenizer, real medical rows, real vocabulary, a small ChatGLM2 shape.
    config = ChatGLMConfig(
        num_layers=4, hidden_size=256, ffn_hidden_size=688, num_attention_heads=8, kv_channels=32,
        multi_query_group_num=2, seq_length=512,
    )  # fmt: skip
    set_seed(0)
    folder = tmp_path / "model"
    ChatGLMForConditionalGeneration(config).save_pretrained(folder)
    for file in (shared / "tokenizer" / "chatglm2").iterdir():
        if file.is_file() and file.suffix != ".py":
            (folder / file.name).write_bytes(file.read_bytes())
    lines = (shared / "data/med/train.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    changes = {"max_length": 96, "seed": 7, "template": "auto"}
    steps, batch, rate = 4, 4, 1e-3
    run = make_run(
        tmp_path, folder, tmp_path / "rows.jsonl", changes, {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        {"max_steps": steps, "learning_rate": rate, "lr_scheduler_type": "linear", "max_grad_norm": 0.5},
    )  # fmt: skip
    fed, compute_loss = [], run.trainer.compute_loss
    run.trainer.compute_loss = lambda model, inputs, *rest, **named: (
        fed.append(dict(inputs)) or compute_loss(model, inputs, *rest, **named)
    )
    train(run)

    # The loop, from the files alone.
    from glmspectra.chatglm2.tokenization import ChatGLMTokenizer

    real = ChatGLMTokenizer.from_pretrained(folder)
    examples = []
    for line in lines:
        pair = json.loads(line)
        prompt = real.encode(pair["context"])
        answer = [*real.encode(pair["target"], add_special_tokens=False), real.eos_token_id]
        excess = max(len(prompt) + len(answer) - 96, 0)
        cut = min(excess, max(len(prompt) - 24, 0))  # a context keeps a quarter of max_length
        prompt = prompt[:2] + prompt[2 + cut :]
        if excess > cut:
            answer = answer[: len(answer) - (excess - cut)]
        examples.append((prompt + answer, [-100] * len(prompt) + answer))
    base = AutoModelForCausalLM.from_pretrained(folder)
    set_seed(7)
    plain = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    ).train()
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    order = list(EpochSampler([len(ids) for ids, _ in examples], batch, 7, "group_by_length"))
    losses, norms = [], []
    set_seed(7)  # as the Trainer does when it is made; dropout draws from here on
    for step, chosen in enumerate(DataLoader(examples, batch, sampler=order, collate_fn=list)):
        if step == steps:
            break
        width = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in chosen])
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in chosen])
        assert set(fed[step]) == {
            "input_ids",
            "labels",
            REAL_TOKENS,
            SUPERVISED,
        }  # padding is on the right: no mask is needed
        assert torch.equal(fed[step]["input_ids"], ids)
        assert torch.equal(fed[step]["labels"], labels)
        logits = plain(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = rate * (steps - step) / steps
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert len(fed) == len(losses) == steps
    assert logged(run) == pytest.approx(losses, abs=2e-6)
    assert logged(run, "grad_norm") == pytest.approx(norms, rel=1e-4)
    trained = load_file(run.settings.final_adapter / "adapter_model.safetensors")
    expected = dict(plain.named_parameters())
    for name, value in trained.items():
        mine = expected[name.replace(".weight", ".default.weight")]
        assert torch.allclose(value, mine.detach(), atol=5e-5), name


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, model, data):
    common = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 3}
    one = make_run(
        tmp_path / "one", model, data, lora={"lora_dropout": 0.0}, train=common | {"per_device_train_batch_size": 8}
    )
    train(one)
    args = write_args(tmp_path / "two" / "args", model, data, lora={"lora_dropout": 0.0}, train=common)
    both = begin_two(tmp_path, "train", "--args", args, "--device", "cpu", "--no-report", "--json", "--quiet")
    assert [process.wait() for process in both] == [0, 0], both[0].said()
    assert json.loads(both[0].said())["steps"] == 6  # one object, of the first process alone
    assert both[1].said() == ""
    history = json.loads((tmp_path / "two/run/trainer_state.json").read_text())["log_history"]
    for key in ("loss", "eval_loss", "grad_norm"):
        found = [entry[key] for entry in history if key in entry]
        assert found == pytest.approx(logged(one, key), abs=1e-6), key
    assert {entry["eval_tokens"] for entry in history if "eval_tokens" in entry} == set(logged(one, "eval_tokens"))


def test_tensorboard_gets_what_is_logged(tmp_path, model, data, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    run = make_run(tmp_path, model, data, train={"report_to": "tensorboard", "max_steps": 3})
    train(run)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(logged(run), rel=1e-6)


def test_a_tracker_that_is_not_installed_is_a_wrong_request(tmp_path, model, data):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError, match=r"report_to.*wandb"):
        make_run(tmp_path, model, data, train={"report_to": "wandb", "max_steps": 3})


# Rates


def test_throughput_counts_real_and_padded_tokens():
    rates = Throughput(torch.device("cpu"), parameters=1000, half=True, processes=2)
    rates.start(10.0)
    rates.count(torch.tensor([5]), torch.zeros(2, 4))
    rates.count(torch.tensor([8]), torch.zeros(2, 4))
    found = rates.measure(12.0)
    assert found == {"tokens_per_second": 13.0, "padded_tokens_per_second": 16.0}
    assert rates.measure(13.0) == {}
    rates.peak = PEAK_FLOPS["H100"]
    rates.count(None, torch.zeros(2, 4))
    assert rates.measure(14.0)["mfu"] == pytest.approx(4 * 1000 * 8 / 2 / 989e12)


def test_tokenizer_of_the_tests_is_the_models(model):
    assert len(tokenizer()) <= AutoModelForCausalLM.from_pretrained(model).config.padded_vocab_size
