"""The table of all rules, and what they find together."""

from glmspectra.figures.findings import allocation, changes, comparison, tuning, weights
from glmspectra.figures.findings.evidence import Evidence
from glmspectra.figures.findings.rule import Finding, Rule
from glmspectra.language import both

MOST = 6  # on one page
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
    ),
    Rule("far-entries", "abs_max_in_std", 50.0, weights.far_entries),
    Rule("channels", "row_peak, column_peak", 5.0, weights.outlier_channels),
    Rule("poor-fits", "alpha > 6 or alpha_ks > 0.1, share of fits", 0.2, weights.poor_fits),
    Rule("like-noise", "mp_spikes = 0, share of matrices", 0.5, weights.like_noise),
    Rule("lost-rank", "condition_number", 1e7, weights.lost_rank),
    Rule("few-directions", "top12_energy_share, of 120 directions and more", 0.5, weights.few_directions),
    Rule("trend", "last third over first third, rank correlation with depth at least 0.85", 2.0, weights.trends),
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


def find(evidence: Evidence) -> list[Finding]:
    """At most MOST findings: answers first, then by how far out they are; 'nothing stands out' where there is none."""
    found = [(rule, finding) for rule in RULES for finding in list(rule.look(evidence, rule))[:MOST_OF_ONE_RULE]]
    found.sort(key=lambda pair: (not pair[0].answer, -pair[1].size))
    if not found:
        return [Finding("nothing", both("finding-nothing", count=len(RULES)), "", 0.0, "")]
    return [finding for _, finding in found[:MOST]]


def rules_as_markdown() -> str:
    """The table of rules for the documents."""
    lines = ["| rule | measure | from | why there | sentence | 中文 |", "|---|---|---|---|---|---|"]
    for rule in RULES:
        words = both_patterns(rule.name)
        cells = (rule.name, rule.measure, f"{rule.threshold:g}", rule.reason.en, words[0], words[1])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def both_patterns(rule: str) -> tuple[str, str]:
    """The sentence of a rule with its variables by name, in English and Chinese."""
    names = (
        "layer matrix measure value median count all first share factor most criterion least plus minus types low "
        "high mean rows same run best step last rise fall steps times runs one two before after second loss other "
        "from to growth peak"
    )
    given = {name: 2 if name in ("count", "rows", "same") else f"{{{name}}}" for name in names.split()}
    words = both(f"finding-{rule}", **given)
    return words.en, words.zh


__all__ = ["MOST", "RULES", "both_patterns", "find", "rules_as_markdown"]
