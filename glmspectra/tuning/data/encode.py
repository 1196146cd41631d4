"""From a row to token ids and labels, cut to `max_length` by a stated policy.

Labels are -100 on everything but answers and the token that ends them. The first label of a row is always -100:
no token stands before the first to predict it, and so the supervised tokens of a batch are exactly the labels that
are not -100, packed or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from glmspectra.errors import RequestError
from glmspectra.tuning.data.rows import Row
from glmspectra.tuning.data.template import (
    Segment,
    Turn,
    TurnsRefused,
    chat_segments,
    plain_prompt,
    render,
    takes_system,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross-entropy leaves out
KEPT_CONTEXT = 4  # a context is never cut below 1/4 of max_length: what is left of an answer needs its question


@dataclass(frozen=True, slots=True)
class Example:
    """input_ids and labels of one length. `context_cut`, `target_cut`: tokens that were cut off each."""

    input_ids: list[int]
    labels: list[int]
    context_cut: int = 0
    target_cut: int = 0
    last_answer_only: bool = False


class Encoder:
    """Turns rows into examples.

    Args:
        tokenizer: The model's.
        template: "plain" or "chat", for rows that do not name their own.
        max_length: Tokens of an example at most.
        on_long: As in `finetune_args.json`.
        separator: What the plain template puts behind a context that ends in neither white space nor a colon.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int, on_long: str, separator: str = "\n"
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.on_long = on_long
        self.separator = separator
        if tokenizer.eos_token_id is None:
            raise RequestError(
                f"the tokenizer ({type(tokenizer).__name__}) has no eos token, so no answer could learn to end."
            )
        self.eos = int(tokenizer.eos_token_id)
        # Tokens that can end an answer. An unknown character is special to tokenizers, and is no end.
        self.special = {*tokenizer.all_special_ids, self.eos} - {tokenizer.unk_token_id}
        self.prefix, self.suffix = self._around()
        if len(self.prefix) + 4 > max_length:
            raise RequestError(f"max_length {max_length} leaves no room after the {len(self.prefix)} opening tokens.")

    def encode(self, row: Row) -> Example | str | None:
        """The example of a row; None when it is over-long and `on_long` drops it; a string says why it is bad."""
        turns = [Turn(role, text, index not in row.silent) for index, (role, text) in enumerate(row.turns)]
        template = self.template if row.template == "auto" else row.template
        if template == "plain":
            example = self._plain(turns)
        else:
            try:
                example = self._chat(turns if self.takes_system else _system_in_question(turns), row.tools)
            except TurnsRefused as fault:
                return str(fault)
        if isinstance(example, Example) and not set(example.labels) - self.special - {IGNORED}:
            return "no supervised token"
        return example

    # The plain template: everything happens in tokens.

    def _plain(self, turns: list[Turn]) -> Example | str | None:
        prompt = self._with_special(plain_prompt(turns, self.separator))
        answer = self._bare(turns[-1].text)
        if not answer:
            return "no supervised token"
        excess = len(prompt) + len(answer) + 1 - self.max_length
        if excess <= 0:
            return self._join(prompt, answer, ends=True)
        if self.on_long == "drop":
            return None
        if self.on_long == "error":
            return f"{excess + self.max_length} tokens, beyond max_length {self.max_length}"
        opening = len(self.prefix) if prompt[: len(self.prefix)] == self.prefix else 0
        spare = len(prompt) - opening - max(self.max_length // KEPT_CONTEXT - opening, 0)
        if self.on_long == "cut_context":
            from_context = max(min(excess, spare), 0)
            from_answer = excess - from_context
        else:  # the answer gives way first, down to one token
            from_answer = min(excess, len(answer))
            from_context = excess - from_answer
        if from_answer:  # what is cut does not end: eos is the first token to go
            answer = answer[: len(answer) - from_answer + 1]
        prompt = prompt[:opening] + prompt[opening + from_context :]
        return self._join(prompt, answer, from_answer == 0, from_context, from_answer)

    def _join(
        self, prompt: Sequence[int], answer: Sequence[int], ends: bool, context_cut: int = 0, target_cut: int = 0
    ) -> Example:
        ids = [*prompt, *answer, *([self.eos] if ends else [])]
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        labels[0] = IGNORED
        return Example(ids, labels, context_cut, target_cut)

    # The chat template: whole turns go first, then the start of the question, so that the template stays whole.

    def _chat(self, turns: list[Turn], tools: str) -> Example | str | None:
        example = self._chat_whole(turns, tools)
        length = len(example.input_ids)
        if length <= self.max_length:
            return example
        if self.on_long == "drop":
            return None
        if self.on_long == "error":
            return f"{length} tokens, beyond max_length {self.max_length}"
        shortened = turns
        while self.on_long == "cut_context" and length > self.max_length:
            shorter = self._shorten(shortened, length - self.max_length)
            if shorter is None:
                break
            shortened = shorter
            length = len(self._chat_whole(shortened, tools).input_ids)
        cut = self._chat_whole(shortened, tools)
        removed = len(example.input_ids) - len(cut.input_ids)
        excess = len(cut.input_ids) - self.max_length
        if excess > 0:
            ids, labels = cut.input_ids[: self.max_length], cut.labels[: self.max_length]
            cut = Example(ids, labels, removed, excess, cut.last_answer_only)
            if not any(label != IGNORED for label in labels):
                return f"its question alone has {self.max_length} tokens or more, with nothing left to learn"
            return cut
        return Example(cut.input_ids, cut.labels, removed, 0, cut.last_answer_only)

    def _shorten(self, turns: list[Turn], excess: int) -> list[Turn] | None:
        """Without the earliest question and its answers; of a single question, without its first `excess` tokens."""
        first = 1 if turns[0].role == "system" else 0
        later = next((at for at in range(first + 1, len(turns)) if turns[at].role == "user"), None)
        if later is not None:
            return turns[:first] + turns[later:]
        question = turns[first].text
        tokens = self._bare(question)
        keep = max(len(tokens) - excess, self.max_length // KEPT_CONTEXT)
        if keep >= len(tokens):
            return None
        text = str(self.tokenizer.decode(tokens[len(tokens) - keep :]))
        text = text.lstrip("\ufffd ")  # half a character may remain
        if len(text) >= len(question):
            return None
        return [*turns[:first], Turn("user", text), *turns[first + 1 :]]

    def _chat_whole(self, turns: list[Turn], tools: str) -> Example:
        segments, last_only = chat_segments(self.tokenizer, turns, tools)
        ids: list[int] = []
        labels: list[int] = []
        for number, segment in enumerate(segments):
            piece = self._segment(segment, first=number == 0)
            if segment.learnt:
                piece, learnt = self._ended(piece, last=number == len(segments) - 1)
                labels += piece[:learnt] + [IGNORED] * (len(piece) - learnt)
            else:
                labels += [IGNORED] * len(piece)
            ids += piece
        labels[0] = IGNORED
        return Example(ids, labels, last_answer_only=last_only)

    def _segment(self, segment: Segment, first: bool) -> list[int]:
        return self._with_special(segment.text) if first and self.opens_chat else self._bare(segment.text)

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template has a place for a system text."""
        return takes_system(self.tokenizer)

    @cached_property
    def opens_chat(self) -> bool:
        """Whether the tokenizer puts its opening tokens before a chat text, which do not stand in the text itself.

        Most templates write bos into the text; ChatGLM2's [gMASK] sop is no text.
        """
        messages = [{"role": "user", "content": "a"}]
        ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return list(ids) != self._bare(render(self.tokenizer, [Turn("user", "a")], ask=False))

    def _ended(self, piece: list[int], last: bool) -> tuple[list[int], int]:
        """An answer and how many of its tokens are learnt: up to the special token that ends it, which is learnt.

        A template that ends answers with none gets eos after the last one; after earlier answers the template goes on
        with the next question, and an eos there would be a text that is never seen when chatting.
        """
        ends = [index for index, token in enumerate(piece) if token in self.special]
        if ends and not str(self.tokenizer.decode(piece[ends[-1] + 1 :])).strip():
            return (piece[: ends[-1] + 1] if last else piece), ends[-1] + 1
        return ([*piece, self.eos], len(piece) + 1) if last else (piece, len(piece))

    def _around(self) -> tuple[list[int], int]:
        """What the tokenizer puts before any text ([gMASK] sop, bos, nothing), and how many tokens it appends."""
        bare, full = self._bare("a"), list(self.tokenizer.encode("a"))
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], len(full) - start - len(bare)
        return [], 0

    def _with_special(self, text: str) -> list[int]:
        """Tokens with what the tokenizer opens a text with; what some tokenizers append (eos) is taken off."""
        ids = list(self.tokenizer.encode(text))
        return ids[: len(ids) - self.suffix]

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _system_in_question(turns: list[Turn]) -> list[Turn]:
    """The system text at the head of the first question, for templates that have no place for it."""
    if turns[0].role != "system":
        return turns
    return [Turn(turns[1].role, f"{turns[0].text}\n\n{turns[1].text}", turns[1].learnt), *turns[2:]]
