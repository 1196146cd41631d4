"""Tokens and labels: what is learnt, what is cut, and the cache."""

import pytest

from glmspectra.errors import ConfigError, DataError, RequestError
from glmspectra.tuning.data import IGNORED, Encoder, Example, Row
from glmspectra.tuning.data.template import Turn, chat_segments, choose_template
from glmspectra.tuning.model.families import OTHER, family_of
from tests.tuning.data_tokenizers import REWRITING, TEMPLATE, character_tokenizer


def pair(context, target):
    return Row("f", 1, (("user", context), ("assistant", target)), True)


def talk(*turns):
    return Row("f", 1, turns, False)


def encoder(template="plain", max_length=1000, on_long="cut_context", tokenizer=None, separator=""):
    return Encoder(tokenizer or character_tokenizer(TEMPLATE, bos=True), template, max_length, on_long, separator)


def texts(maker, example):
    """(whole text, learnt text) of an example."""
    learnt = [label for label in example.labels if label != IGNORED]
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    return maker.tokenizer.decode(example.input_ids), maker.tokenizer.decode(learnt)


def test_plain_masks_the_context_and_learns_eos():
    maker = encoder()
    example = maker.encode(pair("感冒了?", "多喝水"))
    assert texts(maker, example) == ("<s>感冒了?多喝水</s>", "多喝水</s>")
    assert example.labels.index(example.input_ids[5]) == 5  # the first learnt label is the first token of the answer
    assert example.labels[-1] == maker.tokenizer.eos_token_id


def test_the_first_token_is_never_learnt():
    maker = encoder(tokenizer=character_tokenizer())
    example = maker.encode(pair("", "abc"))
    assert texts(maker, example) == ("abc</s>", "bc</s>")  # nothing stands before a to predict it


def test_chat_learns_every_answer_and_the_token_that_ends_it():
    maker = encoder("chat", tokenizer=character_tokenizer(TEMPLATE))
    row = talk(("system", "s"), ("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e"))
    whole, learnt = texts(maker, maker.encode(row))
    assert (
        whole == "<|system|>s<|end|>\n<|user|>a<|end|>\n<|assistant|>bc<|end|>\n<|user|>d<|end|>\n<|assistant|>e<|end|>"
    )
    assert learnt == "bc<|end|>e<|end|>"


def test_an_unknown_character_does_not_end_an_answer():
    maker = encoder("chat", tokenizer=character_tokenizer(TEMPLATE))
    example = maker.encode(pair("a", "b龘c"))
    assert texts(maker, example)[1] == "b<unk>c<|end|>"


def test_a_template_without_an_end_gets_eos():
    template = "{% for m in messages %}{{ m['content'] + ':' }}{% endfor %}"
    maker = encoder("chat", tokenizer=character_tokenizer(template))
    row = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert texts(maker, maker.encode(row)) == ("a:b:c:d:</s>", "b:d:</s>")


def test_a_template_that_rewrites_earlier_answers_teaches_the_last_only():
    tokenizer = character_tokenizer(REWRITING)
    turns = (("user", "a"), ("assistant", "why!b"), ("user", "c"), ("assistant", "d"))
    segments, last_only = chat_segments(tokenizer, [Turn(*turn) for turn in turns])
    assert last_only
    assert [(segment.text, segment.learnt) for segment in segments] == [
        ("<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>", False),
        ("d<|end|>", True),
    ]
    assert encoder("chat", tokenizer=tokenizer).encode(talk(*turns)).last_answer_only


def test_a_template_that_does_not_answer_where_it_asks():
    template = TEMPLATE.replace("'<|assistant|>' }}{% endif", "'?' }}{% endif")
    with pytest.raises(DataError, match="the chat template writes another text before an answer"):
        encoder("chat", tokenizer=character_tokenizer(template)).encode(pair("a", "b"))


def test_which_template_auto_means():
    with_form, without = character_tokenizer(TEMPLATE), character_tokenizer()
    study, llama = family_of({"model_type": "chatglm"}), family_of({"model_type": "llama"})
    assert choose_template("auto", study, with_form, False) == "plain"
    assert choose_template("auto", study, with_form, True) == "chat"
    assert choose_template("auto", llama, with_form, False) == "chat"
    assert choose_template("auto", llama, without, False) == "plain"
    assert choose_template("auto", OTHER, with_form, False) == "chat"
    assert choose_template("plain", llama, with_form, False) == "plain"
    with pytest.raises(ConfigError, match="has no chat template; use rows of context and target with template plain"):
        choose_template("auto", llama, without, True)
    with pytest.raises(ConfigError, match='template is "plain" and the data holds conversations'):
        choose_template("plain", llama, with_form, True)


@pytest.mark.parametrize("length", [14, 16, 17, 18, 26, 27, 28])
@pytest.mark.parametrize("on_long", ["cut_context", "cut_target"])
def test_a_long_pair_comes_to_exactly_max_length(length, on_long):
    maker = encoder(max_length=length, on_long=on_long)
    context, target = "abcdefghijklmno", "0123456789"  # 1 + 15 + 10 + 1 tokens
    example = maker.encode(pair(context, target))
    whole, learnt = texts(maker, example)
    assert whole.startswith("<s>")
    assert len(example.input_ids) == min(length, 27)
    excess = max(27 - length, 0)
    assert example.context_cut + example.target_cut == excess
    if on_long == "cut_context":  # the answer stays whole while a quarter of the row is context
        assert learnt == target + "</s>"
        assert whole == "<s>" + context[excess:] + target + "</s>"
    else:  # the answer goes from its end, eos first, down to one token, and then the context from its start
        kept = (target + "</s>") if excess == 0 else target[: 10 - min(excess, 10) + 1]
        assert learnt == kept
        assert whole == "<s>" + context[max(excess - 10, 0) :] + kept


def test_a_long_answer_is_cut_at_its_end_without_eos():
    maker = encoder(max_length=12)
    example = maker.encode(pair("abcdef", "0123456789" * 3))
    whole, learnt = texts(maker, example)
    assert whole == "<s>ef0123456780"[:5] + "012345678"  # a quarter of 12 is kept: <s> and two characters
    assert learnt == "012345678"
    assert (example.context_cut, example.target_cut) == (4, 22)
    assert len(example.input_ids) == 12


def test_long_pairs_that_are_not_cut():
    row = pair("a" * 50, "b")
    assert encoder(max_length=20, on_long="drop").encode(row) is None
    assert encoder(max_length=20, on_long="error").encode(row) == "53 tokens, beyond max_length 20"
    with pytest.raises(RequestError, match="max_length 4 leaves no room after the 1 opening tokens"):
        encoder(max_length=4)


def test_a_long_conversation_loses_its_first_turns_and_keeps_its_form():
    maker = encoder("chat", max_length=40, tokenizer=character_tokenizer(TEMPLATE))
    row = talk(("system", "s"), ("user", "a" * 20), ("assistant", "b"), ("user", "c" * 10), ("assistant", "d"))
    example = maker.encode(row)
    whole, learnt = texts(maker, example)
    assert whole == "<|system|>s<|end|>\n<|user|>cccccccccc<|end|>\n<|assistant|>d<|end|>"
    assert learnt == "d<|end|>"
    assert example.context_cut == 27
    single = maker.encode(pair("0123456789" * 6, "d"))
    whole, learnt = texts(maker, single)
    assert len(single.input_ids) == 40
    assert whole.startswith("<|user|>")
    assert whole.endswith("789<|end|>\n<|assistant|>d<|end|>")
    assert isinstance(encoder("chat", max_length=10).encode(pair("abcdefghij", "d" * 30)), Example | str)


def test_rows_with_nothing_to_learn_are_bad():
    assert encoder(tokenizer=character_tokenizer()).encode(pair("", "a")) == "no supervised token"
    maker = encoder("chat", max_length=12, on_long="cut_target", tokenizer=character_tokenizer(TEMPLATE))
    assert maker.encode(pair("a" * 30, "d")) == ("its question alone has 12 tokens or more, with nothing left to learn")


def test_a_tokenizer_without_eos():
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RequestError, match="has no eos token, so no answer could learn to end"):
        encoder(tokenizer=tokenizer)


@pytest.fixture(scope="module")
def chatglm_tokenizer(shared):
    from glmspectra.chatglm2 import ChatGLMTokenizer

    return ChatGLMTokenizer.from_pretrained(shared / "tokenizer/chatglm2")


@pytest.mark.shared
def test_chatglm2_plain_is_what_the_study_fed(chatglm_tokenizer):
    context, target = "问题：感冒了怎么办？\n回答: ", "多喝水。"
    example = Encoder(chatglm_tokenizer, "plain", 512, "error").encode(pair(context, target))
    prompt = chatglm_tokenizer.encode(context)
    answer = [*chatglm_tokenizer.encode(target, add_special_tokens=False), 2]
    assert prompt[:2] == [64790, 64792]
    assert example.input_ids == prompt + answer
    assert example.labels == [IGNORED] * len(prompt) + answer


@pytest.mark.shared
def test_chatglm2_chat_is_what_chat_asks_with(chatglm_tokenizer):
    maker = Encoder(chatglm_tokenizer, "chat", 512, "error")
    example = maker.encode(pair("感冒了怎么办？", "多喝水。"))
    prompt = chatglm_tokenizer.encode(chatglm_tokenizer.build_prompt("感冒了怎么办？"))
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert chatglm_tokenizer.decode(example.labels[len(prompt) :]) == "多喝水。"
    assert example.labels[-1] == 2
    two = maker.encode(talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    text = chatglm_tokenizer.build_prompt("c", [("a", "b")]) + "d"
    assert chatglm_tokenizer.decode(two.input_ids).replace(" ", "") == text.replace(" ", "")
    learnt = [label for label in two.labels if label != IGNORED]
    assert chatglm_tokenizer.decode(learnt).split() == ["b", "d"]
    assert learnt.count(2) == 1  # eos after the last answer only: the form goes on after the first


@pytest.mark.shared
def test_the_real_data_fits_and_is_learnt(chatglm_tokenizer, shared):
    from glmspectra.tuning.data.read import read_dataset
    from glmspectra.tuning.data.rows import Columns

    maker = Encoder(chatglm_tokenizer, "plain", 512, "error")
    rows = read_dataset(shared / "data/med", Columns())["valid"][:200]
    for row in rows:
        example = maker.encode(row)
        assert isinstance(example, Example)
        (_, context), (_, target) = row.turns
        learnt = [label for label in example.labels if label != IGNORED]
        assert learnt[-1] == 2
        assert chatglm_tokenizer.decode(learnt) == target
        assert example.labels.index(learnt[0]) == len(chatglm_tokenizer.encode(context))
