"""Numbers of a suggestion against ones worked out by hand, where a small mistake would go unnoticed in a whole run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from glmspectra.errors import RequestError
from glmspectra.ranks import CRITERIA, Limits, allocate, between_runs, budget_curve, gather, parse_budget, suggest
from glmspectra.ranks.budget import Budget
from glmspectra.ranks.criteria import rank_for_share
from glmspectra.ranks.evidence import QUANTILES
from glmspectra.ranks.peft_patterns import DEFAULT_SCALE, scale_of
from glmspectra.ranks.report import disagreement, facts, lines, summary_rows, write_suggestion
from glmspectra.ranks.request import RankRequest
from glmspectra.ranks.stability import PILOTS, STEPS, Stability, between_steps
from glmspectra.ranks.suggest import kept_energy, moved_share
from tests.ranks.made_evidence import BASE, base_run, delta_run, make_run, weight_names, with_metrics

NAMES = weight_names(1)  # 64 x 48, 48 x 48, 160 x 48 and 48 x 80: 112, 96, 208 and 128 parameters a direction


def one_layer(quantity="weight", sigma=(3.0, 1.0), columns=None):
    run = make_run(quantity, {name: np.array(sigma) for name in NAMES}, columns=columns)
    return gather(run) if quantity == "weight" else gather(base_run(1), others=[run])


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        *(("params:900", 900), ("params:2k", 2000), ("params:0.5M", 500_000), ("params:0.25g", 250_000_000)),
        *(("params:0.001B", 1_000_000), ("bytes:4096", 1024), ("bytes:4096b", 1024), ("bytes:8kib", 2048)),
        *(("bytes:2MiB", 2**19), ("bytes:0.5GiB", 2**27), ("bytes:4kB", 1000), ("bytes:2MB", 500_000)),
        *(("bytes:1gb", 250_000_000), ("share:10%", 1689)),
    ],
)
def test_every_unit_of_a_budget(text, parameters):
    budget = parse_budget(text, one_layer())
    assert budget.parameters == parameters
    assert budget.nbytes == 4 * parameters


def test_a_budget_that_is_none_is_refused_with_what_was_written():
    with pytest.raises(RequestError, match=r"'1\.2\.3' is no number"):
        parse_budget("params:1.2.3M", one_layer())
    with pytest.raises(RequestError, match="write like:r=12, params:8M, bytes:32MiB or share"):
        parse_budget("words:3%", one_layer())


def test_what_a_table_holds_is_what_its_criterion_reads():
    values = {name: 2.0 + place for place, name in enumerate(NAMES)}
    columns = ("effective_rank", "stable_rank", "mp_spikes", "gavish_donoho_rank", "alpha")
    evidence = one_layer(columns=dict.fromkeys(columns, values))
    for criterion in ("effective-rank", "stable-rank", "spikes", "gavish-donoho", "alpha"):
        assert CRITERIA[criterion].measure(evidence, None) == values, criterion
    shares = {name: 0.3 + 0.1 * place for place, name in enumerate(NAMES)} | {NAMES[3]: 0.0}
    evidence = one_layer(columns={"top12_share_of_singular_value_sum": shares})
    found = CRITERIA["top-k-share"].measure(evidence, None)
    assert found == pytest.approx({NAMES[0]: 1 / 0.3, NAMES[1]: 2.5, NAMES[2]: 2.0, NAMES[3]: 0.0})


@pytest.mark.parametrize("quantity", ["gradient", "quant_error"])
def test_energies_are_squares(quantity):
    evidence = one_layer(quantity, columns={"frobenius_norm": dict.fromkeys(NAMES, math.sqrt(10))})
    criterion = {"gradient": "gradient", "quant_error": "quantisation"}[quantity]
    for energies in CRITERIA[criterion].measure(evidence, None).values():
        np.testing.assert_allclose(energies, [9.0, 1.0])


@pytest.mark.parametrize("share", ["0", "1", "-0.5", "1.5", "some", "nan"])
def test_a_share_of_energy_lies_between(share):
    with pytest.raises(RequestError, match="between 0 and 1"):
        allocate(one_layer(), f"energy-threshold:{share}", Budget("params", "", 4000))


def test_a_change_of_a_matrix_that_is_zero_is_no_change_in_its_unit():
    base = make_run("weight", {name: np.array([2.0, 1.0]) * (name != NAMES[0]) for name in NAMES})
    delta = make_run("delta", {name: np.array([3.0, 1.0]) for name in NAMES}, 5, checkpoint={"details": {"base": BASE}})
    found = CRITERIA["delta-relative"].measure(gather(base, [delta]), None)
    assert not found[NAMES[0]].any()
    np.testing.assert_allclose(found[NAMES[1]], [1.5, 0.5])


def test_the_tempered_metric_is_the_eighth_root_of_the_clipped_moment():
    run = with_metrics(delta_run(1), delta_run(1, seed=2))
    moments = dict(zip(NAMES, (256.0, 1.0, 0.0, 1e-8), strict=True))
    matrices = run.matrices.copy()
    tempered = matrices["quantity"] == "delta_tempered"
    matrices.loc[tempered, "second_moment"] = matrices.loc[tempered, "name"].map(moments)
    found = gather(base_run(1), [replace(run, matrices=matrices)]).sigma["delta_tempered"]
    plain = delta_run(1, seed=2).singular_values.groupby("name")["sigma"].apply(np.array)
    low, high = np.quantile(list(moments.values()), QUANTILES)
    for name, moment in moments.items():
        factor = (min(max(moment, low), high) / moment) ** (1 / 8) if moment else 1.0
        np.testing.assert_allclose(found[name], plain[name] * factor)


def test_steps_of_a_pilot_are_those_that_hold_what_the_criterion_reads():
    """One step has no second moments, such as one whose optimizer was not saved."""
    runs = [with_metrics(delta_run(2, step=step), delta_run(2, seed=step, step=step)) for step in (10, 20)]
    runs.append(delta_run(2, step=30))
    frames = [
        pd.concat([getattr(run, table) for run in runs], ignore_index=True) for table in ("matrices", "singular_values")
    ]
    pilot = replace(runs[0], matrices=frames[0], singular_values=frames[1])
    base = base_run(2)
    evidence = gather(base, [pilot], step=20)
    budget = parse_budget("like:r=4", evidence)
    for criterion, count in (("delta-adamw", 2), ("delta-threshold", 3)):
        assert between_steps(base, pilot, evidence, criterion, budget, Limits()).pilots == count


def test_how_far_pilots_are_apart_in_words():
    sure, noise = Stability(3, 0.1, 0.2, 0.9, 0.3), Stability(3, 0.3, 0.4, 0.1, 0.3)
    assert sure.sentence(PILOTS).startswith("Between 3 pilots, 10% of the parameters move (at most 20%), where the")
    assert sure.sentence(STEPS).startswith(
        "Between 3 steps of a pilot, 10% of the parameters move (at most 20%), where"
    )
    for between in (PILOTS, STEPS):
        assert "30% from uniform" in sure.sentence(between)
        assert "more than it moves from uniform ranks" in noise.sentence(between)


def test_pilots_that_agree_rank_alike_and_ranks_that_are_all_one_do_not():
    base, pilots = base_run(2), [delta_run(2, seed=1), delta_run(2, seed=1)]
    evidence = gather(base, pilots)
    budget = parse_budget("like:r=4", evidence)
    assert between_runs(base, pilots, evidence, "delta-threshold", budget, Limits()).spearman == 1.0
    pilots = [pilots[0], delta_run(2, seed=2, noise=2.0)]
    fixed = between_runs(base, pilots, evidence, "delta-threshold", budget, Limits(min_rank=4, max_rank=4))
    assert (fixed.spearman, fixed.moved_mean) == (1.0, 0.0)


def test_energy_that_ranks_hold():
    evidence = one_layer(sigma=(3.0, 1.0))
    assert kept_energy(evidence, "weight", dict.fromkeys(NAMES, 1)) == pytest.approx(0.9)
    assert kept_energy(evidence, "weight", dict.fromkeys(NAMES, 0) | {NAMES[0]: 2}) == pytest.approx(0.25)


def test_a_curve_has_the_budgets_that_the_matrices_can_take():
    evidence = gather(base_run(1), [delta_run(1)])
    curve = budget_curve(evidence, "delta-threshold", parse_budget("like:r=4", evidence))
    shares = sorted(set(curve["share_of_budget"]))
    # The cheapest direction costs 96, and rank 48, twelve times the budget, is the highest there is.
    np.testing.assert_allclose(np.log2(shares), np.arange(-4, 4, 0.5))
    everything = sum(min(t.rows, t.cols) * t.cost for t in evidence.targets)
    assert curve["parameters"].max() <= everything


def test_a_mixture_needs_weights_above_zero():
    for text in ("mixture:uniform=0", "mixture:uniform=-0.5", "mixture:=1", "mixture:uniform"):
        with pytest.raises(RequestError, match="write a mixture as"):
            allocate(one_layer(), text, Budget("params", "", 4000))


def test_the_table_on_the_terminal_and_its_heading():
    evidence = gather(base_run(1), [delta_run(1)])
    found = suggest(evidence, "delta-threshold", Budget("params", "params:3000", 3000))
    rows = {name: (answer, parameters, moved) for name, answer, parameters, moved in summary_rows(found.allocations)}
    assert rows["uniform"] == ("score", found.allocations["uniform"].parameters, 0.0)
    assert rows["delta-threshold"][0] == "threshold"
    assert rows["type:delta-threshold"][0] == "mixed"
    assert 0 < rows["delta-threshold"][2] < 1
    spent = found.chosen.parameters
    heading = lines(found)[0]
    assert f"{spent * 4 / 2**20:.1f} MiB" in heading
    assert f"{1 - spent / 3000:.1%} of the budget is not spent" in heading
    whole = suggest(evidence, "delta-threshold", Budget("params", f"params:{spent}", spent))
    assert whole.chosen.parameters == spent
    assert "not spent" not in lines(whole)[0]
    without = {name: one for name, one in found.allocations.items() if name != "uniform"}
    assert all(math.isnan(moved) for *_, moved in summary_rows(without))


def test_which_criteria_disagree_most_and_least():
    evidence = gather(base_run(2), [delta_run(2)])
    found = suggest(evidence, "delta-threshold", parse_budget("like:r=4", evidence))
    controls = ("uniform", "random", "type")
    table = disagreement({n: a for n, a in found.allocations.items() if n.partition(":")[0] not in controls})
    pairs = {(a, b): table.loc[a, b] for i, a in enumerate(table) for b in list(table)[i + 1 :]}
    far, near = max(pairs.values()), min(pairs.values())
    (said,) = [line for line in lines(found) if line.startswith("Criteria disagree")]
    one, two = said.partition("most between ")[2].partition(" (")[0].split(" and ")
    three, four = said.partition("least between ")[2].partition(" (")[0].split(" and ")
    assert pairs[one, two] == far
    assert pairs[three, four] == near
    assert (f"({far:.0%} of" in said, f"({near:.0%})" in said) == (True, True)
    assert any(line.startswith("Energy of delta-W that a budget holds: 50%") for line in lines(found))


@pytest.mark.parametrize(
    ("written", "scale"),
    [
        ({"r": 2, "lora_alpha": 5}, (2.5, False)),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, (3.0, True)),
        ({"r": 2, "lora_alpha": 0.5}, (0.25, False)),
        *(({"r": r, "lora_alpha": alpha}, (DEFAULT_SCALE, False)) for r, alpha in [(0, 4), (4, 0), (4, -0.5)]),
        *(({"r": r, "lora_alpha": alpha}, (DEFAULT_SCALE, False)) for r, alpha in [("x", 4), (4, "inf"), ("inf", 4)]),
    ],
)
def test_the_scale_of_the_users_own_alpha(tmp_path, written, scale):
    (tmp_path / "lora_args.json").write_text(json.dumps(written))
    assert scale_of(tmp_path) == scale


def test_a_share_that_the_known_values_do_not_hold_is_reached_by_the_last_of_them():
    """3 and 2 of energies 9 and 4 are known of 21: the last two thirds take two more of 4 each."""
    assert rank_for_share(np.array([3.0, 2.0]), 21.0, 1.0) == pytest.approx(4)
    delta = make_run("delta", {name: np.array([3.0, 1.0]) for name in NAMES}, 5, checkpoint={"details": {"base": BASE}})
    found = CRITERIA["delta-rank"].measure(gather(base_run(1), [delta]), "0.95")
    assert found == dict.fromkeys(NAMES, 2.0)


def test_how_much_two_sets_of_ranks_differ():
    targets = one_layer().targets  # 112, 96, 208 and 128 parameters a direction
    first, second = (dict(zip(NAMES, ranks, strict=True)) for ranks in ((6, 3, 2, 1), (3, 6, 2, 1)))
    total = 6 * 112 + 3 * 96 + 2 * 208 + 128
    assert moved_share(first, second, targets) == pytest.approx((3 * 112 + 3 * 96) / 2 / total)
    assert moved_share(dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0), targets) == 0


def test_a_change_that_is_not_finite_is_refused_at_its_own_step():
    run = delta_run(1, step=10)
    matrices = run.matrices.copy()
    matrices.loc[0, "status"] = "nonfinite"
    with pytest.raises(RequestError, match=f"NaN or infinity in the change of {NAMES[0]}"):
        gather(base_run(1), [replace(run, matrices=matrices)])
    matrices["quantity"] = "merged"
    both = pd.concat([delta_run(1, step=10).matrices, matrices], ignore_index=True)
    assert gather(base_run(1), [replace(run, matrices=both)]).deltas == 1


def test_what_is_written_beside_the_ranks(tmp_path):
    evidence = gather(base_run(1), [delta_run(1)])
    found = suggest(evidence, "delta-threshold", parse_budget("like:r=4", evidence))
    files = write_suggestion(found, tmp_path / "args" / "ranks.json", tmp_path / "tables", RankRequest())
    assert json.loads((tmp_path / "args" / "ranks.json").read_text())["ranks"]
    table = pd.read_csv(files["table"])
    assert dict(zip(table["name"], table["uniform"], strict=True)) == found.allocations["uniform"].ranks
    assert set(pd.read_parquet(files["ranks_parquet"])["criterion"]) == set(found.allocations)
    curve = pd.read_parquet(files["budget_curve"])
    np.testing.assert_allclose(curve["value"], found.curve["energy"])
    assert json.loads(Path(files["summary"]).read_text())["lines"] == lines(found)
    assert all(
        Path(files[key]).parent == tmp_path / "tables" for key in ("table", "ranks_parquet", "budget_curve", "summary")
    )
    chosen, by_matrix = found.chosen.ranks, facts(found)["by_matrix"]
    for target in evidence.targets:  # one layer, so each matrix type is one matrix
        assert by_matrix[target.matrix] == dict.fromkeys(("mean", "min", "max"), chosen[target.name])
