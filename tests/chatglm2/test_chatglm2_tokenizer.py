"""The tokenizer against the published one's answers, and under today's transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorWithPadding

from glmspectra.chatglm2 import ChatGLMTokenizer
from glmspectra.errors import RequestError

FIELDS = ("input_ids", "attention_mask", "position_ids")


@pytest.fixture(scope="module")
def golden(shared) -> dict:
    return json.loads((shared / "golden" / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(shared) -> ChatGLMTokenizer:
    """As published: its tokenizer_config.json asks for remote code, and none is run."""
    loaded = AutoTokenizer.from_pretrained(shared / "tokenizer" / "chatglm2")
    assert type(loaded) is ChatGLMTokenizer
    return loaded


def messages(history: list, query: str) -> list[dict[str, str]]:
    rounds = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*rounds, {"role": "user", "content": query}]


@pytest.mark.shared
def test_every_text(golden, tokenizer):
    assert len(golden["cases"]) == 28
    for case in golden["cases"]:
        text, ids, bare = case["text"], case["ids_with_special_tokens"], case["ids_without_special_tokens"]
        assert tokenizer(text)["input_ids"] == ids, case["name"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == bare, case["name"]
        assert tokenizer.tokenize(text) == case["pieces"], case["name"]
        assert tokenizer.decode(ids) == case["decoded_with_special_tokens"], case["name"]
        assert tokenizer.decode(bare) == case["decoded_without_special_tokens"], case["name"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == case["decoded_skip_special_tokens"], case["name"]
    batch = tokenizer([case["text"] for case in golden["cases"]])
    assert batch["input_ids"] == [case["ids_with_special_tokens"] for case in golden["cases"]]


@pytest.mark.shared
def test_prompts_and_the_chat_template(golden, tokenizer):
    assert golden["build_prompt"]
    for case in golden["build_prompt"]:
        assert tokenizer.build_prompt(case["query"], [tuple(pair) for pair in case["history"]]) == case["prompt"]
        expected = {field: case[field] for field in FIELDS}
        assert dict(tokenizer(case["prompt"])) == expected
        conversation = messages(case["history"], case["query"])
        assert dict(tokenizer.apply_chat_template(conversation, add_generation_prompt=True)) == expected
        rendered = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert rendered == case["prompt"]
    batched = tokenizer.apply_chat_template(
        [messages(case["history"], case["query"]) for case in golden["build_prompt"]],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
    )
    assert batched["input_ids"].shape[0] == len(golden["build_prompt"])
    for row, mask, case in zip(batched["input_ids"], batched["attention_mask"], golden["build_prompt"], strict=True):
        assert row[mask.bool()].tolist() == case["input_ids"]


@pytest.mark.shared
def test_padding_and_pairs(golden, tokenizer):
    assert golden["padding"]
    for case in golden["padding"]:
        encoded = tokenizer(case["texts"], **case["arguments"])
        for field in FIELDS:
            assert encoded[field] == case[field], (case["arguments"], field)
    for case in golden["pairs"]:
        assert tokenizer(case["text_a"], case["text_b"])["input_ids"] == case["call"]
        parts = [tokenizer(case[key], add_special_tokens=False)["input_ids"] for key in ("text_a", "text_b")]
        assert tokenizer.build_inputs_with_special_tokens(*parts) == case["build_inputs_with_special_tokens"]


@pytest.mark.shared
def test_special_ids(golden, tokenizer):
    special = golden["special"]
    for name in ("gMASK", "MASK", "sMASK"):
        assert tokenizer.get_command(f"[{name}]") == special[name]
    for name in ("sop", "eop"):
        assert tokenizer.get_command(name) == special[name]
    for name in ("bos", "eos", "pad"):
        assert tokenizer.get_command(f"<{name}>") == special[name]
    for attribute in ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "unk_token", "bos_token", "vocab_size"):
        assert getattr(tokenizer, attribute) == special[attribute], attribute
    assert tokenizer.padding_side == special["padding_side"]
    assert tokenizer.model_input_names == special["model_input_names"]
    assert tokenizer.get_prefix_tokens() == special["prefix_tokens"]
    for index, text in special["decode_of_each_special_id"].items():
        if isinstance(text, dict):
            with pytest.raises(IndexError, match=f"id {index} has no text"):
                tokenizer.decode([int(index)])
        else:
            assert tokenizer.decode([int(index)]) == text, index
    for index, token in special["convert_ids_to_tokens"].items():
        assert tokenizer.convert_ids_to_tokens(int(index)) == token
    with pytest.raises(RequestError, match="no special token '<mask>'"):
        tokenizer.get_command("<mask>")


@pytest.mark.shared
def test_resizing_by_length_keeps_every_id(tokenizer):
    """The published tokenizer's len() is 64787, below its own [gMASK]; ours counts every id."""
    assert len(tokenizer) == tokenizer.vocab_size == 64794
    assert sorted(tokenizer.get_vocab().values()) == list(range(64794))


@pytest.mark.shared
def test_special_tokens_in_a_text_are_text(tokenizer):
    for text in ("</s>", "<unk>", "[gMASK]", "sop", "问：</s>[gMASK]sop"):
        ids = tokenizer(text)["input_ids"]
        assert ids[:2] == [64790, 64792]
        assert not {0, 2, 64790, 64792} & set(ids[2:]), text
        assert tokenizer.decode(ids) == text


@pytest.mark.shared
def test_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "plain")
    saved = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in saved
    again = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert type(again) is ChatGLMTokenizer
    text = "我最近总是头晕</s>"
    assert dict(again(text)) == dict(tokenizer(text))
    assert again.chat_template == tokenizer.chat_template
    assert (again.padding_side, again.pad_token_id, again.eos_token_id) == ("left", 0, 2)

    again.add_tokens(["<科室>"])
    again.pad_token = "</s>"
    again.save_pretrained(tmp_path / "changed")
    changed = AutoTokenizer.from_pretrained(tmp_path / "changed")
    assert changed("去<科室>看")["input_ids"][2:] == [*tokenizer.encode("去")[2:], 64794, *tokenizer.encode("看")[2:]]
    assert len(changed) == 64795
    assert changed.pad_token_id == 2


@pytest.mark.shared
def test_collators(tokenizer):
    texts = ["头晕", "我最近总是头晕，血压偏高", "药"]
    rows = [tokenizer(text) for text in texts]
    lengths = [len(row["input_ids"]) for row in rows]
    for collator in (DataCollatorWithPadding(tokenizer), DataCollatorForLanguageModeling(tokenizer, mlm=False)):
        batch = collator([dict(row) for row in rows])
        for index, length in enumerate(lengths):
            width = batch["input_ids"].shape[1]
            assert batch["attention_mask"][index].tolist() == [0] * (width - length) + [1] * length
            assert batch["position_ids"][index].tolist() == [0] * (width - length) + list(range(length))
            assert (batch["input_ids"][index][: width - length] == 0).all()
    labelled = [{**row, "labels": row["input_ids"]} for row in rows]
    batch = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)(labelled)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["position_ids"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)


@pytest.mark.shared
@pytest.mark.parametrize("side", ["left", "right", None])
def test_padding_side_can_be_given(tokenizer, side):
    """What `_pad() got an unexpected keyword argument 'padding_side'` was about; None means the tokenizer's own."""
    encoded = tokenizer(["头晕", "我最近总是头晕"], padding=True, padding_side=side)
    mask = encoded["attention_mask"][0]
    assert mask == (sorted(mask, reverse=True) if side == "right" else sorted(mask))
    positions = encoded["position_ids"][0]
    assert [position for position, token in zip(positions, mask, strict=True) if token] == list(range(sum(mask)))
    assert [position for position, token in zip(positions, mask, strict=True) if not token] == [0] * (
        len(mask) - sum(mask)
    )


@pytest.mark.shared
def test_template_with_a_system_message_and_with_a_finished_answer(tokenizer):
    conversation = [{"role": "system", "content": "你是医生。"}, {"role": "user", "content": "头晕"}]
    assert tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True) == (
        tokenizer.build_prompt("你是医生。头晕")
    )
    finished = [*messages([], "头晕"), {"role": "assistant", "content": "多休息。"}]
    assert tokenizer.apply_chat_template(finished, tokenize=False) == tokenizer.build_prompt("头晕") + "多休息。"
    ids = tokenizer.apply_chat_template(finished, return_dict=False, return_tensors="pt")
    assert ids[0].tolist() == tokenizer(tokenizer.build_prompt("头晕") + "多休息。")["input_ids"]
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_files_that_are_no_tokenizer(tmp_path: Path):
    with pytest.raises(RequestError, match="there is no tokenizer"):
        ChatGLMTokenizer(str(tmp_path / "tokenizer.model"))
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # GLM-4's form
    with pytest.raises(RequestError, match="is not a sentencepiece model"):
        ChatGLMTokenizer(str(tmp_path / "tokenizer.model"))


@pytest.mark.shared
def test_chatglm3_is_told_apart(shared, tmp_path):
    """One sentencepiece model, another form of conversation: texts work, rounds are refused."""
    for name, settings in (
        ("chatglm3-6b", {}),
        ("tuned", {"added_tokens_decoder": {"64795": {"content": "<|user|>", "special": True}}}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.model").symlink_to(shared / "tokenizer" / "chatglm2" / "tokenizer.model")
        settings = {"tokenizer_class": "ChatGLMTokenizer", **settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        tokenizer = ChatGLMTokenizer.from_pretrained(folder)
        assert tokenizer("头晕")["input_ids"][:2] == [64790, 64792]
        with pytest.raises(RequestError, match="ChatGLM3's tokenizer"):
            tokenizer.build_prompt("头晕")
