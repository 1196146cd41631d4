"""Answers of models as cards: each beside the reference, with what differs from it marked."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_PROMPT = 6  # characters that all questions share before they are taken for a template
ALIKE = 0.3  # below this agreement marks would cover everything
MODELS = ("base", "uniform", "tuned", "suggested")


@dataclass(frozen=True)
class Given:
    """One model's answer: pieces of text, each with whether it differs from the reference; the agreement, 0 to 1."""

    model: str
    pieces: Sequence[tuple[str, bool]]
    agreement: float


@dataclass(frozen=True)
class Answer:
    """One question with the expected answer and each model's."""

    question: str
    reference: str
    given: Sequence[Given]


def pieces(reference: str, answer: str) -> tuple[list[tuple[str, bool]], float]:
    """The answer cut where it leaves the reference, and how much of both agrees (difflib's ratio).

    Compared are words and single Chinese characters. An answer that has little in common is one piece without a mark.
    """
    cut = re.compile(r"[\u4e00-\u9fff]|\w+|\s+|.", re.DOTALL)
    one, two = cut.findall(reference), cut.findall(answer)
    matcher = difflib.SequenceMatcher(None, one, two, autojunk=False)
    agreement = matcher.ratio() if one or two else 1.0
    if agreement < ALIKE:
        return [(answer, False)], agreement
    found = [("".join(two[b:e]), tag != "equal") for tag, _, _, b, e in matcher.get_opcodes() if e > b]
    return found, agreement


def _shared_beginning(texts: Sequence[str]) -> str:
    """The characters that all of the texts begin with."""
    first, last = min(texts), max(texts)
    count = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:count]


def _shared_ending(texts: Sequence[str]) -> str:
    """What all of the texts end with after a space or a mark, such as 'Answer:'."""
    ending = _shared_beginning([text[::-1] for text in texts])[::-1]
    cut = re.search(r"[\s。？！?!.]\s*(?=\S)", ending)
    return ending[cut.end() :] if cut else ""


def cards(samples: Sequence[dict[str, str]]) -> tuple[list[Answer], str]:
    """Cards of samples (context, reference, and any of MODELS), and what all questions begin with.

    The shared beginning is a prompt template; the questions are given without it.
    """
    questions = [str(sample.get("context", "")) for sample in samples]
    shared = _shared_beginning(questions) if len(questions) > 1 else ""
    if len(shared) < LEAST_PROMPT or any(len(question) == len(shared) for question in questions):
        shared = ""
    ending = _shared_ending(questions) if shared else ""
    found = []
    for sample, question in zip(samples, questions, strict=True):
        reference = str(sample.get("reference", ""))
        given = [
            Given(model, *pieces(reference, str(sample[model]))) for model in MODELS if sample.get(model) is not None
        ]
        found.append(Answer(question[len(shared) : len(question) - len(ending)].strip(), reference, given))
    return found, shared.strip()
