"""The turns of a conversation, from the ways in which data sets write them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool",
    "function_call": "assistant",
}  # fmt: skip
# One entry a round, as XTuner, Firefly and MOSS write conversations.
ROUNDS = (
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("human", "assistant"),
)
LEARNING = ("weight", "loss", "train")
CONTENT = ("role", "from", "content", "value", *LEARNING)
# Parts of a turn that are no text: a row is not understood without them.
REFUSED = (
    "tool_calls", "function_call", "reasoning_content", "thinking",
    "images", "image", "audio", "audios", "video", "videos",
)  # fmt: skip


@dataclass
class Talk:
    """Turns of (role, text), and the indices of the answers that are not learnt."""

    turns: list[tuple[str, str]]
    silent: list[int] = field(default_factory=list)
    pair: bool = False
    tools: str = ""
    unanswered: bool = False
    unread: set[str] = field(default_factory=set)

    def put_before(self, turns: list[tuple[str, str]]) -> None:
        """More turns at the beginning; rounds go behind a system turn and make a conversation of a pair."""
        at = 1 if self.turns and self.turns[0][0] == "system" and turns[0][0] != "system" else 0
        self.turns[at:at] = turns
        self.silent = [index + len(turns) if index >= at else index for index in self.silent]
        self.pair = self.pair and turns[0][0] == "system"

    def put_history(self, earlier: "Talk") -> None:
        """The rounds of a history before the turns, with what it says is not learnt."""
        if not earlier.turns:
            return
        first = 1 if self.turns and self.turns[0][0] == "system" and earlier.turns[0][0] != "system" else 0
        self.put_before(earlier.turns)
        self.silent = sorted([*self.silent, *(index + first for index in earlier.silent)])
        self.unread |= earlier.unread

    def end_with_answer(self) -> None:
        """Take off what follows the last answer, which teaches nothing. Raises ValueError without an answer."""
        while self.turns and self.turns[-1][0] != "assistant":
            self.unanswered = True
            self.turns.pop()
        answers = [index for index, (role, _) in enumerate(self.turns) if role == "assistant"]
        if not answers:
            raise ValueError("no turn of the assistant")
        if any(not self.turns[index][1].strip() for index in answers):
            raise ValueError("empty answer of the assistant")
        if set(answers) <= set(self.silent):
            raise ValueError("no answer is to be learnt (weight, loss or train says so)")

    def end_with_question(self) -> None:
        """Take off the answers behind the last question. Raises ValueError without a question."""
        while self.turns and self.turns[-1][0] not in ("user", "tool"):
            self.turns.pop()
        if not self.turns or not self.turns[-1][1].strip():
            raise ValueError("no question")
        self.silent = []


def join(first: str, second: str) -> str:
    """Two texts, one below the other; an empty one adds nothing."""
    return f"{first}\n{second}" if first.strip() and second.strip() else first if first.strip() else second


def read_messages(messages: Any) -> Talk:
    """Turns from a list of {"role", "content"}, of {"from", "value"}, or of rounds {"input", "output"}.

    Raises:
        ValueError: What is wrong, by the number of the turn.
    """
    if isinstance(messages, Mapping) and messages and all(isinstance(column, list) for column in messages.values()):
        # Older versions of `datasets` turn a list of objects into an object of lists.
        messages = [dict(zip(messages, values, strict=False)) for values in zip(*messages.values(), strict=False)]
    # A string has a length too, and is no list.
    if isinstance(messages, str | Mapping) or not hasattr(messages, "__len__") or not len(messages):
        raise ValueError("messages is no list of turns")
    talk = Talk([])
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number} is no object with role and content")
        if _one_of(turn, number, "role", "from") is None:
            talk.turns += _round(turn, number)
            continue
        role, text = _turn(turn, number)
        talk.unread |= {key for key, value in turn.items() if key not in CONTENT and not _nothing(value)}
        if not _learnt(turn, number, role):
            talk.silent.append(len(talk.turns))
        talk.turns.append((role, text))
    return talk


def read_rounds(history: Any) -> Talk:
    """Earlier turns from `history`: a list of [question, answer] pairs, of rounds, or of messages.

    Raises:
        ValueError: What is wrong, by the number of the round.
    """
    if isinstance(history, str | Mapping) or not hasattr(history, "__len__"):
        raise ValueError("history is no list of rounds")
    if all(isinstance(item, Mapping) for item in history):
        return read_messages(history) if len(history) else Talk([])
    turns: list[tuple[str, str]] = []
    for number, item in enumerate(history, 1):
        if isinstance(item, str | Mapping) or not isinstance(item, Sequence) or len(item) != 2:
            raise ValueError(f"round {number} of history is no pair of question and answer")
        if not all(isinstance(text, str) for text in item):
            raise ValueError(f"round {number} of history holds what is no text")
        turns += [("user", item[0]), ("assistant", item[1])]
    return Talk(turns)


def check_order(talk: Talk) -> None:
    """Raises ValueError unless question and answer alternate; a tool's result stands for a question."""
    roles = [role for role, _ in talk.turns]
    if "system" in roles[1:]:
        raise ValueError("a system turn that is not the first")
    asking = ["tool" if role == "tool" else role for role in roles if role != "system"]
    for index, role in enumerate(asking):
        expected = ("user",) if index == 0 else ("user", "tool") if index % 2 == 0 else ("assistant",)
        if role not in expected:
            raise ValueError("user and assistant do not take turns")


def _turn(turn: Mapping[str, Any], number: int) -> tuple[str, str]:
    role = _one_of(turn, number, "role", "from")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"turn {number} has role {role!r}; known: {', '.join(ROLES)}")
    for key in REFUSED:
        if not _nothing(turn.get(key)):
            raise ValueError(f"turn {number} has {key}, which is not supported")
    content = _one_of(turn, number, "content", "value")
    if isinstance(content, list) and content:
        content = "".join(_part(part, number) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"turn {number} has no text")
    return ROLES[role], content


def _one_of(turn: Mapping[str, Any], number: int, first: str, second: str) -> Any:
    """What stands under one of two names; tables hold null under the other. Raises ValueError where both say something.

    Equal texts are one.
    """
    found = [turn[name] for name in (first, second) if turn.get(name) is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(f"turn {number} has {first} and {second}, which differ")
    return found[0] if found else None


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _part(part: Any, number: int) -> str:
    """The text of one part of OpenAI's list of parts."""
    sort = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or sort != "text" or not isinstance(part.get("text"), str):
        raise ValueError(f"turn {number} has a part that is no text but {sort or type(part).__name__}")
    return str(part["text"])


def _learnt(turn: Mapping[str, Any], number: int, role: str) -> bool:
    """Whether a turn is learnt as far as `weight`, `loss` and `train` say."""
    learnt = True
    for key in LEARNING:
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise ValueError(f"turn {number} has {key} {value!r}; an answer is learnt (1, true) or not (0, false)")
        if value and role != "assistant" and key != "weight":
            raise ValueError(f"turn {number} has {key} {value!r}, and is no answer; only answers are learnt")
        learnt = learnt and bool(value)
    return learnt or role != "assistant"


def _round(item: Mapping[str, Any], number: int) -> list[tuple[str, str]]:
    """The turns of one round {"input", "output"}; its `system` counts in the first."""
    pair = next((pair for pair in ROUNDS if pair[0] in item and pair[1] in item), None)
    if pair is None:
        raise ValueError(f"turn {number} has no role")
    left = [key for key, value in item.items() if key not in (*pair, "system") and not _nothing(value)]
    texts = [item[name] for name in pair]
    if left or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"round {number} has {', '.join(left)}, which is not supported" if left else
                         f"round {number} holds what is no text")  # fmt: skip
    system = item.get("system")
    before = [("system", system)] if isinstance(system, str) and system and number == 1 else []
    if system and not before:
        raise ValueError(f"round {number} has a system text, which may stand in the first only")
    return [*before, ("user", texts[0]), ("assistant", texts[1])]
