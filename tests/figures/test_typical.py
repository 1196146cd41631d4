"""What is typical: each sentence holds the numbers of its table, and fills a page only as far as is needed."""

import numpy as np
import pandas as pd
import pytest

from glmspectra.figures import Tables
from glmspectra.figures.findings import LEAST, MOST, RULES, TYPICAL, Evidence, Scores, find, typical_as_markdown
from glmspectra.figures.findings.rules import typical
from glmspectra.figures.tables import with_series
from glmspectra.figures.words import number, percent
from tests.docs.documents import ROOT
from tests.figures.test_findings import changes, compared, delta, evaluated, noise, odd_tables, ranks, run_of, weights

SCORES = Scores(
    {
        "base": {"loss": 2.5, "perplexity": 12.18, "token_accuracy": 0.25, "bleu": 3.0},
        "tuned": {"loss": 1.75, "perplexity": 5.755, "token_accuracy": 0.5, "bleu": 9.5},
    },
    samples=[{"base": "a", "tuned": "b"}, {"base": "a", "tuned": "c"}, {"base": "d", "tuned": "d"}],
    rows=96,
)


def values(evidence: Evidence, name: str) -> pd.Series:
    """A column of the weights or changes, by matrix type and layer."""
    table = next(iter(evidence.sets.values())).matrices
    return table.set_index(["matrix", "layer"])[name].astype(float)


def ends(series: pd.Series) -> list[str]:
    """Lowest, median and highest value and where they are, as numpy finds them."""
    found = series.to_numpy()
    (low, at), (high, to) = series.index[np.argmin(found)], series.index[np.argmax(found)]
    spread = [number(float(value)) for value in (np.min(found), np.median(found), np.max(found))]
    return [*spread, f"layer {at} {low}", f"layer {to} {high}"]


def by_type(series: pd.Series) -> list[str]:
    medians = {name: np.median(series[name].to_numpy()) for name in ("dense", "query_key_value")}
    most, least = max(medians, key=medians.get), min(medians, key=medians.get)
    return [f"{most} ", f"{least} ", percent(medians[most], 2), percent(medians[least], 2)]


def training() -> Evidence:
    return Evidence(training=[run_of()])


LOSSES = 2.0 + np.exp(-np.arange(1, 41) / 10)  # as `run_of` has them

# name -> evidence, and what its sentence must hold, computed with numpy.
SAID = {
    "model-losses": (lambda: Evidence(scores=SCORES), lambda _: ["on 96 rows", "base 2.5, tuned 1.75"]),
    "answers": (lambda: Evidence(scores=SCORES), lambda _: ["changed 2 of 3 answers"]),
    "model-scores": (lambda: Evidence(scores=SCORES), lambda _: ["Token accuracy: base 25 %, tuned 50 %"]),
    "change-size": (
        delta,
        lambda e: [percent(np.median(values(e, "relative_frobenius"))), *ends(values(e, "relative_frobenius"))[3:]],
    ),
    "changed-most": (
        lambda: delta(relative_frobenius={(i, "dense"): 0.05 + i / 1e4 for i in range(28)}),
        lambda _: [f"dense changed most, by a median of {percent(np.median(0.05 + np.arange(28) / 1e4))}"],
    ),
    "rank-in-use": (delta, lambda _: [f"{7 * 56} of the {8 * 56} directions allotted hold"]),
    "change-rank": (delta, lambda e: ends(values(e, "stable_rank"))),
    "rank-range": (
        lambda: ranks(lambda i, m: 12 + i if m == "dense" else 4),
        lambda _: [
            "ranks from 4 to 39, median 8",
            f"dense gets most, {np.mean(12 + np.arange(28)):g} on average",
        ],
    ),
    "rank-cost": (
        lambda: ranks(lambda i, m: 7),
        lambda _: [f"{56 * 7 * 2 * 4096:,}", f"{100 * 7 / 8:g} % of the {56 * 8 * 2 * 4096:,}"],
    ),
    "loss-course": (
        training,
        lambda _: [number(np.mean(LOSSES[:5]), 4), number(np.mean(LOSSES[-5:]), 4), "after 400 steps", "of 5 logged"],
    ),
    "lowest-evaluation": (
        training,
        lambda _: ["loss 2.1 (perplexity 8.166) at step 400 of 400", number(np.exp(2.1), 4)],
    ),
    "schedule": (training, lambda _: ["400 steps to epoch 1,", "up to 0.0001"]),
    "gradient-size": (
        training,
        lambda _: [
            number(np.median(1 + 0.1 * np.sin(np.arange(1, 41)))),
            f"(step {10 * (1 + np.argmax(np.sin(np.arange(1, 41))))})",
        ],
    ),
    "speed": (training, lambda _: ["900 tokens a second"]),
    "stable-rank": (weights, lambda e: [*ends(values(e, "stable_rank")), "out of 4,096 directions", "of 56 matrices"]),
    "beyond-noise": (weights, lambda e: [*ends(values(e, "mp_spikes")), "out of 4,096:"]),
    "widest-type": (weights, lambda e: by_type(values(e, "effective_rank") / 4096)),
    "entry-size": (weights, lambda e: ends(values(e, "std"))),
    "tails": (
        lambda: weights(excess_kurtosis={(i, "dense"): -9.0 for i in range(28)}),
        lambda e: [
            number(np.median(values(e, "excess_kurtosis"))),
            "dense is farthest from normal, with a median of −9",
        ],
    ),
    "largest-entry": (weights, lambda e: ends(values(e, "abs_max") / values(e, "std"))),
    "farthest-medians": (
        lambda: compared(spectral_norm={(i, "dense"): 6.6 for i in range(28)}),
        lambda e: ["A and B in dense: spectral norm", "and 6.6 "],
    ),
    "medians-by-run": (
        lambda: compared(effective_rank=500.0),
        lambda e: [f"A {number(np.median(e.compared['A'].matrices['effective_rank']))}, B 500"],
    ),
}


@pytest.mark.parametrize("name", [rule.name for rule in TYPICAL])
def test_each_sentence_holds_the_numbers_of_its_table(name):
    make, expected = SAID[name]
    evidence = make()
    [rule] = [rule for rule in TYPICAL if rule.name == name]
    finding = next(iter(rule.look(evidence, rule)))
    for words in expected(evidence):
        assert words in finding.words.en
    assert finding.link.startswith("#")
    assert finding.size == 0
    numbers = [word for word in finding.words.zh.replace("（", " ").split() if word[0].isdigit()]
    assert numbers, finding.words.zh


@pytest.mark.parametrize(
    "evidence",
    [
        weights(),
        Evidence({"weight": Tables(with_series(noise().drop(columns=["stable_rank", "effective_rank", "mp_spikes"])))}),
        delta(),
        ranks(lambda i, m: 9 if i == 0 else 8),
        training(),
        Evidence(scores=Scores(SCORES.losses, evaluated(-0.8, -0.7, "tuned-base").scores.differences)),
        compared(),
    ],
    ids=["svd", "values", "delta", "ranks", "training", "evaluate", "compare"],
)
def test_every_page_has_three_sentences_at_least(evidence):
    found = find(evidence)
    assert LEAST <= len(found) <= MOST
    assert len({finding.words.en for finding in found}) == len(found)
    assert len(found) == LEAST or all(finding.size for finding in found)


def test_what_is_typical_comes_after_what_stands_out_and_only_fills():
    found = find(weights(stable_rank={(3, "dense"): 3.9}))
    assert [finding.rule for finding in found] == ["outlier", "stable-rank", "beyond-noise"]
    cells = {(layer, "dense"): 1e9 for layer in (3, 9)}
    full = find(weights(condition_number=cells, alpha=8.0, stable_rank={(3, "dense"): 3.9}))
    assert len(full) > LEAST
    assert all(finding.size >= 1 for finding in full)


def test_a_sentence_is_left_out_where_a_deviation_says_the_same():
    rules = {rule.name for rule in RULES}
    assert all(set(rule.unless) <= rules for rule in TYPICAL)
    idle = find(delta(share_of_rank_in_use=0.25))
    assert idle[0].rule == "idle-rank"
    assert "rank-in-use" not in {finding.rule for finding in idle}
    assert "rank-in-use" in {finding.rule for finding in typical(delta())}


def test_of_several_runs_each_kind_of_sentence_comes_before_the_next_run():
    names = [finding.rule for finding in typical(Evidence(training=[run_of("a"), run_of("b")]))]
    assert names[: len(names) // 2] == names[len(names) // 2 :]


def test_of_too_little_there_is_less_to_say():
    single = noise().iloc[:1]
    assert [finding.rule for finding in find(Evidence({"weight": Tables(with_series(single))}))] == ["nothing"]
    assert [finding.rule for finding in find(Evidence())] == ["nothing"]
    empty = run_of()
    empty = type(empty)(empty.name, empty.folder, empty.history.iloc[:0], empty.ranks)
    assert [finding.rule for finding in find(Evidence(training=[empty]))] == ["nothing"]


def test_one_matrix_type_and_matrices_in_no_layer_have_their_sentences():
    table = noise()
    dense = Evidence({"weight": Tables(with_series(table[table["matrix"] == "dense"]))})
    said = {finding.rule: finding.words.en for finding in typical(dense)}
    assert "widest-type" not in said
    assert "farthest" not in said["tails"]
    outside = table.iloc[:2].assign(layer=pd.Series([pd.NA, pd.NA], dtype="Int64"), matrix=["embedding", "head"])
    said = {finding.rule: finding.words.en for finding in typical(Evidence({"weight": Tables(with_series(outside))}))}
    assert "(embedding)" in said["stable-rank"]
    assert "layer" not in said["stable-rank"]


def test_a_change_without_its_base_and_full_fine_tuning_have_their_sentences():
    rows = changes().drop(columns=["relative_frobenius", "allotted_rank", "share_of_rank_in_use"])
    said = {finding.rule: finding.words.en for finding in typical(Evidence({"delta": Tables(with_series(rows))}))}
    assert said.keys() >= {"change-size", "change-rank"}
    assert f"norm of ΔW: median {number(np.median(rows['frobenius_norm']))} of 56" in said["change-size"]


@pytest.mark.parametrize("odd", odd_tables())
def test_odd_tables_give_no_sentence_without_a_number(odd):
    table = odd_tables()[odd]
    change = table.assign(quantity="delta", allotted_rank=8, share_of_rank_in_use=1.0, relative_frobenius=table["std"])
    sets = {"weight": Tables(with_series(table)), "delta": Tables(with_series(change))}
    for finding in [*typical(Evidence(sets)), *typical(Evidence(compared={"A": sets["weight"], "B": sets["weight"]}))]:
        shown = finding.words.en + finding.words.zh + finding.value
        assert not any(word in shown for word in ("nan", "<NA>", "None", "∞")), shown


def test_the_documents_show_what_is_typical():
    assert typical_as_markdown() in (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
