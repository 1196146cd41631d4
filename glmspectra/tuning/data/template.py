"""From a row to the text a model sees, in segments of which each is learnt or not.

plain: the context as it stands, then the target. It is what the original study did, whose contexts carry their own
    instruction, and so it is the default for ChatGLM2: prompt = tokenizer.encode(context), which puts [gMASK] sop
    in front, then the tokens of the target and eos.
chat: the tokenizer's chat template (ChatGLM2's is "[Round 1]\\n\\n问：...\\n\\n答：", the form that `model.chat` asks
    in). It is the default for instruction-tuned models, which have seen nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glmspectra.errors import ConfigError, DataError
from glmspectra.tuning.model.families import Family

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text; `learnt` when it is an answer."""

    text: str
    learnt: bool


def has_chat_form(tokenizer: Any) -> bool:
    """Whether the tokenizer knows how a conversation looks."""
    return bool(getattr(tokenizer, "chat_template", None))


def choose_template(wanted: str, family: Family, tokenizer: Any, conversations: bool) -> Literal["plain", "chat"]:
    """What `template` means for this model and data.

    Raises:
        ConfigError: chat is asked for, or needed for conversations, and the tokenizer has no chat form; or plain is
            asked for conversations.
    """
    if conversations and wanted == "plain":
        raise ConfigError(
            'template is "plain" and the data holds messages, whose turns only a chat form can mark; '
            'write template "chat" or "auto".'
        )
    if (wanted == "chat" or conversations) and not has_chat_form(tokenizer):
        raise ConfigError(
            f"the {'data holds messages' if conversations else 'template is chat'} and the tokenizer "
            f"({type(tokenizer).__name__}) has no chat template; use rows of context and target with template plain."
        )
    if wanted == "auto":
        return "chat" if conversations or (family.template == "chat" and has_chat_form(tokenizer)) else "plain"
    return "chat" if wanted == "chat" else "plain"


def render(tokenizer: Any, turns: Turns, ask: bool) -> str:
    """A conversation as text; `ask` appends what the model sees before it answers."""
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # a template is a program: what it raises has no common class
        raise DataError(f"the chat template refuses the turns {[role for role, _ in turns]}: {error}") from error


def chat_segments(tokenizer: Any, turns: Turns) -> tuple[list[Segment], bool]:
    """Segments of a conversation in which every answer is learnt.

    Some templates rewrite earlier turns (they strip the thinking out of all answers but the last). There the text
    before an answer is not the text that was before it when it was the last one, and only the last answer is learnt;
    the second result says so.

    Raises:
        DataError: the template does not answer where it asks, so that no answer can be marked.
    """
    segments: list[Segment] = []
    done = ""
    for index, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        prompt = render(tokenizer, turns[:index], ask=True)
        full = render(tokenizer, turns[: index + 1], ask=False)
        if not full.startswith(prompt):
            raise DataError(
                "the chat template writes another text before an answer than the one it asks with, so the answer "
                "cannot be told from its prompt; use rows of context and target with template plain."
            )
        if not prompt.startswith(done):
            return _last_answer_only(tokenizer, turns), True
        segments += [Segment(prompt[len(done) :], False), Segment(full[len(prompt) :], True)]
        done = full
    return segments, False


def _last_answer_only(tokenizer: Any, turns: Turns) -> list[Segment]:
    prompt = render(tokenizer, turns[:-1], ask=True)
    full = render(tokenizer, turns, ask=False)
    if not full.startswith(prompt):
        raise DataError("the chat template writes another text before the last answer than the one it asks with.")
    return [Segment(prompt, False), Segment(full[len(prompt) :], True)]
