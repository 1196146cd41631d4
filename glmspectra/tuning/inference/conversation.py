"""A conversation with any causal model that has a tokenizer: questions in, growing answers out."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from transformers.generation.logits_process import LogitsProcessorList

from glmspectra.chatglm2.chat import NEXT_ROUND, ReadableTokens, answer_so_far
from glmspectra.chatglm2.decode_graph import graph_settings
from glmspectra.chatglm2.streaming import stream_tokens
from glmspectra.errors import RequestError
from glmspectra.language import text
from glmspectra.tuning.data.template import Turn, plain_prompt, takes_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_SEPARATOR = "\n"  # as in training, where the settings do not say otherwise


class Conversation:
    """Keeps the rounds and asks the model with them.

    Args:
        model: anything with transformers' `generate`, on its device, in eval mode.
        tokenizer: its tokenizer.
        template: `"chat"` asks through the tokenizer's chat template, with the rounds before; `"plain"` gives the model
            the question alone, which is how an adapter trained with the plain template was asked.
        max_new_tokens: length of an answer.
        positions: tokens the model was made for; None where it does not say.
        system: a text that stands before the conversation, in the place that the chat template has for it.
        sampling: further arguments of `generate`.

    Raises:
        RequestError: There is a system text, and the template has no place for it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        template: str = "chat",
        max_new_tokens: int = 512,
        positions: int | None = None,
        system: str = "",
        **sampling: Any,
    ):
        if system and (template == "plain" or not takes_system(tokenizer)):
            raise RequestError(
                f"the {'plain template' if template == 'plain' else 'chat template of this model'} has no place for a "
                "system text; leave it out, or write it into the question."
            )
        self.system = system
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.positions = positions
        self.sampling = sampling or {"do_sample": False}
        self.rounds: list[tuple[str, str]] = []
        self.new_tokens = 0  # of the last answer

    def ask(self, query: str) -> Iterator[str]:
        """Yield the answer so far each time it has grown; the round is kept once the answer is complete.

        Raises:
            RequestError: the question is empty, or the conversation has more tokens than the model has positions.
        """
        if not query.strip():
            raise RequestError("the question is empty: write some text.")
        inputs = self._inputs(query)
        length = inputs["input_ids"].shape[1]
        if self.positions is not None and length >= self.positions:
            raise RequestError(
                f"the conversation has {length} tokens and the model has {self.positions} positions: "
                "begin a new conversation, or ask a shorter question."
            )
        tokens: list[int] = []
        answer = ""
        stream = stream_tokens(
            self.model,
            {},
            **inputs,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([ReadableTokens(len(self.tokenizer))]),
            **graph_settings(self.model, length + self.max_new_tokens),
            **self.sampling,
        )
        for token in stream:
            tokens.append(token)
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            if text.endswith("\ufffd"):  # in the middle of a character of several bytes
                continue
            ended = self.template == "chat" and NEXT_ROUND in text
            grown = self._shown(text)
            if grown != answer:
                answer = grown
                yield answer
            if ended:
                stream.close()  # type: ignore[attr-defined]  # a generator
                break
        self.new_tokens = len(tokens)
        self.rounds.append((query, answer))

    def _shown(self, text: str) -> str:
        """What of the text so far is the answer: up to the next round, or up to what may yet become its mark."""
        return (answer_so_far(text) if self.template == "chat" else text).strip()

    def clear(self) -> None:
        """Forget the rounds so far; the system text stays."""
        self.rounds.clear()

    def undo(self) -> bool:
        """Forget the last round; whether there was one."""
        return bool(self.rounds and self.rounds.pop())

    def _inputs(self, query: str) -> Any:
        if self.template == "plain":
            prompt = plain_prompt([Turn("user", query)], PLAIN_SEPARATOR)
            encoded = self.tokenizer([prompt], return_tensors="pt")
        else:
            messages = [{"role": "system", "content": self.system}] if self.system else []
            messages += [
                {"role": role, "content": text}
                for turn in self.rounds
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            encoded = self.tokenizer.apply_chat_template(
                [*messages, {"role": "user", "content": query}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
        return encoded.to(self.model.device)


def talk(conversation: Conversation, read: Callable[[], str], write: Callable[[str], None]) -> int:
    """Ask what `read` returns until it raises EOFError; `write` gets the answers piece by piece.

    A question that cannot be asked is answered by the sentence that says why. Ctrl-C stops an answer, of which nothing
    is kept then, and ends the conversation where a question is awaited. Returns how many were answered.
    """
    answered = 0
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            return answered
        if line in ("/exit", "/quit"):
            return answered
        if line.startswith("/"):
            write(_obey(conversation, line) + "\n")
        elif line:
            answered += _answer(conversation, line, write)
            write("\n")


def _obey(conversation: Conversation, command: str) -> str:
    """Carry out a command of `talk`; what is said to it."""
    if command == "/clear":
        conversation.clear()
        return text("chat-cleared")
    if command == "/undo":
        return text("chat-undone" if conversation.undo() else "chat-nothing-to-undo")
    if command == "/history":
        system = [f"(system) {conversation.system}"] if conversation.system else []
        rounds = [f"> {query}\n{answer}" for query, answer in conversation.rounds]
        return "\n".join([*system, *rounds]) or text("chat-no-rounds")
    return text("chat-help")


def _answer(conversation: Conversation, query: str, write: Callable[[str], None]) -> bool:
    """Write the answer to a question as it grows; whether it was answered to its end."""
    shown = ""
    try:
        for answer in conversation.ask(query):
            write(answer.removeprefix(shown) if answer.startswith(shown) else "\n" + answer)
            shown = answer
        return True
    except RequestError as error:
        write(str(error))
    except KeyboardInterrupt:
        write("\n" + text("chat-stopped"))
    return False
