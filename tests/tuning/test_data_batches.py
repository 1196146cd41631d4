"""Batches: padding, packing with attention kept apart, the cache, and the way from settings to a run's data."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as some

from glmspectra.errors import DataError
from glmspectra.tuning.data import IGNORED, PackedCollator, PaddingCollator, prepare_data
from glmspectra.tuning.data.packing import pack_dataset, pack_lengths
from glmspectra.tuning.model.families import FAMILIES, family_of
from glmspectra.tuning.settings.load import FinetuneArgs, LoraArgs, Settings
from glmspectra.tuning.settings.train_args import TrainArgs
from tests.tuning.data_tokenizers import TEMPLATE, character_tokenizer

LLAMA = family_of({"model_type": "llama"})


def test_padding_stands_on_the_right_of_every_example():
    batch = PaddingCollator(0)(
        [{"input_ids": [7, 8, 9], "labels": [IGNORED, 8, 9]}, {"input_ids": [5], "labels": [5], "length": 1}]
    )
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[7, 8, 9], [5, 0, 0]],
        "labels": [[IGNORED, 8, 9], [5, IGNORED, IGNORED]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert all(values.dtype == torch.int64 for values in batch.values())


@budget(max_examples=100, deadline=None)
@given(some.lists(some.integers(1, 40), max_size=60), some.integers(8, 40))
def test_packing_loses_nothing_and_overfills_nothing(lengths, size):
    rows = pack_lengths(lengths, size)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert all(total <= size or len(row) == 1 for total, row in zip(sums, rows, strict=True))
    # First-fit never leaves two rows that would go into one.
    fitting = sorted(total for total in sums if total <= size)
    assert len(fitting) < 2 or fitting[0] + fitting[1] > size


def test_packed_rows_start_positions_anew_and_pad_as_an_example_of_its_own():
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [IGNORED, 2, IGNORED, 4], "position_ids": [0, 1, 0, 1]},
        {"input_ids": [5, 6], "labels": [IGNORED, 6]},  # a single example, as evaluation has them
    ]
    batch = PackedCollator(9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED, 4], [IGNORED, 6, IGNORED, IGNORED]]
    flat = PackedCollator(9, one_row=True)(rows)
    assert flat["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert flat["position_ids"].tolist() == [[0, 1, 0, 1, 0, 1]]
    assert "attention_mask" not in batch


def tiny_model(name, attention):
    import transformers

    import glmspectra.chatglm2 as chatglm2

    torch.manual_seed(0)
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    if name == "chatglm":
        config = chatglm2.ChatGLMConfig(
            padded_vocab_size=64, hidden_size=32, num_layers=2, ffn_hidden_size=48, kv_channels=8,
            num_attention_heads=4, multi_query_group_num=2, seq_length=128,
        )  # fmt: skip
        model = chatglm2.ChatGLMForConditionalGeneration(config)
    else:
        configs = {
            "llama": transformers.LlamaConfig(**common, **heads),
            "qwen3": transformers.Qwen3Config(**common, **heads, head_dim=8),
            "glm": transformers.GlmConfig(**common, **heads, head_dim=8, pad_token_id=0),
            "mistral": transformers.MistralConfig(**common, **heads, sliding_window=None),
            "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128),
        }
        model = transformers.AutoModelForCausalLM.from_config(configs[name])
    model.set_attn_implementation(attention)
    return model.eval()


def losses(model, batch):
    """Negative log-likelihood of each supervised token [n], float64, in the order of the batch."""
    with torch.no_grad():
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits[:, :-1].double()
    labels = batch["labels"][:, 1:]
    keep = labels != IGNORED
    return torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="none")


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, "sdpa") for name in ("chatglm", "llama", "qwen3", "glm", "mistral", "gpt2")), ("chatglm", "eager")],
)
def test_packed_and_unpacked_losses_agree_per_example(name, attention):
    from datasets import Dataset

    model = tiny_model(name, attention)
    generator = torch.Generator().manual_seed(1)
    lengths = [9, 3, 14, 5, 7, 2, 11]
    ids = [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]
    labels = [[IGNORED] * (length // 2 + 1) + row[length // 2 + 1 :] for length, row in zip(lengths, ids, strict=True)]
    examples = [{"input_ids": row, "labels": mask} for row, mask in zip(ids, labels, strict=True)]
    padded = PaddingCollator(0)
    alone = [losses(model, padded([example])) for example in examples]
    together = losses(model, padded(examples))
    assert torch.allclose(torch.cat(alone), together, atol=1e-5)

    packed = pack_dataset(Dataset.from_list(examples), 20)
    assert sum(packed["examples"]) == 7
    assert len(packed) < 7
    order = [index for row in pack_lengths(lengths, 20) for index in row]
    expected = torch.cat([alone[index] for index in order])
    rows = [packed[index] for index in range(len(packed))]
    for collator in (PackedCollator(0), PackedCollator(0, one_row=True)):
        assert torch.allclose(losses(model, collator(rows)), expected, atol=1e-5)

    # The check can fail: with positions that run on, examples see those before them in their row.
    leaking = PackedCollator(0)([{**row, "position_ids": list(range(row["length"]))} for row in rows])
    assert not torch.allclose(losses(model, leaking), expected, atol=1e-2)


def make_settings(path, cache, on_bad_data="error", **keys):
    train = {"eval_strategy": keys.pop("eval_strategy", "no")}
    finetune = {"dataset_path": str(path), "cache_dir": str(cache), "on_bad_data": on_bad_data, "separator": "", **keys}
    return Settings(finetune=FinetuneArgs(**finetune), lora=LoraArgs(), train=TrainArgs(**train))


def write(path, pairs):
    lines = [json.dumps({"context": context, "target": target}, ensure_ascii=False) for context, target in pairs]
    path.write_text("\n".join(lines), encoding="utf-8")


PAIRS = [(f"q{n % 10} {n}", "answer " + "x" * (n % 7)) for n in range(40)]


def test_from_settings_to_datasets(tmp_path):
    write(tmp_path / "train.jsonl", PAIRS)
    settings = make_settings(tmp_path / "train.jsonl", tmp_path / "cache", eval_strategy="steps")
    data = prepare_data(settings, character_tokenizer(TEMPLATE), LLAMA, limit=64, vocabulary=100)
    assert (len(data.train), len(data.valid)) == (38, 2)
    assert data.report.template == "chat"
    assert data.report.lines()[-2:] == [
        "2 of 40 rows are kept for evaluation (valid_fraction 0.05).",
        "max_length 2,048 comes down to 64, the positions that the model has.",
    ]
    assert data.train["length"] == [len(ids) for ids in data.train["input_ids"]]
    counts = data.report.splits["train"]
    assert counts.tokens == sum(data.train["length"])
    assert counts.supervised_tokens == sum(label != IGNORED for row in data.train["labels"] for label in row)
    assert [row.turns[1][1] for row in data.rows["train"]] == [
        data.encoder.tokenizer.decode([label for label in labels if label != IGNORED]).removesuffix("<|end|>")
        for labels in data.train["labels"]
    ]
    batch = data.collator([data.train[0], data.train[1]])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_a_packed_run_evaluates_single_examples(tmp_path):
    write(tmp_path / "train.jsonl", PAIRS)
    write(tmp_path / "valid.jsonl", [("new", "row")])
    settings = make_settings(tmp_path, tmp_path / "cache", packing=True, max_length=80)
    data = prepare_data(settings, character_tokenizer(TEMPLATE), LLAMA)
    assert sum(data.train["examples"]) == 40
    assert max(data.train["length"]) <= 80
    assert data.report.splits["train"].packed_rows == len(data.train)
    assert "packed into" in data.report.lines()[2]
    assert len(data.valid) == 1
    assert data.collator([data.valid[0]])["position_ids"].tolist() == [list(range(data.valid[0]["length"]))]


def test_bad_rows_stop_the_run_or_are_left_out(tmp_path):
    write(tmp_path / "train.jsonl", [("a", "b"), ("c", "  "), ("e", "f")])
    write(tmp_path / "valid.jsonl", [("a", "b"), ("g", "h")])
    with pytest.raises(DataError) as caught:
        prepare_data(make_settings(tmp_path, tmp_path / "cache"), character_tokenizer(), LLAMA)
    assert str(caught.value) == (
        "2 rows cannot be used (1 empty target, 1 duplicate):\n"
        "  train.jsonl, line 2: empty target\n"
        "  valid.jsonl, line 1: duplicate of line 1 of train.jsonl, in train\n"
        "Mend them, or leave them out with --on-bad-data warn."
    )
    settings = make_settings(tmp_path, tmp_path / "cache", "warn")
    data = prepare_data(settings, character_tokenizer(), LLAMA)
    assert (len(data.train), len(data.valid)) == (2, 1)
    assert "left out: 2 rows cannot be used (1 empty target, 1 duplicate)" in data.report.lines()
    assert [bad["line"] for bad in data.report.as_dict()["bad_rows"]] == [2, 1]


def test_rows_that_turn_out_bad_in_tokens(tmp_path):
    write(tmp_path / "train.jsonl", [("a", "b"), ("", "c"), ("long" * 20, "d")])
    settings = make_settings(tmp_path / "train.jsonl", tmp_path / "cache", max_length=20, on_long="error")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError) as caught:
            prepare_data(settings, character_tokenizer(), LLAMA)
        assert "train.jsonl, line 2: no supervised token" in str(caught.value)
        assert "train.jsonl, line 3: 82 tokens, beyond max_length 20" in str(caught.value)


def test_long_pairs_are_counted(tmp_path):
    write(tmp_path / "train.jsonl", [("a", "b"), ("c" * 50, "d"), ("e", "f" * 50)])
    settings = make_settings(tmp_path / "train.jsonl", tmp_path / "cache", max_length=20)
    data = prepare_data(settings, character_tokenizer(), LLAMA)
    counts = data.report.splits["train"]
    assert (counts.context_cut, counts.target_cut, counts.dropped_long) == (1, 1, 0)
    assert counts.tokens_cut == 32 + 32
    assert data.report.lines()[2] == (
        "train: longer than max_length 20 (on_long cut_context): 1 lost the start of their context, 1 the end of "
        "their target (their eos is not learnt), 0 were left out; 64 tokens cut"
    )
    dropped = make_settings(tmp_path / "train.jsonl", tmp_path / "cache", max_length=20, on_long="drop")
    data = prepare_data(dropped, character_tokenizer(), LLAMA)
    assert len(data.train) == len(data.rows["train"]) == 1
    assert data.report.splits["train"].dropped_long == 2


def test_tokenized_once_and_anew_when_anything_changes(tmp_path, monkeypatch):
    from glmspectra.tuning.data import encode

    calls = []
    original = encode.Encoder.encode
    monkeypatch.setattr(encode.Encoder, "encode", lambda self, row: calls.append(row) or original(self, row))
    path = tmp_path / "train.jsonl"
    write(path, PAIRS)

    def made(tokenizer=None, **keys):
        before = len(calls)
        data = prepare_data(make_settings(path, tmp_path / "cache", **keys), tokenizer or character_tokenizer(), LLAMA)
        return data.train["input_ids"][:], len(calls) - before

    first, count = made()
    assert count == 40
    assert made() == (first, 0)
    path = path.rename(tmp_path / "other.jsonl")  # the content counts, not the name
    assert made() == (first, 0)
    assert made(max_length=30)[1] == 40
    assert made(on_long="drop")[1] == 40
    assert made(tokenizer=character_tokenizer(TEMPLATE))[1] == 40
    assert made(tokenizer=character_tokenizer(bos=True))[1] == 40
    write(path, [*PAIRS[:-1], ("another", "row")])
    assert made()[1] == 40
    for notes in (tmp_path / "cache").rglob("notes.json"):
        notes.write_text("{")  # a damaged cache is made anew
    assert made()[1] == 40
    assert made()[1] == 0
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"the tokenizer gives token \d+, and the model's embedding has 10 rows"):
        settings = make_settings(tmp_path / "train.jsonl", tmp_path / "cache")
        prepare_data(settings, character_tokenizer(), LLAMA, vocabulary=10)


def test_the_project_sample_is_sound(tmp_path):
    """480 rows to train on, 96 to evaluate on, none of them bad, no context in both."""
    from pathlib import Path

    import glmspectra.tuning.settings.presets as presets

    top = Path(__file__).parents[2]
    for name in ("train", "valid"):
        packaged = presets.PRESETS / "data" / f"{name}.jsonl"
        assert packaged.read_bytes() == (top / "data" / f"{name}.jsonl").read_bytes()
    settings = make_settings(presets.PRESETS / "data", tmp_path)
    data = prepare_data(settings, character_tokenizer(), LLAMA)
    assert (len(data.train), len(data.valid)) == (480, 96)
    assert data.report.bad == []
    assert data.report.shared_contexts == 0


def test_no_model_type_stands_in_two_families():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert family_of({"model_type": "unheard"}).default_targets == "all-linear"
    assert family_of({"model_type": "chatglm"}).default_targets == ["query_key_value"]
