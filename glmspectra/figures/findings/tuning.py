"""Rules on training runs and on what they were worth."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from glmspectra.figures.findings.evidence import Evidence
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.figures.training_log import TrainingRun, ends_of
from glmspectra.figures.words import number, percent, signed
from glmspectra.language import LANGUAGES, Words, both, listed


def _has_interval(gap: dict[str, float]) -> bool:
    """Whether a difference has an interval: of one row there is none."""
    return bool(np.isfinite(gap["low"]) and np.isfinite(gap["high"]))


def against_uniform(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """The answer of a loop: were the suggested ranks better than uniform ones of the same cost?"""
    gap = evidence.scores.differences.get("suggested-uniform")
    if gap is None:
        return
    low, high = gap["low"], gap["high"]
    if not _has_interval(gap):
        yield rule.says(signed(gap["mean"]), np.inf, "#outcome", variant="-one", mean=signed(gap["mean"]))
        return
    variant = "-better" if high < rule.threshold else "-worse" if low > rule.threshold else ""
    values = {"mean": signed(gap["mean"]), "low": signed(low), "high": signed(high), "rows": int(gap["rows"])}
    yield rule.says(signed(gap["mean"]), np.inf, "#outcome", variant=variant, **values)


def against_base(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """What tuning gained over the base."""
    for name in ("tuned", "suggested"):
        gap = evidence.scores.differences.get(f"{name}-base")
        if gap is None:
            continue
        if not _has_interval(gap):
            yield rule.says(signed(gap["mean"]), 1e6, "#outcome", variant="-one", mean=signed(gap["mean"]))
            return
        variant = "" if gap["high"] < rule.threshold else "-worse" if gap["low"] > rule.threshold else "-none"
        values = {"mean": signed(gap["mean"]), "low": signed(gap["low"]), "high": signed(gap["high"])}
        yield rule.says(signed(gap["mean"]), 1e6, "#outcome", variant=variant, rows=int(gap["rows"]), **values)
        return


def same_answers(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Answers that tuning did not change."""
    same, pairs = _same(evidence)
    if pairs and same / pairs >= rule.threshold:
        yield rule.says(f"{same} / {pairs}", same / pairs / rule.threshold, "#answers", same=same, all=str(pairs))


def _same(evidence: Evidence) -> tuple[int, int]:
    """How many answers of the tuned model are the base's, and of how many."""
    pairs = [(one["base"], one["tuned"]) for one in evidence.scores.samples if one.get("base") and one.get("tuned")]
    return sum(base.strip() == tuned.strip() for base, tuned in pairs), len(pairs)


def _finite(run: TrainingRun, measure: str) -> pd.DataFrame:
    """The entries of a log that hold a finite value of a measure."""
    return run.history[np.isfinite(run.history[measure])]


GRADIENTS_LEFT_OUT = 3  # that many last logs in a row: with float16 single steps overflow and are skipped, as planned


def nonfinite_loss(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """A loss that was NaN or infinite, or gradients that were to the end.

    The Trainer logs the mean of the finite losses in place of NaN (logging_nan_inf_filter); the norm of the gradients
    still says it.
    """
    for run in evidence.training:
        sound = max(_finite(run, "grad_norm")["step"], default=-1)
        lasting = [step for step in run.broken.get("grad_norm", ()) if step > sound]
        steps_of = {name: run.broken.get(name, ()) for name in ("loss", "eval_loss")}
        steps_of["grad_norm"] = lasting if len(lasting) >= GRADIENTS_LEFT_OUT else ()
        first = min(
            ((steps[0], name) for name, steps in steps_of.items() if len(steps) >= rule.threshold), default=None
        )
        if first is not None:
            label = both(f"ui-curve-{first[1].replace('_', '-')}")
            measure = Words(label.en.lower(), label.zh)
            yield rule.says("NaN", np.inf, "#training", run=run.title, measure=measure, step=str(first[0]))


def overfitting(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Evaluation losses that had been lower before the end."""
    for run in evidence.training:
        rows = _finite(run, "eval_loss")
        if len(rows) < 2:
            continue
        best, last = rows.loc[rows["eval_loss"].idxmin()], rows.iloc[-1]
        rise = float(last["eval_loss"] / best["eval_loss"]) - 1 if best["eval_loss"] > 0 else 0.0
        if rise >= rule.threshold:
            values: dict[str, Any] = {
                "run": run.title,
                "best": number(float(best["eval_loss"]), 4),
                "step": str(int(best["step"])),
            }
            values |= {"last": number(float(last["eval_loss"]), 4), "rise": percent(rise, 2)}
            yield rule.says(f"+{percent(rise, 2)}", rise / rule.threshold, "#training", **values)


def still_falling(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Evaluation losses that were still falling at the end."""
    for run in evidence.training:
        rows = _finite(run, "eval_loss")
        if len(rows) < 3 or rows["eval_loss"].idxmin() != rows.index[-1]:
            continue
        before, last = rows.iloc[-2], rows.iloc[-1]
        fall = 1 - float(last["eval_loss"] / before["eval_loss"])
        if fall >= rule.threshold:
            values: dict[str, Any] = {
                "run": run.title,
                "fall": percent(fall, 2),
                "steps": str(int(last["step"] - before["step"])),
            }
            yield rule.says(f"{signed(-100 * fall, 1)} %", fall / rule.threshold, "#training", **values)


def gradient_spikes(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """A gradient norm far above the usual one, after the first tenth of the training."""
    for run in evidence.training:
        rows = _finite(run, "grad_norm")
        rows = rows[rows["step"] > rows["step"].max() / 10] if len(rows) else rows
        if len(rows) < 10:
            continue
        usual = float(rows["grad_norm"].median())
        worst = rows.loc[rows["grad_norm"].idxmax()]
        times = float(worst["grad_norm"]) / usual if usual > 0 else 0.0
        if times >= rule.threshold:
            values: dict[str, Any] = {"run": run.title, "times": number(times, 2), "step": str(int(worst["step"]))}
            yield rule.says(f"× {number(times, 2)}", times / rule.threshold, "#training", **values)


def divergence(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """A training loss that ends above its beginning."""
    for run in evidence.training:
        ends = ends_of(run)
        if ends is None or len(_finite(run, "loss")) < 10:
            continue
        first, last, _ = ends
        if first > 0 and last / first >= rule.threshold:
            values: dict[str, Any] = {"run": run.title, "first": number(first, 3), "last": number(last, 3)}
            yield rule.says(number(last, 3), 10 * last / first / rule.threshold, "#training", **values)


def rates_apart(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Runs whose learning rates are not comparable."""
    peaks = {run.name: float(run.history["learning_rate"].max()) for run in evidence.training}
    peaks = {name: peak for name, peak in peaks.items() if peak > 0}
    if len(peaks) < 2:
        return
    low, high = min(peaks, key=lambda name: peaks[name]), max(peaks, key=lambda name: peaks[name])
    times = peaks[high] / peaks[low]
    if times >= rule.threshold:
        titles = {run.name: run.title for run in evidence.training}
        values: dict[str, Any] = {"high": titles[high], "low": titles[low], "times": number(times, 2)}
        rates = {"peak": number(peaks[high]), "least": number(peaks[low])}
        yield rule.says(f"× {number(times, 2)}", times / rule.threshold, "#training", **values, **rates)


def best_run(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Which of several runs reached the lowest evaluation loss; silent where a comparison row by row says more."""
    if evidence.scores.differences:
        return
    lowest = {run.name: float(_finite(run, "eval_loss")["eval_loss"].min()) for run in evidence.training}
    lowest = {name: loss for name, loss in lowest.items() if np.isfinite(loss)}
    if len(lowest) < 2:
        return
    first, second = sorted(lowest, key=lambda name: lowest[name])[:2]
    gap = lowest[second] / lowest[first] - 1 if lowest[first] > 0 else 0.0
    if gap >= rule.threshold:
        titles = {run.name: run.title for run in evidence.training}
        values: dict[str, Any] = {
            "first": titles[first],
            "second": titles[second],
            "loss": number(lowest[first], 4),
            "other": number(lowest[second], 4),
        }
        yield rule.says(number(lowest[first], 4), 1 + gap / rule.threshold, "#training", **values)


def wrong_perplexity(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Logs whose perplexity is not exp of their loss."""
    wrong = [run for run in evidence.training if run.perplexity_disagrees]
    if len(wrong) >= rule.threshold:
        names = Words(", ".join(run.title.en for run in wrong), "、".join(run.title.zh for run in wrong))
        last = wrong[0].history.dropna(subset=["eval_perplexity", "logged_perplexity"]).iloc[-1]
        value = f"{number(float(last['logged_perplexity']))} ≠ {number(float(last['eval_perplexity']))}"
        yield rule.says(value, float(len(wrong)), "#training", runs=names)


def _by_model(evidence: Evidence, measure: str, shown: Callable[[float], str]) -> Words | None:
    """'base 2.41, tuned 1.98': a measure of an evaluation, model by model; None where it was not measured."""
    known = {name: found[measure] for name, found in evidence.scores.losses.items() if found.get(measure) is not None}
    known = {name: float(value) for name, value in known.items() if np.isfinite(value)}
    if not known:
        return None
    models = {both(f"page-model-{name}"): shown(value) for name, value in known.items()}
    english, chinese = (
        [f"{getattr(model, tongue)} {value}" for model, value in models.items()] for tongue in LANGUAGES
    )
    return Words(listed(english, "en"), listed(chinese, "zh"))


def model_losses(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The loss of each model, in nats a token."""
    models = _by_model(evidence, "loss", lambda value: number(value, 4))
    if models is not None:
        losses = [number(found["loss"], 4) for found in evidence.scores.losses.values() if "loss" in found]
        rows, variant = evidence.scores.rows, "-rows" if evidence.scores.rows else ""
        yield rule.says(" → ".join(losses[:2]), "#outcome", variant=variant, models=models, rows=rows)


def model_scores(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """What else was measured of each model."""
    for measure, head in (("token_accuracy", "accuracy"), ("rouge_l", "rouge"), ("bleu", "bleu")):
        shown = percent if measure == "token_accuracy" else number
        models = _by_model(evidence, measure, shown)
        if models is not None:
            scores = [shown(found[measure]) for found in evidence.scores.losses.values() if measure in found]
            label = both(f"page-head-{head}")
            label = Words(label.en[:1].upper() + label.en[1:], label.zh)
            yield rule.says(" → ".join(scores[:2]), "#outcome", measure=label, models=models)


def answers(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """How many answers there are, and how many of them tuning changed."""
    (same, pairs), count = _same(evidence), len(evidence.scores.samples)
    if pairs:
        value = f"{pairs - same} / {pairs}"
        yield rule.says(value, "#answers", variant="-changed", count=pairs - same, all=str(pairs))
    elif count:
        yield rule.says(str(count), "#answers", count=count)


def loss_course(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """Training loss at the beginning and at the end."""
    for run in evidence.training:
        ends = ends_of(run)
        if ends is None or len(_finite(run, "loss")) < 2:
            continue
        first, last = number(ends[0], 4), number(ends[1], 4)
        values: dict[str, Any] = {"run": run.title, "first": first, "last": last, "count": ends[2]}
        yield rule.says(f"{first} → {last}", "#training", steps=number(run.history["step"].max()), **values)


def lowest_evaluation(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The lowest evaluation loss, where, and its perplexity."""
    for run in evidence.training:
        rows = _finite(run, "eval_loss")
        if len(rows):
            best = rows.loc[rows["eval_loss"].idxmin()]
            loss = number(float(best["eval_loss"]), 4)
            values: dict[str, Any] = {"run": run.title, "loss": loss, "step": number(best["step"])}
            values |= {"steps": number(run.history["step"].max()), "perplexity": number(best["eval_perplexity"], 4)}
            yield rule.says(loss, "#training", **values)


def schedule(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """Steps, epochs and the peak of the learning rate."""
    for run in evidence.training:
        peak, epochs = (_finite(run, name)[name].max() for name in ("learning_rate", "epoch"))
        if np.isfinite(peak) and np.isfinite(epochs):
            values: dict[str, Any] = {"run": run.title, "peak": number(peak), "epochs": number(epochs)}
            yield rule.says(number(peak), "#training", steps=number(run.history["step"].max()), **values)


def speed(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """Tokens a second."""
    for run in evidence.training:
        rates = _finite(run, "tokens_per_second")["tokens_per_second"]
        if len(rates):
            yield rule.says(number(rates.median()), "#training", run=run.title, tokens=number(rates.median()))


def gradient_size(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """The usual and the largest norm of the gradients."""
    for run in evidence.training:
        rows = _finite(run, "grad_norm")
        if len(rows) > 1:
            worst = rows.loc[rows["grad_norm"].idxmax()]
            values: dict[str, Any] = {"run": run.title, "median": number(rows["grad_norm"].median())}
            values |= {"most": number(float(worst["grad_norm"])), "step": number(worst["step"])}
            yield rule.says(values["median"], "#training", **values)
