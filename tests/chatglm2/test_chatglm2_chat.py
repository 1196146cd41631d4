"""Conversation: chat, stream_chat, and going on from keys and values of the rounds before."""

import itertools
import threading

import pytest
import torch
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmspectra.chatglm2.chat import ReadableTokens
from glmspectra.errors import GlmspectraError, RequestError

pytestmark = pytest.mark.shared

GREEDY = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "tokenizer" / "chatglm2")


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        kv_channels=16,
        num_attention_heads=4,
        multi_query_group_num=2,
    )
    return ChatGLMForConditionalGeneration(config).eval()


def test_chat_is_generate_on_the_prompt(model, tokenizer):
    history = [("你好", "你好！")]
    response, grown = model.chat(tokenizer, "头晕怎么办？", history, **GREEDY)
    inputs = tokenizer(tokenizer.build_prompt("头晕怎么办？", history), return_tensors="pt")
    output = model.generate(**inputs, logits_processor=LogitsProcessorList([ReadableTokens(64794)]), **GREEDY)
    new = output[0, inputs["input_ids"].shape[1] :]
    assert response == tokenizer.decode(new).strip()
    assert response
    assert grown == [("你好", "你好！"), ("头晕怎么办？", response)]
    assert history == [("你好", "你好！")]  # the caller's list is left alone


def test_streaming_ends_in_the_same_answer(model, tokenizer):
    expected, history = model.chat(tokenizer, "头晕怎么办？", **GREEDY)
    answers = list(model.stream_chat(tokenizer, "头晕怎么办？", **GREEDY))
    assert answers[-1] == (expected, history)
    texts = [text for text, _ in answers]
    assert len(texts) > 3
    assert all("\ufffd" not in text[-1:] for text in texts)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def test_going_on_from_the_state_of_the_last_round(model, tokenizer):
    def last(*arguments, **further):
        return list(model.stream_chat(tokenizer, *arguments, **GREEDY, return_past_key_values=True, **further))[-1]

    response, history, state = last("头晕怎么办？")
    assert state.cache.get_seq_length() >= len(state.token_ids) - 1
    second, longer, later = last("要吃药吗？", history, past_key_values=state)
    assert second == model.chat(tokenizer, "要吃药吗？", history, **GREEDY)[0]
    assert longer == [("头晕怎么办？", response), ("要吃药吗？", second)]
    ids = tokenizer(tokenizer.build_prompt("要吃药吗？", history))["input_ids"]
    assert later.token_ids[: len(ids)] == ids  # the state holds the conversation as it would be encoded anew


class Script(LogitsProcessor):
    """Has the model say these tokens, and then the first of them for ever."""

    def __init__(self, tokens, prompt_length):
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids, scores):
        said = input_ids.shape[1] - self.prompt_length
        token = self.tokens[said] if said < len(self.tokens) else self.tokens[0]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def script(tokenizer, answer, query, history=None):
    prompt = tokenizer.build_prompt(query, history)
    start = len(tokenizer(prompt)["input_ids"])
    return Script(tokenizer(prompt + answer)["input_ids"][start:], start)


def test_an_answer_ends_where_the_next_round_begins(model, tokenizer):
    """For a model that was not taught to end; every way of asking, and what is kept to go on from."""
    said = {"do_sample": False, "max_new_tokens": 200}
    ran_on = script(tokenizer, "多休息。\n\n多喝水。\n\n[Round 2]\n\n问：还有吗？", "头晕怎么办？")
    answer, history = model.chat(tokenizer, "头晕怎么办？", logits_processor=[ran_on], **said)
    assert answer == "多休息。\n\n多喝水。"
    assert history == [("头晕怎么办？", answer)]
    answers = list(model.stream_chat(tokenizer, "头晕怎么办？", logits_processor=[ran_on], **said))
    assert answers[-1] == (answer, history)
    assert all(answer.startswith(text) for text, _ in answers)  # nothing of the mark was ever shown
    assert len(answers) < 30

    *_, (_, _, state) = model.stream_chat(
        tokenizer, "头晕怎么办？", logits_processor=[ran_on], return_past_key_values=True, **said
    )
    ids = tokenizer(tokenizer.build_prompt("头晕怎么办？") + answer)["input_ids"]
    assert state.token_ids == ids
    assert state.cache.get_seq_length() <= len(ids)
    *_, (second, _) = model.stream_chat(tokenizer, "要吃药吗？", history, past_key_values=state, **GREEDY)
    assert second == model.chat(tokenizer, "要吃药吗？", history, **GREEDY)[0]


def test_what_only_looks_like_a_next_round_stays(model, tokenizer):
    text = "见\n\n[Ro"
    processor = script(tokenizer, text, "头晕")
    said = {"do_sample": False, "max_new_tokens": len(processor.tokens), "logits_processor": [processor]}
    assert model.chat(tokenizer, "头晕", **said)[0] == text
    assert list(model.stream_chat(tokenizer, "头晕", **said))[-1][0] == text


def test_an_abandoned_stream_ends(model, tokenizer):
    steps = []

    def never_ends(input_ids, scores):
        steps.append(input_ids.shape[1])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([1000]), 0.0)

    threads = set(threading.enumerate())
    stream = model.stream_chat(tokenizer, "头晕怎么办？", logits_processor=[never_ends], max_new_tokens=1000)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= threads, "closing waits for the thread"
    assert len(steps) < 500, "the thread would else go on to 1000 tokens"


def test_what_goes_wrong_in_the_thread_is_raised_here(model, tokenizer):
    def broken(input_ids, scores):
        raise ArithmeticError("in the thread")

    with pytest.raises(ArithmeticError, match="in the thread"):
        list(model.stream_chat(tokenizer, "头晕", logits_processor=[broken], **GREEDY))


def test_a_conversation_that_is_too_long(model, tokenizer):
    history = [("头晕" * 30, "休息" * 30)]
    with pytest.raises(RequestError, match="tokens and max_length is 64: drop early rounds"):
        model.chat(tokenizer, "头晕", history, max_length=64)
    with pytest.raises(RequestError, match="max_length is 64"):
        next(model.stream_chat(tokenizer, "头晕", history, max_length=64))


def test_ids_without_a_text_are_never_drawn(tokenizer):
    """The embedding has 230 rows more than the tokenizer has ids."""
    processor = ReadableTokens(tokenizer.vocab_size)
    scores = torch.zeros(1, 65024)
    scores[0, 65000] = 100.0
    assert processor(None, scores).argmax() < tokenizer.vocab_size
    assert scores.argmax() == 65000
    scores[0, 3] = torch.nan
    with pytest.raises(GlmspectraError, match="logits are not finite at the first generated token"):
        ReadableTokens(tokenizer.vocab_size)(None, scores)


def test_batch_generation_with_left_padding(model, tokenizer):
    prompts = [tokenizer.build_prompt(query) for query in ("药", "我最近总是头晕，血压偏高，应该吃什么药？")]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    together = model.generate(**batch, **GREEDY, eos_token_id=None)[:, batch["input_ids"].shape[1] :]
    for row, prompt in zip(together, prompts, strict=True):
        alone = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**alone, **GREEDY, eos_token_id=None)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(row, expected)
