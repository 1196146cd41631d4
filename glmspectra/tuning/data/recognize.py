"""Which columns of a row are its question, answer, history and system text: the formats of data in use.

    context, target                                       the original study
    instruction, input, output (system, history)          Alpaca, LLaMA-Factory
    prompt, response, history                             ChatGLM's own fine-tuning scripts
    conversations of {from, value}, system, tools         ShareGPT
    messages of {role, content}                           OpenAI; `weight`, `loss` and `train` say what is learnt
    question, answer; 问题, 答案; content, summary; ...     what published data sets call them

A format counts for a row when its columns are there. Columns that `Columns` names come first.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from glmspectra.errors import DataError
from glmspectra.json_files import parse_json
from glmspectra.language import both, current, listed, text
from glmspectra.tuning.data.rows import BadRow, Columns, Row
from glmspectra.tuning.data.turns import Talk, check_order, join, read_messages, read_rounds

MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (
    ("context", "target"), ("instruction", "output"), ("instruction", "response"), ("instruction", "answer"),
    ("prompt", "response"), ("prompt", "completion"), ("prompt", "output"), ("prompt", "answer"),
    ("question", "answer"), ("question", "response"), ("question", "output"), ("query", "response"),
    ("query", "answer"), ("ask", "answer"), ("input", "output"), ("input", "target"), ("source", "target"),
    ("content", "summary"), ("context", "answer"), ("context", "response"),
    ("问题", "答案"), ("问题", "回答"), ("问", "答"), ("提问", "回答"), ("输入", "输出"), ("指令", "输出"),
)  # fmt: skip
# Columns beside question and answer: what each is, by the names in use.
INPUT = {"instruction": ("input", "context"), "question": ("context",), "指令": ("输入",)}
JUDGED = ("label", "kto_tag")  # of KTO's rows, TRL's and LLaMA-Factory's: false, and the answer is not to be given
EXTRAS = {"system": ("system", "system_prompt"), "history": ("history",), "tools": ("tools",)}


@dataclass
class FileFacts:
    """What was found in one file: the formats of its rows, the columns that were not read, how its bytes were read."""

    file: str
    rows: int = 0
    row_formats: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    silent: int = 0
    unasked: int = 0
    how: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        rows = both("data-rows", count=self.rows)
        if len(self.row_formats) > 1:
            formats = listed(
                text("data-row-format", rows=both("data-rows", count=count), format=name)
                for name, count in self.row_formats.most_common()
            )
            said = text("data-file-row-formats", file=self.file, rows=rows, formats=formats)
        else:
            name = next(iter(self.row_formats), None) or both("data-row-format-unknown")
            said = text("data-file", file=self.file, rows=rows, format=name)
        lines = ["; ".join([said, *self.how])]
        if self.unread:
            named = listed(
                f"{name or text('data-no-name')} ({text('data-rows', count=count)})"
                for name, count in self.unread.most_common()
            )
            lines.append(text("data-unread", file=self.file, names=named))
        if self.unanswered:
            lines.append(text("data-unanswered", file=self.file, count=self.unanswered))
        if self.silent:
            lines.append(text("data-silent", file=self.file, count=self.silent))
        if self.unasked:
            lines.append(text("data-unasked", file=self.file, count=self.unasked))
        return lines


def is_recognized(names: Iterable[str], columns: Columns) -> bool:
    """Whether columns of these names hold a question and an answer, or a conversation."""
    known = _lowered(dict.fromkeys(names))
    asked = [name for name in (columns.messages, columns.context, columns.target) if name]
    if asked:
        return any(name in known.values() for name in asked)
    return any(name in known for name in MESSAGES) or any(a in known and b in known for a, b in PAIRS)


def parse_row(file: str, line: int, value: Any, columns: Columns, facts: FileFacts | None = None) -> Row | BadRow:
    """A row from the object of one line (a mapping of columns); what was recognized is counted in `facts`."""
    return _parse(file, line, value, columns, facts or FileFacts(file), True)


def parse_question(file: str, line: int, value: Any, columns: Columns, facts: FileFacts) -> Row | BadRow:
    """The turns up to the question that is to be answered; an answer that stands in the row is left out."""
    return _parse(file, line, value, columns, facts, False)


class _Unusable(Exception):
    """Why a row cannot be used."""


def _parse(file: str, line: int, value: Any, columns: Columns, facts: FileFacts, answered: bool) -> Row | BadRow:
    facts.rows += 1
    if not isinstance(value, Mapping):
        return BadRow(file, line, f"is no object with columns but {type(value).__name__}")
    used: dict[str, str] = {}
    if answered and (judged := next((name for name in JUDGED if value.get(name) is False), None)):
        return BadRow(file, line, f"{judged} is false: its answer is one that is not to be given")
    try:
        talk = _read(value, columns, used, answered)
    except _Unusable as fault:
        return BadRow(file, line, str(fault))
    for _, said in talk.turns:
        if "\0" in said:
            return BadRow(file, line, "holds a zero character, which is no text")
        try:
            said.encode("utf-8")
        except UnicodeEncodeError:
            return BadRow(file, line, "holds half of a surrogate pair, which is no text")
    facts.row_formats[_listed(tuple(used.values()), current())] += 1
    facts.unread.update(str(name) for name in value if name not in used.values() and not _empty(value[name]))
    facts.unread.update(f"{name} of a turn" for name in talk.unread)
    facts.unanswered += talk.unanswered
    facts.silent += len(talk.silent)
    facts.unasked += any(role == "user" and not said.strip() for role, said in talk.turns)
    return Row(file, line, tuple(talk.turns), talk.pair, tuple(talk.silent), talk.tools)


@lru_cache(maxsize=256)  # once for all rows of a format
def _listed(names: tuple[str, ...], language: str) -> str:
    first, last = names[:-1], names[-1]
    return text("data-and", language, names=listed(first, language), last=last) if first else last


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, list | dict) and not value)


def _read(value: Mapping[str, Any], columns: Columns, used: dict[str, str], answered: bool) -> Talk:
    messages = columns.messages or (None if columns.context or columns.target else _messages_column(value))
    try:
        if messages is not None:
            if messages not in value:
                raise _Unusable(f"no column {messages}")
            used["messages"] = messages
            talk = read_messages(_decoded(value[messages]))
            extras = {name: _extra(value, columns, name, used) for name in EXTRAS}
        else:
            talk, extras = _read_pair(value, columns, used, answered)
        _add_extras(talk, extras)
        if answered:
            talk.end_with_answer()
        else:
            talk.end_with_question()
        check_order(talk)
    except ValueError as fault:
        raise _Unusable(str(fault)) from None
    return talk


def _messages_column(value: Mapping[str, Any]) -> str | None:
    known = _lowered(value)
    there = [known[name] for name in MESSAGES if name in known]
    filled = [name for name in there if not _empty(value[name])]
    return next(iter(filled or ([] if _pair_columns(value) else there)), None)


def _pair_columns(value: Mapping[str, Any], answered: bool = True) -> tuple[str, str] | None:
    """The question's and the answer's column; of formats whose columns are there, one that holds an answer."""
    known = _lowered(value)
    there = [pair for pair in PAIRS if pair[0] in known and (pair[1] in known or not answered)]
    filled = [pair for pair in there if pair[1] in known and not _empty(value[known[pair[1]]])]
    half = [pair for pair in PAIRS if pair[0] in known or pair[1] in known]  # then the fault names what is missing
    found = next(iter(filled or there or half), None)
    return None if found is None else (known.get(found[0], found[0]), known.get(found[1], found[1]))


def _lowered(value: Mapping[str, Any]) -> dict[str, str]:
    """The names of columns by their small letters: "Question" is known as question is."""
    return {str(name).strip().lower(): str(name) for name in value}


def _read_pair(
    value: Mapping[str, Any], columns: Columns, used: dict[str, str], answered: bool
) -> tuple[Talk, dict[str, Any]]:
    found = _pair_columns(value, answered)
    context = columns.context or (found[0] if found else None)
    target = columns.target or (found[1] if found else None)
    if context is None or (target is None and answered):
        what = "question and answer are" if answered else "question is"
        named = "context=COLUMN,target=COLUMN" if answered else "context=COLUMN"
        raise ValueError(
            f"no {what} recognized among the columns {', '.join(map(str, value))}; say which by --columns {named}"
        )
    question = _text(value, context)
    used["context"] = context
    known = _lowered(value)
    names = (columns.input,) if columns.input else INPUT.get(context.strip().lower(), ())
    extra = next((known.get(name, name) for name in names if known.get(name, name) in value), None)
    extra = None if extra in (context, target) else extra
    if extra is not None:
        used["input"] = extra
        if not _empty(value[extra]):
            question = join(question, _text(value, extra))
    if not question.strip() and extra is not None:
        raise ValueError(f"empty {context}")
    turns = [("user", question)]
    if target in value:
        used["target"] = str(target)
    if answered:
        answer = _text(value, str(target))
        if not answer.strip():
            raise ValueError(f"empty {target}")
        turns.append(("assistant", answer))
    extras = {name: _extra(value, columns, name, used) for name in EXTRAS}
    return Talk(turns, pair=True), extras


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if found is None:
        raise ValueError(f"no {name}")
    if not isinstance(found, str):
        raise ValueError(f"{name} is not text but {type(found).__name__}")
    return found


def _extra(value: Mapping[str, Any], columns: Columns, name: str, used: dict[str, str]) -> Any:
    """The value of a column beside question and answer, None where it is absent or empty."""
    asked = getattr(columns, name)
    known = _lowered(value)
    column = asked or next((known[word] for word in EXTRAS[name] if word in known), None)
    if column is None:
        return None
    if asked and asked not in value:
        raise ValueError(f"no column {asked}")
    used[name] = column
    found = value[column] if name == "system" else _decoded(value[column])
    return None if _empty(found) else found


def _decoded(value: Any) -> Any:
    """A list or object that a table holds as JSON text; any other text stays."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return parse_json(value, "the text", DataError)
        except DataError as fault:
            raise ValueError(str(fault).removesuffix(".")) from None
    return value


def _add_extras(talk: Talk, extras: Mapping[str, Any]) -> None:
    if extras["history"] is not None:
        talk.put_history(read_rounds(extras["history"]))
    system = extras["system"]
    if system is not None:
        if not isinstance(system, str):
            raise ValueError(f"system is not text but {type(system).__name__}")
        if talk.turns and talk.turns[0][0] == "system":
            raise ValueError("a system column and a system turn; keep one")
        talk.put_before([("system", system)])
    if extras["tools"] is not None:
        if not isinstance(extras["tools"], list):
            raise ValueError("tools is no list of tools")
        talk.tools = json.dumps(extras["tools"], ensure_ascii=False)
