"""Conversation on top of `generate`, with the signatures and defaults of the published code."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.tokenization_utils_base import BatchEncoding

from glmspectra.chatglm2.streaming import stream_tokens
from glmspectra.chatglm2.versions import CACHE
from glmspectra.errors import GlmspectraError, RequestError

if TYPE_CHECKING:
    from glmspectra.chatglm2.tokenization import ChatGLMTokenizer

History = list[tuple[str, str]]  # (question, answer) of each round
NEXT_ROUND = "\n\n[Round "  # a model that was not taught to end an answer goes on with the next question
MARK_TOKENS = 16  # no tokenizer of the family takes more for NEXT_ROUND


@dataclass(frozen=True)
class ChatState:
    """Where a conversation stands: keys and values of `token_ids`, the ids of all rounds so far without an end."""

    cache: Cache
    token_ids: list[int]


class ReadableTokens(LogitsProcessor):
    """Keeps generation to ids that the tokenizer has a text for, and stops on logits that are no numbers.

    The embedding has more rows (65024) than the tokenizer has ids (64794); a model that was never trained draws them.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.checked = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        if not self.checked:  # once: a check at each step would wait for the device each time
            self.checked = True
            if not bool(torch.isfinite(scores).all()):
                raise GlmspectraError(
                    "the model's logits are not finite at the first generated token: the weights overflow in this "
                    "type or are damaged; load them in bfloat16 or float32."
                )
        readable = scores.clone()  # `generate` may have been asked for the scores as they are
        readable[:, self.vocab_size :] = -torch.inf
        return readable


class NextRound(StoppingCriteria):
    """Ends a row once its answer has run on into the next round.

    The published model ends its answers itself; a base model, or one that was tuned on single questions, may not.
    """

    def __init__(self, tokenizer: "ChatGLMTokenizer", prompt_length: int):
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        start = max(self.prompt_length, input_ids.shape[1] - MARK_TOKENS)
        ended = [NEXT_ROUND in str(self.tokenizer.decode(row)) for row in input_ids[:, start:].tolist()]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def answer_so_far(text: str) -> str:
    """What of a growing text is certainly the answer: up to the next round, or up to what may yet become its mark."""
    answer, _, _ = text.partition(NEXT_ROUND)
    held = next((size for size in range(len(NEXT_ROUND) - 1, 0, -1) if answer.endswith(NEXT_ROUND[:size])), 0)
    return answer[: len(answer) - held]


class ChatMixin:
    """`chat`, `stream_chat` and `quantize` of `ChatGLMForConditionalGeneration`."""

    def process_response(self, response: str) -> str:
        """Text of an answer as it is shown: trimmed, with the one placeholder of the training data filled in."""
        return response.strip().replace("[[训练时间]]", "2023年")

    def build_inputs(self, tokenizer: "ChatGLMTokenizer", query: str, history: History | None = None) -> BatchEncoding:
        """Ids, mask and position ids, each [1, s], of the prompt for `query` after `history`, on the model's device."""
        prompt = tokenizer.build_prompt(query, history=history)
        encoded: BatchEncoding = tokenizer([prompt], return_tensors="pt")
        return encoded.to(self.device)  # type: ignore[attr-defined]

    def chat(
        self,
        tokenizer: "ChatGLMTokenizer",
        query: str,
        history: History | None = None,
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> tuple[str, History]:
        """Answer `query`. An answer that runs on into a next round of its own ends where that begins.

        Args:
            tokenizer: the checkpoint's own, which builds the prompt.
            query: the question of this round.
            history: (question, answer) pairs of the rounds before.
            max_length: tokens of prompt and answer together; `max_new_tokens` among `kwargs` takes its place.
            num_beams: beams of `generate`; 1 for none.
            do_sample: draw the tokens; otherwise the likeliest is taken.
            top_p: probability that the tokens drawn from make up together.
            temperature: divides the logits before drawing.
            logits_processor: processors of `generate` beside those that the other arguments ask for.
            **kwargs: further arguments of `generate`.

        Returns:
            The answer, and the history with this round at its end.

        Raises:
            RequestError: the prompt alone has `max_length` tokens or more.
        """
        history = list(history or [])
        inputs = self.build_inputs(tokenizer, query, history)
        settings = _settings(tokenizer, inputs, max_length, do_sample, top_p, temperature, logits_processor, kwargs)
        output = self.generate(**inputs, **settings, num_beams=num_beams)  # type: ignore[attr-defined]
        new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        response = self.process_response(str(tokenizer.decode(new_tokens)).partition(NEXT_ROUND)[0])
        return response, [*history, (query, response)]

    def stream_chat(
        self,
        tokenizer: "ChatGLMTokenizer",
        query: str,
        history: History | None = None,
        past_key_values: ChatState | None = None,
        max_length: int = 8192,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: LogitsProcessorList | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[str, History] | tuple[str, History, ChatState | None]]:
        """Answer `query`, yielding the answer so far and the history with it, each time it has grown.

        Args:
            tokenizer: as in `chat`.
            query: as in `chat`.
            history: as in `chat`.
            past_key_values: what the last round yielded under `return_past_key_values`; the rounds in `history` are
                then not computed again.
            max_length: as in `chat`.
            do_sample: as in `chat`.
            top_p: as in `chat`.
            temperature: as in `chat`.
            logits_processor: as in `chat`.
            return_past_key_values: yield a third value, the `ChatState` to go on from: None until the answer is
                complete.
            **kwargs: as in `chat`.

        What is raised is as in `chat`.
        """
        history = list(history or [])
        if past_key_values is None:
            inputs = self.build_inputs(tokenizer, query, history)
            cached: dict[str, Any] = {}
        else:
            inputs = self._build_stream_inputs(tokenizer, query, history, past_key_values)
            cached = {CACHE: past_key_values.cache}
        settings = _settings(tokenizer, inputs, max_length, do_sample, top_p, temperature, logits_processor, kwargs)
        result: dict[str, Any] = {}
        tokens: list[int] = []
        response = ""
        for token in stream_tokens(self, result, **inputs, **cached, **settings, return_dict_in_generate=True):
            tokens.append(token)
            text = str(tokenizer.decode(tokens))
            if text.endswith("\ufffd"):  # in the middle of a character of several bytes
                continue
            response = self.process_response(answer_so_far(text))
            grown = [*history, (query, response)]
            yield (response, grown, None) if return_past_key_values else (response, grown)
        # Cut short, it may end in half a character, or in what looked like the start of a next round.
        complete = self.process_response(str(tokenizer.decode(tokens)).partition(NEXT_ROUND)[0])
        grown = [*history, (query, complete)]
        if return_past_key_values:
            ids = inputs["input_ids"][0].tolist() + _of_the_answer(tokenizer, tokens)
            cache = result["output"][CACHE]
            beyond = cache.get_seq_length() - len(ids)
            if beyond > 0:
                cache.crop(-beyond)
            yield complete, grown, ChatState(cache=cache, token_ids=ids)
        elif complete != response:
            yield complete, grown

    def _build_stream_inputs(
        self, tokenizer: "ChatGLMTokenizer", query: str, history: History, state: ChatState
    ) -> BatchEncoding:
        """Inputs of the whole conversation, of which only the new round is encoded."""
        prompt = tokenizer.build_prompt(query, history=history)
        start = prompt.rindex(f"[Round {len(history) + 1}]")
        # Encoded with the line breaks before it; the first piece is the space that sentencepiece puts in front.
        new = tokenizer.encode("\n\n" + prompt[start:], add_special_tokens=False)[1:]
        ids = torch.tensor([state.token_ids + new], device=self.device)  # type: ignore[attr-defined]
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions})

    def quantize(self, bits: int) -> "ChatMixin":
        """Turn the linear weights of the layers into ChatGLM2's own 4- or 8-bit format, in place; returns the model."""
        from glmspectra.chatglm2.quantization import quantize_model

        quantize_model(self, bits)
        return self


def _of_the_answer(tokenizer: "ChatGLMTokenizer", tokens: list[int]) -> list[int]:
    """`tokens` without the end and without a next round."""
    kept = tokens[:-1] if tokens and tokens[-1] == tokenizer.get_command("<eos>") else list(tokens)
    length = len(str(tokenizer.decode(kept)).partition(NEXT_ROUND)[0])
    while len(str(tokenizer.decode(kept))) > length:
        kept.pop()
    return kept


def _settings(
    tokenizer: "ChatGLMTokenizer",
    inputs: BatchEncoding,
    max_length: int,
    do_sample: bool,
    top_p: float,
    temperature: float,
    logits_processor: LogitsProcessorList | None,
    further: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of `generate` for one round."""
    length = inputs["input_ids"].shape[1]
    further = dict(further)
    settings: dict[str, Any] = {
        "do_sample": do_sample,
        "stopping_criteria": StoppingCriteriaList(
            [*further.pop("stopping_criteria", []), NextRound(tokenizer, length)]
        ),
        "logits_processor": LogitsProcessorList([ReadableTokens(len(tokenizer)), *(logits_processor or [])]),
    }
    if do_sample:
        settings |= {"top_p": top_p, "temperature": temperature}
    if "max_new_tokens" not in further:
        if length >= max_length:
            raise RequestError(
                f"the conversation has {length} tokens and max_length is {max_length}: drop early rounds of the "
                "history or raise max_length."
            )
        settings["max_length"] = max_length
    return settings | further
