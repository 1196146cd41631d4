r"""From a row to the text a model sees, in segments of which each is learnt or not.

plain: the context as it stands, then the target. It is what the original study did, whose contexts carry their own
    instruction, and so it is the default for ChatGLM2: prompt = tokenizer.encode(context), which puts [gMASK] sop
    in front, then the tokens of the target and eos. A context that ends in neither white space nor a colon gets the
    separator behind it, so that question and answer do not run into one.
chat: the tokenizer's chat template (ChatGLM2's is "[Round 1]\n\n问：...\n\n答：", the text that `model.chat` asks
    in). It is the default for instruction-tuned models, which have seen nothing else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from glmspectra.errors import ConfigError, DataError
from glmspectra.tuning.model.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS = (":", "：")


class TurnsRefused(DataError):
    """The chat template cannot write the turns of one row."""


class Turn(NamedTuple):
    """One turn of a conversation; `learnt` counts for answers."""

    role: str
    text: str
    learnt: bool = True


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text; `learnt` when it is an answer that is learnt."""

    text: str
    learnt: bool


def has_chat_template(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer knows how a conversation looks."""
    return bool(getattr(tokenizer, "chat_template", None))


def choose_template(
    wanted: str, family: Family, tokenizer: "PreTrainedTokenizerBase", conversations: bool
) -> Literal["plain", "chat"]:
    """What `template` means for this model and data.

    Raises:
        ConfigError: chat is asked for, or needed for conversations, and the tokenizer has no chat template; or plain is
            asked for conversations.
    """
    if conversations and wanted == "plain":
        raise ConfigError(
            'template is "plain" and the data holds conversations (messages or a history), whose turns only a chat '
            'template can mark; write template "chat" or "auto".'
        )
    if (wanted == "chat" or conversations) and not has_chat_template(tokenizer):
        raise ConfigError(
            f"the {'data holds conversations' if conversations else 'template is chat'} and the tokenizer "
            f"({type(tokenizer).__name__}) has no chat template; use rows of context and target with template plain."
        )
    if wanted == "auto":
        return "chat" if conversations or (family.template == "chat" and has_chat_template(tokenizer)) else "plain"
    return "chat" if wanted == "chat" else "plain"


def plain_prompt(turns: Sequence[Turn], separator: str) -> str:
    """What stands before the answer in the plain template: system text and context, the separator where needed."""
    prompt = ""
    for turn in turns:
        if turn.role != "assistant":
            prompt += turn.text
            prompt += separator if turn.text and not turn.text[-1].isspace() and not turn.text.endswith(ENDS) else ""
    return prompt


def takes_system(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template writes a system text; some raise, some leave it out."""
    try:
        text = _rendered(tokenizer, [Turn("system", "SYSTEM?"), Turn("user", "a")], True, "")
    except Exception:  # a template is a program: what it raises has no common class
        return False
    return "SYSTEM?" in text


def render(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], ask: bool, tools: str = "") -> str:
    """A conversation as text; `ask` appends what the model sees before it answers.

    Raises:
        TurnsRefused: The template refuses the turns, or leaves one of them or the tools out.
    """
    roles = [turn.role for turn in turns]
    try:
        text = _rendered(tokenizer, turns, ask, tools)
    except Exception as error:  # see takes_system
        raise TurnsRefused(f"the chat template refuses the turns {roles}: {error}") from error
    for number, turn in enumerate(turns, 1):
        if turn.role != "assistant" and turn.text.strip() not in text:
            raise TurnsRefused(f"the chat template leaves out turn {number} ({turn.role})")
    if tools and text == _rendered(tokenizer, turns, ask, ""):
        raise TurnsRefused("the row has tools, and the chat template has no place for them")
    return text


def _rendered(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], ask: bool, tools: str) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    more = {"tools": json.loads(tools)} if tools else {}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **more))


def chat_segments(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], tools: str = ""
) -> tuple[list[Segment], bool]:
    """Segments of a conversation in which every answer is learnt whose turn says so.

    Some templates rewrite earlier turns (they strip the thinking out of all answers but the last). There the text
    before an answer is not the text that was before it when it was the last one, and only the last answer is learnt;
    the second result says so.

    Raises:
        DataError: the template does not answer where it asks, so that no answer can be marked.
    """
    segments: list[Segment] = []
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = render(tokenizer, turns[:index], True, tools)
        full = render(tokenizer, turns[: index + 1], False, tools)
        if not full.startswith(prompt):
            raise DataError(
                "the chat template writes another text before an answer than the one it asks with, so the answer "
                "cannot be distinguished from its prompt; use rows of context and target with template plain."
            )
        if not prompt.startswith(done):
            return _last_answer_only(tokenizer, turns, tools), True
        segments += [Segment(prompt[len(done) :], False), Segment(full[len(prompt) :], turn.learnt)]
        done = full
    return segments, False


def _last_answer_only(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], tools: str) -> list[Segment]:
    prompt = render(tokenizer, turns[:-1], True, tools)
    full = render(tokenizer, turns, False, tools)
    if not full.startswith(prompt):
        raise DataError("the chat template writes another text before the last answer than the one it asks with.")
    return [Segment(prompt, False), Segment(full[len(prompt) :], turns[-1].learnt)]
