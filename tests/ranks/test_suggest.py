"""From tables to ranks: budgets, criteria, mixtures, controls, the curve, stability between pilots."""

import numpy as np
import pytest

from glmspectra.errors import RequestError
from glmspectra.ranks import (
    CRITERIA,
    Limits,
    allocate,
    available,
    between_runs,
    budget_curve,
    default_budget,
    default_criterion,
    gather,
    moved_share,
    parse_budget,
    pilot_rank,
    suggest,
)
from glmspectra.ranks.criteria import rank_for_share
from glmspectra.ranks.report import against_uniform, curve_table, facts, lines, long_table
from glmspectra.ranks.request import RankRequest
from glmspectra.ranks.study_gains import sentence
from glmspectra.ranks.suggest import kept_energy, needed_parameters
from glmspectra.spectra.summary import energy_rank
from tests.ranks.made_evidence import BASE, base_run, delta_run, make_run, weight_names, with_metrics

LAYERS = 12


@pytest.fixture(scope="module")
def evidence():
    return gather(base_run(), [delta_run()])


def test_the_default_is_four_matrices_at_the_price_of_rank_12_on_query_key_value(evidence):
    assert len(evidence.targets) == 4 * LAYERS
    budget = parse_budget(default_budget(evidence), evidence)
    assert budget.parameters == 12 * LAYERS * (64 + 48)
    assert default_criterion(evidence) == "delta-threshold"
    assert default_criterion(gather(base_run())) == "effective-rank"


def test_budgets_in_every_unit(evidence):
    per_rank = LAYERS * (112 + 96 + 208 + 128)
    weights = LAYERS * (64 * 48 + 48 * 48 + 160 * 48 + 48 * 80)
    assert parse_budget("like:r=3", evidence).parameters == 3 * per_rank
    assert parse_budget("like:r=12@dense*", evidence).parameters == 12 * LAYERS * (96 + 208 + 128)
    assert parse_budget("params:8k", evidence).parameters == 8000
    assert parse_budget("params:0.1M", evidence).parameters == 100_000
    assert parse_budget("bytes:1MiB", evidence).parameters == 2**20 // 4
    assert parse_budget("share:0.5%", evidence).parameters == int(0.005 * weights)
    numbers = ("params:many", "share:3", "share:1.2.3%", "params:1.2.3M", "params:10")
    for wrong in ("like:12", "8M", "like:r=12@nothing", *numbers):
        with pytest.raises(RequestError):
            parse_budget(wrong, evidence)


def test_targets_are_chosen_by_kind_or_name(evidence):
    only = gather(base_run(), targets="dense_h_to_4h,*layers.1.self_attention.dense.weight")
    assert [t.matrix for t in only.targets].count("dense_h_to_4h") == LAYERS
    assert [t.name for t in only.targets if t.matrix == "dense"] == [
        "transformer.encoder.layers.1.self_attention.dense.weight"
    ]
    with pytest.raises(RequestError, match="names no matrix"):
        gather(base_run(), targets="q_proj")


def test_every_criterion_stays_in_the_budget_and_names_its_source(evidence):
    full = gather(
        base_run(),
        [with_metrics(delta_run(), delta_run(seed=2))],
        others=[
            make_run(
                "quant_error",
                {name: np.linspace(2, 1, 20) for name in weight_names(LAYERS)},
                columns={"frobenius_norm": dict.fromkeys(weight_names(LAYERS), 12.0)},
            ),
            make_run(
                "gradient",
                {name: np.linspace(2, 1, 20) for name in weight_names(LAYERS)},
                columns={"gradient_importance": {name: 1.0 + i for i, name in enumerate(weight_names(LAYERS))}},
            ),
        ],
    )
    assert available(full) == list(CRITERIA), "the tables answer them all"
    budget = parse_budget("like:r=5", full)
    for name, entry in CRITERIA.items():
        suggestion = allocate(full, name, budget)
        assert 0.5 * budget.parameters < suggestion.parameters <= budget.parameters, name
        assert len(entry.source) > 60, name
    literature = ("Hu et al.", "Roy & Vetterli", "Gavish & Donoho", "Martin, Peng & Mahoney", "Li et al. 2023", "GoRA")
    sources = " ".join(entry.source for entry in CRITERIA.values())
    assert all(author in sources for author in literature)


def test_what_the_tables_do_not_hold_is_refused_with_the_way_to_get_it():
    evidence = gather(base_run())
    budget = parse_budget("like:r=4", evidence)
    with pytest.raises(RequestError, match="needs a change to look at"):
        allocate(evidence, "delta-threshold", budget)
    with pytest.raises(RequestError, match="--quantized"):
        allocate(evidence, "quantisation", budget)
    with pytest.raises(RequestError, match="there is no 'magic'"):
        allocate(evidence, "magic", budget)
    with pytest.raises(RequestError, match="no tables"):
        gather(None)


def test_the_delta_threshold_is_one_number_over_all_matrices(evidence):
    budget = parse_budget("like:r=4", evidence)
    suggestion = allocate(evidence, "delta-threshold", budget)
    threshold = suggestion.threshold
    for target in evidence.targets:
        sigma = evidence.sigma["delta"][target.name]
        over = int(np.sum(sigma > threshold))
        assert suggestion.ranks[target.name] >= over
        assert suggestion.ranks[target.name] - over <= 1, "only what was left over goes below the threshold"


def test_delta_energy_holds_the_most_and_the_curve_says_so(evidence):
    budget = parse_budget("like:r=4", evidence)
    best = kept_energy(evidence, "delta", allocate(evidence, "delta-energy", budget).ranks)
    for name in available(evidence):
        assert kept_energy(evidence, "delta", allocate(evidence, name, budget).ranks) <= best + 1e-12, name
    curve = budget_curve(evidence, "delta-energy", budget)
    assert set(curve["criterion"]) == {"delta-energy", "uniform"}
    for _, rows in curve.groupby("criterion"):
        assert rows["energy"].is_monotonic_increasing
    wide = curve.pivot_table(index="parameters", columns="criterion", values="energy")
    assert (wide["delta-energy"] >= wide["uniform"] - 1e-12).all()
    needed = needed_parameters(curve, "delta-energy")
    assert list(needed.values()) == sorted(needed.values())
    assert set(curve_table(curve)["metric"]) == {"energy"}


def test_the_pooled_control_leaves_only_the_kind_of_matrix(evidence):
    budget = parse_budget("like:r=6", evidence)
    pooled = allocate(evidence, "type:delta-threshold", budget)
    assert pooled.parameters <= budget.parameters
    for matrix in ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"):
        ranks = {pooled.ranks[t.name] for t in evidence.targets if t.matrix == matrix}
        assert max(ranks) - min(ranks) <= 1


def test_mixtures_lie_between(evidence):
    budget = parse_budget("like:r=6", evidence)
    a, b = (allocate(evidence, name, budget).ranks for name in ("delta-threshold", "effective-rank"))
    mixed = allocate(evidence, "mixture:delta-threshold=1,effective-rank=1", budget).ranks
    for name, rank in mixed.items():
        assert min(a[name], b[name]) <= rank <= max(a[name], b[name]) + 1
    assert allocate(evidence, "mixture:delta-threshold=5", budget).ranks == a
    with pytest.raises(RequestError, match="write a mixture as"):
        allocate(evidence, "mixture:delta-threshold", budget)


def test_random_ranks_differ_by_seed_and_repeat(evidence):
    budget = parse_budget("like:r=6", evidence)
    one, two, again = (allocate(evidence, f"random:{seed}", budget).ranks for seed in (1, 2, 1))
    assert one == again
    assert moved_share(one, two, evidence.targets) > 0.2
    assert moved_share(one, one, evidence.targets) == 0


def test_side_by_side_and_in_words(evidence):
    budget = parse_budget("like:r=6", evidence)
    suggestion = suggest(evidence, "delta-threshold", budget)
    assert list(suggestion.allocations)[:3] == ["delta-threshold", "uniform", "type:delta-threshold"]
    table = long_table(suggestion.allocations)
    assert len(table) == len(suggestion.allocations) * 4 * LAYERS
    assert (table[table["criterion"] == "uniform"]["rank"] == 6).all()
    listed = facts(suggestion)
    assert listed["base"] == {"name": "base", "fingerprint": BASE["fingerprint"]}
    assert listed["bytes"] == 4 * listed["parameters"]
    said = "\n".join(lines(suggestion))
    assert "of the parameters are elsewhere than with uniform ranks" in said
    assert "Criteria disagree most between" in said
    assert "--pilot" not in said
    alone = gather(base_run())
    assert "pilot" in lines(suggest(alone, "effective-rank", budget))[-1], "one line on what a pilot would add"
    said = lines(suggest(alone, "spikes", budget))
    assert any("so nothing is known" in line for line in said)
    assert not any("energy of delta-W" in line for line in said)
    flat = make_run(
        "weight",
        {n: np.ones(40) for n in weight_names(2)},
        columns={"effective_rank": dict.fromkeys(weight_names(2), 40.0)},
    )
    flat_evidence = gather(flat)
    found = suggest(flat_evidence, "effective-rank", parse_budget("like:r=6", flat_evidence))
    assert any(line.startswith("These are uniform ranks") for line in lines(found))


def test_where_limits_leave_no_choice_no_disagreement_is_made_up(evidence):
    said = lines(
        suggest(evidence, "delta-threshold", parse_budget("like:r=5", evidence), Limits(min_rank=4, max_rank=4))
    )
    assert "All criteria give the same ranks: limits and budget leave them no choice." in said
    assert not any("disagree" in line for line in said)


def test_stability_between_pilots():
    base = base_run()
    alike = [delta_run(seed=seed, noise=0.02) for seed in (1, 2, 3)]
    apart = [delta_run(seed=seed, noise=2.0) for seed in (1, 2, 3)]
    results = []
    for runs in (alike, apart):
        evidence = gather(base, runs)
        assert evidence.deltas == 3
        budget = parse_budget("like:r=4", evidence)
        results.append(between_runs(base, runs, evidence, "delta-threshold", budget, Limits()))
    assert results[0].moved_mean < 0.05 < 0.2 < results[1].moved_mean
    assert results[0].spearman > 0.95 > results[1].spearman
    assert "where the suggestion itself" in results[0].sentence("3 pilots")
    assert pilot_rank(budget, evidence) == 12, "three times the mean rank"


def test_stability_is_told_of_what_the_criterion_reads():
    """Pilots whose delta-W is alike and whose second moments are not."""
    runs = [with_metrics(delta_run(seed=1, noise=0.02), delta_run(seed=seed, noise=2.0)) for seed in (1, 2, 3)]
    evidence = gather(base_run(), runs)
    budget = parse_budget("like:r=4", evidence)
    moved = {
        criterion: between_runs(base_run(), runs, evidence, criterion, budget, Limits()).moved_mean
        for criterion in ("delta-threshold", "delta-adamw", "delta-tempered")
    }
    assert moved["delta-threshold"] == 0
    assert moved["delta-adamw"] == moved["delta-tempered"] > 0.1


def test_sizes_of_a_change_are_those_of_dense_matrices():
    chance = np.random.default_rng(4)
    name = weight_names(1)[0]
    rows, cols = 64, 48
    base, change = chance.normal(size=(rows, cols)), chance.normal(size=(rows, 5)) @ chance.normal(size=(5, cols))
    runs = [make_run(quantity, {name: np.linalg.svd(matrix)[1]}, checkpoint=dict(BASE) | {"details": {"base": BASE}})
            for quantity, matrix in (("weight", base), ("delta", change))]  # fmt: skip
    evidence = gather(runs[0], runs[1:])
    expected = {
        "delta-threshold": change,
        "delta-fan": change * np.sqrt(cols / rows),
        "delta-relative": change / np.linalg.norm(base, 2),
    }
    for criterion, matrix in expected.items():
        found = CRITERIA[criterion].measure(evidence, None)[name]
        np.testing.assert_allclose(found, np.linalg.svd(matrix)[1], rtol=1e-10, atol=1e-12)
    energy = CRITERIA["delta-energy"].measure(evidence, None)[name]
    best = [np.linalg.norm(change - _truncated(change, rank)) ** 2 for rank in range(6)]
    np.testing.assert_allclose(np.diff(best), -np.asarray(energy)[:5], rtol=1e-8)


def _truncated(matrix, rank):
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank]


def test_several_pilots_are_averaged_value_by_value():
    runs = [delta_run(seed=1), delta_run(seed=2, rank=4)]
    evidence = gather(None, runs)
    name = evidence.targets[0].name
    values = [run.singular_values[run.singular_values["name"] == name]["sigma"].to_numpy() for run in runs]
    expected = values[0].copy()
    expected[:4] += values[1]
    np.testing.assert_allclose(evidence.sigma["delta"][name], expected / 2)


def test_tables_of_different_bases_are_not_mixed():
    other = delta_run()
    other.manifest["checkpoint"]["details"]["base"]["fingerprint"] = "f" * 16
    with pytest.raises(RequestError, match="different base checkpoints"):
        gather(base_run(), [other])
    silent = delta_run()
    silent.manifest["checkpoint"]["details"]["base"] = None
    assert gather(base_run(), [silent]).base_fingerprint == BASE["fingerprint"]
    with pytest.raises(RequestError, match="does not say which base"):
        gather(None, [silent])
    with pytest.raises(RequestError, match="no delta of step 7"):
        gather(base_run(), [delta_run(step=80)], step=7)


def test_ranks_that_hold_a_share_of_the_energy():
    sigma = np.array([3.0, 2.0, 1.0, 1.0])  # energies 9, 4, 1, 1
    shares = (0.5, 0.6, 0.61, 0.9, 0.99)
    assert [energy_rank(sigma, share) for share in shares] == [1, 1, 2, 3, 4]
    assert [rank_for_share(sigma, 15.0, share) for share in shares] == [1, 1, 2, 3, 4]
    assert energy_rank(np.zeros(3), 0.9) == rank_for_share(np.zeros(3), 0.0, 0.9) == 0
    assert [energy_rank(sigma, share, 30.0) for share in (0.3, 0.5, 0.6)] == [1, 4, None]
    assert rank_for_share(sigma, 15.0, 0.6) == 1
    assert rank_for_share(sigma, 30.0, 0.5) == pytest.approx(4)
    assert rank_for_share(sigma, 40.0, 0.5) == pytest.approx(4 + 5), "five more of energy 1, at the least"


def test_what_rounding_alone_can_have_made_gets_no_rank():
    """A full difference of stored bfloat16: two directions of signal over a bulk of forty of noise."""
    names = weight_names(LAYERS)
    sigma = {name: np.concatenate([[5.0 + i, 4.0], np.linspace(1.0, 0.5, 40)]) for i, name in enumerate(names)}
    details = {"name": "tuned", "fingerprint": "1" * 16, "details": {"base": dict(BASE)}}
    noisy = make_run("delta", sigma, checkpoint=details, columns={"noise_floor": dict.fromkeys(names, 1.01)})
    evidence = gather(base_run(), [noisy])
    suggestion = allocate(evidence, "delta-threshold", parse_budget("like:r=6", evidence))
    assert set(suggestion.ranks.values()) == {2}
    blind = make_run("delta", sigma, checkpoint=details)
    evidence = gather(base_run(), [blind])
    fooled = allocate(evidence, "delta-threshold", parse_budget("like:r=6", evidence))
    assert max(fooled.ranks.values()) > 2, "the control: without the floor noise is bought"


def test_the_summary_says_what_a_criterion_gains(evidence):
    budget = parse_budget("like:r=6", evidence)
    for criterion, words in (
        ("delta-threshold", "0.010 to 0.013 (135M model, a task far from it)"),
        ("delta-rank:0.8", "not among those our study confirms"),
    ):
        found = suggest(evidence, criterion, budget)
        said, listed = "\n".join(lines(found)), facts(found)
        assert words in said
        own, theirs = listed["delta_energy_held"], listed["delta_energy_held_by_uniform"]
        assert f"hold {theirs:.1%} of the energy of delta-W at this cost where these hold {own:.1%}" in said
    assert own != theirs
    assert "-0.003 to 0.000 (small ChatGLM2-shaped model, the same task; not sure" in sentence("effective-rank")
    nearly = against_uniform({"moved_from_uniform": 0.02, "criterion": "effective-rank"})
    assert "Only 2.0%" in nearly[0]
    assert "expect no difference" in nearly[0]
    said = lines(suggest(evidence, "delta-threshold", budget, Limits(min_rank=4, max_rank=4)))
    assert any(line.startswith("These are uniform ranks") for line in said)
    assert not any("What it gains" in line for line in said)


@pytest.mark.parametrize(
    "wrong",
    [
        {"criterion": "delta-treshold"},
        {"criterion": "type:nothing"},
        {"criterion": "mixture:uniform=0.5,nothing=0.5"},
        {"criterion": "mixture:uniform"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"exports": ["unsloth"]},
    ],
)
def test_what_cannot_be_is_refused_before_a_pilot_is_trained_for_it(wrong):
    with pytest.raises(RequestError, match=r"--(criterion|scale|export) "):
        RankRequest(**wrong)
    assert RankRequest(criterion="mixture:delta-threshold=0.7,type:effective-rank=0.3").scale == 2
