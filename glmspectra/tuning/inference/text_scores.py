"""ROUGE-L and BLEU of generated answers, by character where the text is Chinese."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from glmspectra.errors import MissingExtraError


class _Characters:
    """Sacrebleu's zh tokens (each Chinese character, else words and punctuation), as rouge-score asks for them.

    rouge-score's own tokenizer drops everything that is not a-z0-9, and so gives every Chinese text the score 0.
    """

    def __init__(self) -> None:
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

        self._tokenizer = TokenizerZh()

    def tokenize(self, text: str) -> list[str]:
        return str(self._tokenizer(text)).split()


def text_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-L and BLEU-4 of answers, both from 0 to 100, over tokens of `_Characters`.

    {"rouge_l": mean F-measure of the longest common subsequence (Lin 2004), "bleu": corpus BLEU-4 (Papineni et al.
    2002)}.

    Raises MissingExtraError without rouge-score and sacrebleu.
    """
    for module, package in (("rouge_score", "rouge-score"), ("sacrebleu", "sacrebleu")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "Scoring text")
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    scorer = RougeScorer(["rougeL"], tokenizer=_Characters())
    pairs = zip(references, answers, strict=True)
    rouge = [scorer.score(reference, answer)["rougeL"].fmeasure for reference, answer in pairs]
    bleu = BLEU(tokenize="zh").corpus_score(list(answers), [list(references)])
    return {"rouge_l": 100 * sum(rouge) / len(rouge), "bleu": float(bleu.score)}
