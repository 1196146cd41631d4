"""Conversation on top of `generate`, with the signatures and defaults of the published code."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.tokenization_utils_base import BatchEncoding

from glmspectra.chatglm2.streaming import stream_tokens
from glmspectra.chatglm2.versions import CACHE
from glmspectra.errors import GlmspectraError, RequestError

if TYPE_CHECKING:
    from glmspectra.chatglm2.tokenization import ChatGLMTokenizer

History = list[tuple[str, str]]  # (question, answer) of each round


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


class ChatMixin:
    """`chat`, `stream_chat` and `quantize` of `ChatGLMForConditionalGeneration`."""

    def process_response(self, response: str) -> str:
        """Text of an answer as it is shown: trimmed, with the one placeholder of the training data filled in."""
        return response.strip().replace("[[训练时间]]", "2023年")

    def build_inputs(self, tokenizer: "ChatGLMTokenizer", query: str, history: History | None = None) -> BatchEncoding:
        """Ids, mask and position ids, each [1, s], of the prompt for `query` after `history`, on the model's device."""
        prompt = tokenizer.build_prompt(query, history=history)
        return tokenizer([prompt], return_tensors="pt").to(self.device)  # type: ignore[attr-defined]

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
        """Answer `query`.

        Args:
            history: (question, answer) pairs of the rounds before.
            max_length: tokens of prompt and answer together; `max_new_tokens` among `kwargs` takes its place.
            kwargs: further arguments of `generate`.

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
        response = self.process_response(str(tokenizer.decode(new_tokens)))
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
            past_key_values: what the last round yielded under `return_past_key_values`; the rounds in `history` are
                then not computed again.
            return_past_key_values: yield a third value, the `ChatState` to go on from: None until the answer is
                complete.

        The other arguments, and what is raised, are those of `chat`.
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
            response = self.process_response(text)
            grown = [*history, (query, response)]
            yield (response, grown, None) if return_past_key_values else (response, grown)
        if return_past_key_values:
            ids = inputs["input_ids"][0].tolist() + tokens
            if ids[-1] == tokenizer.get_command("<eos>"):
                ids.pop()
            state = ChatState(cache=result["output"][CACHE], token_ids=ids)
            yield response, [*history, (query, response)], state

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
        """Turn the linear weights of the layers into ChatGLM2's own 4- or 8-bit form, in place; returns the model."""
        from glmspectra.chatglm2.quantization import quantize_model

        quantize_model(self, bits)
        return self


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
    settings: dict[str, Any] = {
        "do_sample": do_sample,
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
