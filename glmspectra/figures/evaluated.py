"""Pages with an answer: of an evaluation, and of a whole loop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from glmspectra.figures.answers import cards
from glmspectra.figures.findings import Evidence, Scores, find
from glmspectra.figures.payload import Json, rounded
from glmspectra.figures.report import evidence_of, payload_of, runs_grid, summary_of
from glmspectra.figures.tables import RunTables
from glmspectra.figures.training_log import TrainingRun
from glmspectra.figures.words import number, percent
from glmspectra.figures.writing import Cell, Grid, Page, plain, write_page
from glmspectra.language import Words, both

# Measure of an evaluation -> its head.
MEASURES = {
    "loss": "loss",
    "perplexity": "perplexity",
    "token_accuracy": "accuracy",
    "rouge_l": "rouge",
    "bleu": "bleu",
}


@dataclass(frozen=True)
class Outcome:
    """Scores, and the trainable parameters of each model that was trained."""

    scores: Scores
    parameters: dict[str, int]


def outcome_grid(outcome: Outcome) -> Grid:
    """Losses and scores, a row a model."""
    losses = outcome.scores.losses
    shown = [name for name in MEASURES if any(name in values for values in losses.values())]
    heads = ["model", *(MEASURES[name] for name in shown), *(["parameters"] if outcome.parameters else [])]
    rows = []
    for model, values in losses.items():
        row = [Cell(both(f"page-model-{model}"))]
        for name in shown:
            value = values.get(name)
            text = "" if value is None else percent(value) if name == "token_accuracy" else number(value, 4)
            row.append(plain(text, number=True))
        if outcome.parameters:
            row.append(plain(number(outcome.parameters.get(model)), number=True))
        rows.append(row)
    return Grid(heads, rows, both("page-outcome-caption"))


def gaps(scores: Scores) -> list[Json]:
    """Differences with their intervals, for the page's script."""
    found = []
    for pair, gap in scores.differences.items():
        if not math.isfinite(gap["low"]):  # of one row: there is no interval to draw
            continue
        one, two = pair.split("-")
        found.append({"one": one, "two": two, **{key: rounded(gap[key]) for key in ("mean", "low", "high", "rows")}})
    return found


def _summary(scores: Scores) -> Json:
    summary: Json = {}
    for name in ("suggested", "tuned"):
        if name in scores.losses:
            summary["loss"] = rounded(scores.losses[name].get("loss"))
        if f"{name}-base" in scores.differences:
            summary["gain"] = rounded(-scores.differences[f"{name}-base"]["mean"])
    return summary


def write_evaluation(out: Path, model: str, adapter: str | None, outcome: Outcome) -> Path:
    """The page of an evaluation in `out`; returns its index.html. Raises StoreError when it cannot be written."""
    evidence = Evidence(scores=outcome.scores)
    findings = find(evidence)
    answers, asked = cards(outcome.scores.samples)
    facts = [(both("page-fact-model"), model)] + ([(both("page-fact-adapter"), adapter)] if adapter else [])
    name = "/".join(Path(adapter).parts[-2:]) if adapter else Path(model).name  # every run has its final_adapter
    page = Page(
        "evaluate",
        both("page-title-evaluate", name=name),
        both("page-lead-evaluate"),
        facts,
        findings=findings,
        payload={"outcome": gaps(outcome.scores)},
        outcome=outcome_grid(outcome),
        answers=answers,
        asked=asked,
        summary=summary_of("evaluate", name, evidence, findings) | _summary(outcome.scores),
    )
    return write_page(out, page)


def write_loop(
    out: Path,
    name: str,
    outcome: Outcome,
    run: RunTables,
    ranks: pd.DataFrame,
    budget_curve: pd.DataFrame | None,
    training: Sequence[TrainingRun],
    facts: Sequence[tuple[Words, str | Words]],
    warnings: Sequence[Words],
    files: Sequence[Words],
) -> Path:
    """The page of a whole loop in `out`; returns its index.html.

    Args:
        out: The page's folder.
        name: The model's name.
        outcome: What came out.
        run: Tables of what the training changed.
        ranks: The suggested ranks, the chosen criterion first.
        budget_curve: What each budget buys; None where it was not asked.
        training: The trainings with suggested and uniform ranks.
        facts: Words and values under the title.
        warnings: What a reader must know first.
        files: Where everything lies.

    Raises:
        StoreError: The folder cannot be written, or the ranks lack a column.
    """
    evidence = replace(evidence_of(run, ranks=ranks, training=training), scores=outcome.scores)
    findings = find(evidence)
    answers, asked = cards(outcome.scores.samples)
    page = Page(
        "loop",
        both("page-title-loop", name=name),
        both("page-lead-loop"),
        facts,
        warnings,
        findings,
        {**payload_of(evidence, budget_curve), "outcome": gaps(outcome.scores)},
        outcome=outcome_grid(outcome),
        runs=runs_grid(training) if training else None,
        answers=answers,
        asked=asked,
        files=files,
        summary=summary_of("loop", name, evidence, findings) | _summary(outcome.scores),
    )
    return write_page(out, page)
