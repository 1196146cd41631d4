"""Beyond loss: what adapters answer. Token accuracy, multiple choice made from the data, ROUGE-L, parse rate.

All on the test part. Of the multiple choice each question stands with its own answer and three answers to other
questions of the part, those nearest in length among a drawn twelfth of them, so that length alone gives nothing away;
the one with the lowest loss a token is chosen (chance: 0.25), or, `informed`, the one whose loss the question lowers
most. Generated answers are greedy and cut at NEW tokens, and so is what they are held against.
"""

import ast
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rank_study.bases import Base
from rank_study.many_adapters import SideBySide
from rank_study.tasks import Rows, encode

Pair = tuple[str, str]
OTHERS = 3  # wrong answers of a choice
GENERATED = 32  # rows that are answered
NEW = 128  # tokens of an answer


@dataclass(frozen=True)
class Beyond:
    """pairs: question and answer of each row of the part. choices: rows of (question, own answer) and its OTHERS, one
    question after the other. alone: the same answers without a question."""

    task: str
    pairs: Sequence[Pair]
    choices: Rows
    alone: Rows


def choices_of(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """Each question with its own answer, then with OTHERS of other questions."""
    chance, found = np.random.default_rng(seed), []
    for number, (question, answer) in enumerate(pairs):
        others = [text for at, (_, text) in enumerate(pairs) if at != number and text != answer]
        drawn = chance.permutation(len(others))[: max(OTHERS, len(others) // 12)]
        near = sorted((others[at] for at in drawn), key=lambda text: abs(len(text) - len(answer)))
        found += [(question, text) for text in (answer, *near[:OTHERS])]
    return found


def beyond_of(base: Base, task: str, pairs: Sequence[Pair]) -> Beyond:
    asked = choices_of(pairs)
    alone = [("", answer) for _, answer in asked]
    choices, unasked = (encode(own, base.tokens, base.prefix, base.eos, base.length) for own in (asked, alone))
    return Beyond(task, pairs, choices, unasked)


@torch.no_grad()
def row_scores(adapters: SideBySide, rows: Rows, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss a token and share of tokens whose largest logit is right, each (J, N) float64, rows in their order."""
    device = adapters.device
    losses = torch.zeros(adapters.jobs, len(rows), dtype=torch.float64)
    hits = torch.zeros_like(losses)
    order = torch.argsort(rows.attention_mask.sum(1), stable=True, descending=True)
    for index in order.split(size):
        batch = rows.take(index, device)
        repeated = {key: value.repeat(adapters.jobs, 1) for key, value in batch.items() if key != "learnt"}
        each, logits, row = adapters.token_losses(repeated)
        labels = repeated["labels"][:, 1:]
        right = (logits.argmax(-1) == labels[labels != -100]).double()
        count = (labels != -100).sum(1).double().clamp(min=1)
        for values, results in ((each.double(), losses), (right, hits)):
            summed = torch.zeros_like(count).index_add(0, row, values)
            results[:, index] = (summed / count).view(adapters.jobs, -1).cpu()
    return losses, hits


@torch.no_grad()
def generated(adapters: SideBySide, base: Base, questions: Sequence[str]) -> list[list[list[int]]]:
    """Greedy answers of each job to each question: NEW tokens at most, without the end."""
    half = base.length // 2 - len(base.prefix)
    prompts = [base.prefix + base.tokens(question)[-half:] for question in questions]
    longest, device = max(map(len, prompts)), adapters.device
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, where an answer goes on
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = base.model.generate(
            input_ids=ids.repeat(adapters.jobs, 1).to(device),
            attention_mask=mask.repeat(adapters.jobs, 1).to(device),
            do_sample=False, num_beams=1, max_new_tokens=NEW, eos_token_id=base.eos, pad_token_id=base.eos,
            use_cache=True,
        )  # fmt: skip
    answers = []
    for row in found[:, longest:].tolist():
        answers.append(row[: row.index(base.eos)] if base.eos in row else row)
    return [answers[at : at + len(prompts)] for at in range(0, len(answers), len(prompts))]


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of characters (Lin 2004), 0 to 1; white space does not count."""
    one, two = ("".join(text.split()) for text in (answer, reference))
    if not one or not two:
        return 0.0
    codes = np.frombuffer(two.encode("utf-32-le"), np.uint32)
    lengths = np.zeros(len(codes) + 1, dtype=int)
    for character in one:
        met = lengths[:-1] + (codes == ord(character))
        lengths[1:] = np.maximum.accumulate(np.maximum(met, lengths[1:]))
    return 2 * int(lengths[-1]) / (len(one) + len(two))


def parses(head: str, body: str) -> bool:
    """Whether the lines of a generated body, without the last one where it was cut, make a function with their head."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(textwrap.dedent(head + body))
    except (SyntaxError, ValueError):
        return False
    return bool(body.strip())


def measure(adapters: SideBySide, base: Base, beyond: Beyond, rows: Rows, size: int) -> list[dict[str, float]]:
    """Of each job, as shares from 0 to 1: accuracy (of tokens), choice, informed, and rouge_l or, on the Python task,
    parsed."""
    _, hits = row_scores(adapters, rows, size)
    counts = (rows.labels[:, 1:] != -100).sum(1).double()
    accuracy = (hits * counts).sum(1) / counts.sum()
    losses, _ = row_scores(adapters, beyond.choices, size)
    lowered = losses - row_scores(adapters, beyond.alone, size)[0]
    chosen, informed = (
        (values.view(adapters.jobs, -1, 1 + OTHERS).argmin(-1) == 0).double().mean(1) for values in (losses, lowered)
    )
    asked = beyond.pairs[:GENERATED]
    results = []
    for number, answers in enumerate(generated(adapters, base, [question for question, _ in asked])):
        one: dict[str, float] = {
            "accuracy": round(float(accuracy[number]), 6),
            "choice": round(float(chosen[number]), 6),
            "informed": round(float(informed[number]), 6),
        }
        if beyond.task == "python":
            texts = [base.text(answer) if len(answer) < NEW else whole_lines(base.text(answer)) for answer in answers]
            pairs = zip(asked, texts, strict=True)
            one["parsed"] = float(np.mean([parses(head, text) for (head, _), text in pairs]))
        else:
            cut = [base.text(base.tokens(reference)[:NEW]) for _, reference in asked]
            scores = [rouge_l(base.text(answer), text) for answer, text in zip(answers, cut, strict=True)]
            one["rouge_l"] = round(float(np.mean(scores)), 6)
        results.append(one)
    return results


def whole_lines(text: str) -> str:
    return text[: text.rfind("\n") + 1]
