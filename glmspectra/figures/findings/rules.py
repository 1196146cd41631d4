"""The table of all rules, and what they find together."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice

from glmspectra.figures.findings import allocation, changes, comparison, tuning, weights
from glmspectra.figures.findings.evidence import Evidence
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.language import both

LEAST, MOST = 3, 6  # on one page
MOST_OF_ONE_RULE = 3

# name, measure, threshold, function; why each threshold is where it is stands in the catalogue as `rule-<name>`.
RULES = (
    Rule("against-uniform", "loss of a row, suggested - uniform, 95 % interval", 0.0, tuning.against_uniform, True),
    Rule("against-base", "loss of a row, tuned - base, 95 % interval", 0.0, tuning.against_base, True),
    Rule("nonfinite", "status", 1, weights.nonfinite, True),
    Rule(
        "outlier",
        "robust deviation from the matrix type's median, over 5 + 90 / layers",
        1.0,
        weights.outlying_matrices,
        of_weights=True,
    ),
    Rule("far-entries", "abs_max_in_std", 50.0, weights.far_entries, of_weights=True),
    Rule("channels", "row_peak, column_peak", 5.0, weights.outlier_channels, of_weights=True),
    Rule("poor-fits", "alpha > 6 or alpha_ks > 0.1, share of fits", 0.2, weights.poor_fits, of_weights=True),
    Rule("like-noise", "mp_spikes = 0, share of matrices", 0.5, weights.like_noise, of_weights=True),
    Rule("lost-rank", "condition_number", 1e7, weights.lost_rank, of_weights=True),
    Rule(
        "few-directions", "top12_energy_share, of 120 directions and more", 0.5, weights.few_directions, of_weights=True
    ),
    Rule(
        "trend",
        "last third over first third, rank correlation with depth at least 0.85",
        2.0,
        weights.trends,
        of_weights=True,
    ),
    Rule("larger-than-weight", "relative_frobenius", 1.0, changes.larger_than_weight),
    Rule("outlying-change", "as outlier, of the changes", 1.0, changes.outlying_changes),
    Rule("unchanged", "spectral_norm of the change = 0", 1, changes.unchanged),
    Rule("short-of-rank", "share_of_rank_in_use = 1, share of matrices", 0.5, changes.short_of_rank),
    Rule("idle-rank", "1 - directions in use / rank allotted, all matrices", 0.4, changes.idle_rank),
    Rule("intruders", "intruders > 0, share of matrices", 0.1, changes.intruders),
    Rule("still-growing", "size of all changes, last checkpoint over the one before, - 1", 0.1, changes.still_growing),
    Rule("near-uniform", "share of parameters elsewhere than with uniform ranks", 0.1, allocation.near_uniform),
    Rule("far-from-uniform", "share of parameters elsewhere than with uniform ranks", 0.1, allocation.far_from_uniform),
    Rule("left-out", "rank = 0", 1, allocation.left_out),
    Rule("criteria-disagree", "spread of the criteria over their mean, median", 0.5, allocation.criteria_disagree),
    Rule("nonfinite-loss", "loss, eval_loss not finite; grad_norm not to the end", 1, tuning.nonfinite_loss, True),
    Rule("overfitting", "last over lowest eval_loss, - 1", 0.02, tuning.overfitting),
    Rule("still-falling", "1 - last over last but one eval_loss", 0.01, tuning.still_falling),
    Rule("gradient-spikes", "largest over median grad_norm after a tenth of the steps", 10.0, tuning.gradient_spikes),
    Rule("divergence", "last over first loss", 1.1, tuning.divergence),
    Rule("rates-apart", "largest over smallest peak learning rate", 3.0, tuning.rates_apart),
    Rule("best-run", "second lowest over lowest eval_loss, - 1", 0.001, tuning.best_run),
    Rule("wrong-perplexity", "eval_perplexity of the log against exp of eval_loss, 1 %", 1, tuning.wrong_perplexity),
    Rule("same-answers", "answers that tuning did not change, share", 0.5, tuning.same_answers),
    Rule("moved-measures", "ratio of the medians over the layers", 1.25, comparison.moved_measures),
    Rule("alike", "difference of the medians over the layers", 0.01, comparison.alike),
    Rule("nothing-shared", "matrix names in common", 1, comparison.nothing_shared),
)

# What is typical, in the order in which it is said: the page's own subject first.
TYPICAL = (
    Typical("model-losses", "loss, of each model", tuning.model_losses),
    Typical("answers", "answers, and those that tuning changed", tuning.answers, ("same-answers",)),
    Typical("model-scores", "token_accuracy, rouge_l, bleu, of each model", tuning.model_scores),
    Typical("change-size", "relative_frobenius, without a base frobenius_norm", changes.change_size),
    Typical("changed-most", "relative_frobenius, median by matrix type", changes.changed_most),
    Typical(
        "rank-in-use",
        "share_of_rank_in_use x allotted_rank, all matrices",
        changes.rank_in_use,
        ("idle-rank", "short-of-rank"),
    ),
    Typical("change-rank", "stable_rank of the change", changes.change_rank),
    Typical("rank-range", "rank, and its mean by matrix type", allocation.rank_range),
    Typical("rank-cost", "sum of rank x (rows + cols), beside uniform ranks", allocation.rank_cost),
    Typical("loss-course", "loss, mean of the first and of the last logs", tuning.loss_course, ("divergence",)),
    Typical("lowest-evaluation", "lowest eval_loss", tuning.lowest_evaluation, ("overfitting",)),
    Typical("schedule", "learning_rate, highest; epoch", tuning.schedule, ("rates-apart",)),
    Typical("gradient-size", "grad_norm, median and highest", tuning.gradient_size, ("gradient-spikes",)),
    Typical("speed", "tokens_per_second, median", tuning.speed),
    Typical("stable-rank", "stable_rank", weights.stable_rank),
    Typical("beyond-noise", "mp_spikes", weights.beyond_noise, ("like-noise",)),
    Typical("widest-type", "effective_rank / min(rows, cols), median by matrix type", weights.widest_type),
    Typical("entry-size", "std", weights.entry_size),
    Typical("tails", "excess_kurtosis, and its median by matrix type", weights.tails),
    Typical("largest-entry", "abs_max_in_std", weights.largest_entry, ("far-entries",)),
    Typical(
        "farthest-medians", "ratio of the medians over the layers", comparison.farthest_medians, ("moved-measures",)
    ),
    Typical("medians-by-run", "median of all matrices, by run", comparison.medians_by_run),
)


def find(evidence: Evidence) -> list[Finding]:
    """LEAST to MOST findings: answers first, then by how far out they are, then what is typical.

    'Nothing stands out' where no rule speaks. What is typical is added only up to LEAST; of evidence that holds too
    little there are fewer.
    """
    found = [(rule, finding) for rule in RULES for finding in list(rule.look(evidence, rule))[:MOST_OF_ONE_RULE]]
    found.sort(key=lambda pair: (not pair[0].answer, -pair[1].size))
    first = [_named(rule, finding, evidence) for rule, finding in found[:MOST]]
    first = first or [Finding("nothing", both("finding-nothing", count=len(RULES)), "", 0.0, "")]
    if len(first) >= LEAST:
        return first
    return first + list(islice(typical(evidence, {rule.name for rule, _ in found}), LEAST - len(first)))


def _named(rule: Rule, finding: Finding, evidence: Evidence) -> Finding:
    """The finding; of weights on a page that is about their change, it says so."""
    if not (rule.of_weights and "delta" in evidence.sets):
        return finding
    return replace(finding, words=finding.words + both("finding-of-weights"))


def typical(evidence: Evidence, spoken: Collection[str] = ()) -> Iterator[Finding]:
    """What is typical: one sentence of each kind first, then of each the next (of a second run, a second score).

    Each is looked for when it is asked for.

    Args:
        evidence: What a page is drawn from.
        spoken: Rules that found a deviation.
    """
    left = [iter(rule.look(evidence, rule)) for rule in TYPICAL if not set(rule.unless) & set(spoken)]
    while left:
        going = []
        for looking in left:
            finding = next(looking, None)
            if finding is not None:
                yield finding
                going.append(looking)
        left = going


def rules_as_markdown() -> str:
    """The table of rules that find deviations, for the documents."""
    lines = ["| rule | measure | from | why there | sentence | 中文 |", "|---|---|---|---|---|---|"]
    for rule in RULES:
        words = both_patterns(rule.name)
        cells = (rule.name, rule.measure, f"{rule.threshold:g}", rule.reason.en, words[0], words[1])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def typical_as_markdown() -> str:
    """The table of what is typical, for the documents."""
    lines = ["| name | measure | silent where one speaks | sentence | 中文 |", "|---|---|---|---|---|"]
    for rule in TYPICAL:
        cells = (rule.name, rule.measure, ", ".join(rule.unless), *both_patterns(rule.name))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def both_patterns(rule: str) -> tuple[str, str]:
    """The sentence of a rule with its variables by name, in English and Chinese."""
    names = (
        "layer matrix measure value median count all first share factor most criterion least plus minus types low "
        "high mean rows same run best step last rise fall steps times runs one two before after second loss other "
        "from to growth peak models allotted used parameters epochs tokens perplexity what directions"
    )
    given = {name: 2 if name in ("count", "rows", "same") else f"{{{name}}}" for name in names.split()}
    words = both(f"finding-{rule}", **given)
    return words.en, words.zh


__all__ = [
    "LEAST",
    "MOST",
    "RULES",
    "TYPICAL",
    "both_patterns",
    "find",
    "rules_as_markdown",
    "typical",
    "typical_as_markdown",
]
