"""The page of an evaluation: figures without and with the adapter, and answers side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmspectra.tuning.inference.evaluation import Evaluation

MEASURES = (
    ("loss", "loss", "mean natural-log loss a token"),
    ("perplexity", "perplexity", "exp of the loss"),
    ("token accuracy", "token_accuracy", "share of tokens that were the most likely one"),
    ("ROUGE-L", "rouge_l", "0 to 100, by character where the text is Chinese"),
    ("BLEU", "bleu", "0 to 100, by character where the text is Chinese"),
)


def write_evaluation_page(result: "Evaluation", out: Path) -> Path:
    """index.html in `out`; returns its path. Raises StoreError when it cannot be written."""
    from glmspectra.figures import Grid, Section, write_page

    columns = [("base", result.base), ("with the adapter", result.tuned)]
    shown = [(name, values) for name, values in columns if values is not None]
    rows = [
        [label, *(values[key] for _, values in shown)]
        for label, key, _ in MEASURES
        if any(key in values for _, values in shown) and all(key in values for _, values in shown)
    ]
    heads = [("measure", "; ".join(f"{label}: {meaning}" for label, _, meaning in MEASURES))]
    figures = Section(
        "figures",
        "Figures",
        paragraphs=result.lines(),
        grid=Grid(f"{result.rows} rows of {result.split}", [*heads, *((name, "") for name, _ in shown)], rows),
    )
    sections = [figures]
    if result.samples:
        names = list(result.samples[0])
        words = {"context": "question", "reference": "expected", "base": "base", "tuned": "with the adapter"}
        grid = Grid(
            f"{len(result.samples)} answers",
            [(words[name], "") for name in names],
            [[sample[name] for name in names] for sample in result.samples],
        )
        sections.append(Section("answers", "Answers side by side", grid=grid))
    facts = {"model": result.model} | ({"adapter": result.adapter} if result.adapter else {})
    return write_page(out, "Evaluation", sections, facts)
