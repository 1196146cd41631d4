"""`generate` as an iterator of token ids, so that a text can be shown while it grows."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class _Tokens(BaseStreamer):
    """Hands what `generate` produces over to another thread, token by token."""

    def __init__(self) -> None:
        self.items: queue.Queue[int | None] = queue.Queue()
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:  # the first call brings the prompt
            self.prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.items.put(token)

    def end(self) -> None:
        """The end is marked by the thread itself, after an error too."""


class _Abandoned(StoppingCriteria):
    """Ends a generation that nobody listens to any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def stream_tokens(model: Any, result: dict[str, Any], **generation: Any) -> Iterator[int]:
    """Yield each new token id of `model.generate(**generation)` for a batch of one.

    Args:
        model: anything with transformers' `generate`.
        result: receives the outcome of `generate` under `"output"` when it is through.
        generation: the arguments of `generate`; no beams.

    What `generate` raises is raised here. An iterator that is closed early ends the generation after its next token.
    """
    tokens, abandoned = _Tokens(), _Abandoned()
    criteria = StoppingCriteriaList([*generation.pop("stopping_criteria", []), abandoned])
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result["output"] = model.generate(**generation, streamer=tokens, stopping_criteria=criteria)
        except BaseException as error:  # handed over to the thread that waits
            failure.append(error)
        finally:
            tokens.items.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (token := tokens.items.get()) is not None:
            yield token
    finally:
        abandoned.event.set()
        thread.join()
    if failure:
        raise failure[0]
