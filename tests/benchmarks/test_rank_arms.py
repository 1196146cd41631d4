"""Arms of the study: every one stays within its budget, moving ranks move as their papers say, grids of rates grow."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ranks
from rank_study.arms import ARMS, PILOT, PILOT_LENGTHS, targets_of
from rank_study.bases import Base, layer_linears
from rank_study.facts import PILOT_SEEDS, adam_metric, gather_facts, pilot_seeds_of, train_jobs
from rank_study.many_adapters import ManyAdapters
from rank_study.moving_ranks import AdaLora, Reshared, thin_svd
from rank_study.plan import (
    BUDGETS,
    CONFIRM_SEEDS,
    RATES,
    Job,
    best_rate,
    groups_of,
    jobs_of,
    plan,
    rates_wanted,
    read_lines,
)
from rank_study.table import against_type, costs, losses_of, markdown
from rank_study.table import rows as table_rows
from rank_study.tasks import encode
from test_rank_study import tiny_llama

from glmspectra.ranks.measured import GAINS


@pytest.fixture(scope="module")
def base():
    model = tiny_llama()
    return Base("smollm2", model, lambda text: [ord(c) % 60 + 3 for c in text], [1], 2, layer_linears(model))


@pytest.fixture(scope="module")
def rows(base):
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdef"), size=int(n))) for n in generator.integers(2, 9, size=48)]
    part = encode([(word, word[::-1]) for word in words], base.tokens, base.prefix, base.eos, 20)
    return {"train": part, "development": part, "test": part}


@pytest.fixture(scope="module")
def facts(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pilots")
    found = gather_facts(base, rows["train"], 1e-2, PILOT_LENGTHS, 6, 2, folder, "medical")
    again = gather_facts(base, rows["train"], 1e-2, PILOT_LENGTHS, 6, 2, folder, "medical")
    for kind in ("delta", "preconditioned"):
        one, other = getattr(found, kind)[PILOT][0], getattr(again, kind)[PILOT][0]
        assert all(np.allclose(one[name], other[name], rtol=1e-5) for name in one), "read back from its cache"
    return again


def test_every_arm_ends_within_its_budget_and_close_to_it(base, rows, facts):
    arms = list(ARMS)
    jobs = [Job("smollm2", "medical", arm, 2, 5, 1e-2, "development") for arm in arms]

    lines = {line["arm"]: line for line in map(json.loads, ranks.run_group(base, rows, facts, jobs, 24, 2))}
    budget = 2 * sum(target.cost for target in facts.targets)
    largest = max(target.cost for target in facts.targets)
    for arm, line in lines.items():
        assert budget - 2 * largest < line["parameters"] <= budget, arm
        assert np.isfinite(line["loss"]), arm
    assert lines["delta-threshold"]["largest_rank"] > lines["uniform"]["largest_rank"] == 2


def uniform_run(base, rows, rank, steps, mover):
    ranks_ = [dict.fromkeys(base.modules, rank)] * 2
    adapters = train_jobs(base, rows["train"], ranks_, [1e-2, 1e-2], [1, 2], steps, 2, movers=[mover])
    found = [(name, up, down, adapters.kept(name)) for name, up, down in adapters.factors()]
    adapters.remove()
    return found


def test_adalora_falls_to_its_budget_and_leaves_other_jobs_alone(base, rows):
    targets = targets_of(base.shapes())
    cost = sum(target.cost for target in targets)
    mover = AdaLora(targets, [1], [2 * cost], 20)
    seen = []
    move = mover.move

    def spy(adapters, grad, step):
        move(adapters, grad, step)
        costs = {t.module: t.cost for t in targets}
        seen.append(sum(int(adapters.kept(name)[1].sum()) * costs[name] for name in adapters.layers))

    mover.move = spy
    found = uniform_run(base, rows, 3, 20, mover)
    assert seen[0] == 3 * cost, "nothing is dropped before the schedule begins"
    assert all(later <= earlier for earlier, later in pairwise(seen))
    assert 2 * cost - max(t.cost for t in targets) < seen[-1] <= 2 * cost
    assert len({int(kept[1].sum()) for *_, kept in found}) > 1, "importance differs between layers"
    assert all(kept[0].all() for *_, kept in found)


def test_adalora_keeps_what_matters(base):
    """A direction without gradient has no importance, whatever its size."""

    targets = targets_of(base.shapes())
    adapters = ManyAdapters(base.model, base.modules, [dict.fromkeys(base.modules, 2)], [1e-2], [0])
    adapters.master.fill_(1.0)
    grad = torch.zeros_like(adapters.master)
    for number, name in enumerate(adapters.layers):
        for view in adapters.of(grad, name):
            (view[0] if view.shape[1] == 2 else view[0].T)[number % 2] = 1.0
    mover = AdaLora(targets, [0], [sum(target.cost for target in targets)], 10)
    for step in range(6):
        mover.move(adapters, grad, step)
    for number, name in enumerate(adapters.layers):
        assert adapters.kept(name)[0].tolist() == [number % 2 == 0, number % 2 == 1], name
    adapters.remove()


def test_resharing_keeps_delta_w_where_the_budget_holds_it(base, rows):
    targets = targets_of(base.shapes())
    cost = sum(target.cost for target in targets)
    before, after = {}, {}

    class Spy(Reshared):
        def move(self, adapters, grad, step):
            if step == round(self.at * self.steps):
                before.update((name, (up @ down).clone()) for name, up, down in adapters.factors())
                super().move(adapters, grad, step)
                after.update((name, (up @ down).clone()) for name, up, down in adapters.factors())
                assert adapters.steps[:, 0].tolist() == [step, 0], "only its own job begins its moments anew"

    uniform_run(base, rows, 3, 9, Spy(targets, [1], [3 * cost], 9))
    for name, whole in before.items():
        torch.testing.assert_close(after[name], whole, atol=1e-6, rtol=1e-4)
    uniform_run(base, rows, 3, 9, Spy(targets, [1], [cost], 9))
    dropped = [float((before[n][1] - after[n][1]).norm()) for n in before]
    assert max(dropped) > 0
    for number, name in enumerate(before):
        sigma = torch.linalg.svdvals(before[name][1].double())
        kept = int(torch.linalg.matrix_rank(after[name][1].double(), rtol=1e-4))
        assert dropped[number] == pytest.approx(float(sigma[kept:3].norm()), rel=1e-3, abs=1e-7), "the smallest part"


def test_thin_svd_is_the_products():
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(2, 9, 3, generator=generator).double()
    down = torch.randn(2, 3, 7, generator=generator).double()
    left, sigma, right = thin_svd(up, down)
    torch.testing.assert_close(left * sigma[:, None, :] @ right, up @ down)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(up @ down)[:, :3])


def test_the_metric_finds_the_factors_of_a_separable_second_moment():
    """G_ij = sqrt(r_i c_j) e_ij: the moments of dB = G A^T and dA = B^T G over many draws give r and c back."""
    generator = torch.Generator().manual_seed(0)
    r, c = torch.rand(6, generator=generator) + 0.2, torch.rand(8, generator=generator) + 0.2
    b, a = torch.randn(6, 4, generator=generator), torch.randn(4, 8, generator=generator)
    noise = torch.randn(40000, 6, 8, generator=generator)
    gradients = (r[:, None] * c[None, :]).sqrt() * noise
    second_b = (gradients @ a.T).square().mean(0)
    second_a = (b.T @ gradients).square().mean(0)
    rows_, columns = adam_metric(second_a[None], second_b[None], a[None])
    torch.testing.assert_close((columns[0] ** 4) / (columns[0] ** 4).mean(), c / c.mean(), rtol=0.05, atol=0)
    torch.testing.assert_close((rows_[0] ** 4) / (rows_[0] ** 4).mean(), r / r.mean(), rtol=0.05, atol=0)


def line(rate, loss, arm="uniform", budget=4, seed=10, part="development", **more):
    own = {"base": "smollm2", "task": "medical", "arm": arm, "budget": budget, "seed": seed, "rate": rate}
    return {**own, "part": part, "loss": loss, "seconds_of_group": 60.0, "jobs_in_group": 15, "steps": 240, **more}


def test_a_grid_of_rates_grows_until_the_best_is_inside_it():
    where = ("smollm2", "medical", "uniform", 4)
    assert rates_wanted([], *where) == [4e-3, 8e-3]
    lines = [line(4e-3, 1.2), line(8e-3, 1.1)]
    assert rates_wanted(lines, *where) == [1.6e-2]
    lines.append(line(1.6e-2, float("nan")))
    assert rates_wanted(lines, *where) == [], "diverged: the best is inside"
    assert best_rate(lines, *where) == 8e-3
    assert rates_wanted([line(4e-3, 1.0), line(8e-3, 1.1)], *where) == [2e-3]
    assert best_rate(lines, "smollm2", "medical", "uniform", 12) == 8e-3, "the nearest budget that was tuned"
    screened = [*lines, line(3e-3, 0.1, seed=20)]
    assert best_rate(screened, *where) == 8e-3, "seeds of the screening do not tune"


def test_only_arms_that_are_confirmed_are_tuned_at_every_budget():
    tuned = {(job.arm, job.budget) for job in jobs_of("rates", "smollm2", "medical", [])}
    assert {budget for arm, budget in tuned if arm == "adalora"} == {4}
    assert {budget for arm, budget in tuned if arm == "type-alone"} == set(BUDGETS)


def test_a_rate_that_lacks_a_seed_is_not_tried_yet():
    where = ("chatglm2", "medical", "uniform", 4)
    lines = [{**line(rate, 1.0 + rate, seed=10), "base": "chatglm2"} for rate in RATES["chatglm2"]]
    assert rates_wanted(lines, *where) == list(RATES["chatglm2"])
    lines += [{**line(rate, 1.0 + abs(rate - 4e-3), seed=11), "base": "chatglm2"} for rate in RATES["chatglm2"]]
    assert rates_wanted(lines, *where) == [1e-3]


def test_a_confirming_seed_has_pilots_of_its_own(base, rows, facts, tmp_path):
    own = gather_facts(base, rows["train"], 1e-2, (PILOT,), 6, 2, tmp_path, "medical", own_seeds=(200, 201))
    assert len({seed for asked in (200, 201) for seed in pilot_seeds_of(asked)} | set(PILOT_SEEDS)) == 9
    budget = 2 * sum(target.cost for target in own.targets)
    sizes = [own.mean_delta(seed) for seed in (200, 201, 5)]
    name = base.modules[0]
    assert not np.allclose(sizes[0][name], sizes[1][name])
    assert np.allclose(sizes[2][name], own.mean_delta(6)[name]), "others share the first pilots"
    for seed in (200, 201):
        assert sum(ARMS["delta-threshold"](own, budget, seed)[t.module] * t.cost for t in own.targets) <= budget


def test_eva_gives_no_layer_more_than_pefts_rho_allows(facts):
    budget = 2 * sum(target.cost for target in facts.targets)
    loud = next(iter(facts.input_variance))
    variance = {name: np.full(6, 0.9 if name == loud else 0.1) for name in facts.input_variance}
    found = ARMS["eva"](replace(facts, input_variance=variance), budget, 0)
    assert found[loud] == max(found.values()) == 4


def test_arms_are_compared_with_the_kind_alone_in_a_family_of_their_own():
    lines = []
    for rate, loss in ((4e-3, 1.2), (8e-3, 1.1), (1.6e-2, 1.3)):
        lines += [line(rate, loss, arm) for arm in ("uniform", "delta-threshold", "effective-rank", "type-alone")]
    gaps = np.random.default_rng(0).normal(-0.01, 0.002, size=10)
    for seed, gap in zip(CONFIRM_SEEDS, gaps, strict=True):
        for arm, shift in (("type-alone", 0.0), ("delta-threshold", gap), ("effective-rank", -gap)):
            lines.append(line(8e-3, 1.0 + seed + shift, arm, seed=seed, part="test", device="card"))
    found = {row["arm"]: row for row in against_type(lines)}
    assert found["delta-threshold"]["mean"] == pytest.approx(gaps.mean())
    assert found["effective-rank"]["mean"] == pytest.approx(-gaps.mean())
    p = stats.ttest_1samp(gaps, 0).pvalue
    assert [row["holm_p"] for row in found.values()] == pytest.approx([2 * p, 2 * p])
    (cost,) = costs(lines)
    assert (cost["seconds"], cost["factor"]) == (4.0, 2.0), "60 s for 15 jobs; 3 pilots of 80 steps beside 240"


def test_what_suggest_rank_says_of_a_gain_is_what_the_lines_say():
    lines = read_lines(Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "ranks.jsonl")
    for name, gain in GAINS.items():
        arm = name.replace("type:delta-threshold", "type-alone")
        found = [row["paired"] for row in table_rows(lines) if row["base"] == "smollm2" and row["arm"] == arm]
        gained = sorted(-one.mean for one in found)
        assert len(found) == 3
        assert (gain.least, gain.most) == pytest.approx((gained[0], gained[-1]), abs=6e-4), name
        assert {one.seeds for one in found} == {gain.seeds}
        others = [row for row in table_rows(lines) if row["base"] == "chatglm2" and row["arm"] == arm]
        assert all(row["holm_p"] > 0.05 for row in others), "nothing on the other model"


def test_the_table_reads_the_chosen_rate_and_fresh_seeds_first():
    lines = [line(4e-3, 1.2), line(8e-3, 1.1), line(4e-3, 9.0, seed=100, part="test")]
    where = ("smollm2", "medical", "uniform", 4)
    assert losses_of(lines, *where) == {}, "a rate that tuning has left"
    lines.append(line(8e-3, 1.0, seed=100, part="test"))
    assert losses_of(lines, *where) == {100: 1.0}
    lines.append(line(8e-3, 0.9, seed=CONFIRM_SEEDS[0], part="test"))
    assert losses_of(lines, *where) == {CONFIRM_SEEDS[0]: 0.9}


def test_the_screening_is_printed_apart_from_the_evidence():
    lines = [line(4e-3, 1.2), line(8e-3, 1.1)]
    assert "screened" not in markdown(lines)
    for seed, gap in ((20, -0.02), (21, -0.04)):
        lines += [line(8e-3, 1.0, "uniform", seed=seed), line(8e-3, 1.0 + gap, "adalora", seed=seed)]
    assert markdown(lines).splitlines()[-1] == "| smollm2, medical | adalora | -0.0300 | 2 |"


def test_the_plan_counts_what_is_open():
    with pytest.raises(SystemExit, match="run --stage rates first"):
        list(jobs_of("confirm", "smollm2", "medical", []))
    grid = ((4e-3, 1.2), (8e-3, 1.1), (1.6e-2, 1.3))
    middle = [line(rate, loss, arm) for arm in ARMS for rate, loss in grid]
    with pytest.raises(SystemExit, match=r"rates of uniform at r 2 on smollm2 and medical is open \(next 0.004"):
        list(jobs_of("confirm", "smollm2", "medical", middle))
    lines = [line(rate, loss, arm, budget) for arm in ARMS for budget in BUDGETS for rate, loss in grid]
    told = plan(lines, 15, 240)
    assert "smollm2 medical confirm: 10 groups, 150 jobs, about 11 min" in told, "ten minutes, and the pilots"
    assert "smollm2 python confirm: The grid of rates of uniform at r 2 on smollm2 and python is open" in told
    first = groups_of("confirm", "smollm2", "medical", lines, 15)[0]
    assert len(first) == 15
    assert {job.seed for job in first} == {CONFIRM_SEEDS[0]}, "a cut leaves pairs whole"
    done = [line(job.rate, 1.0, job.arm, job.budget, job.seed, "test") for job in first]
    assert len(groups_of("confirm", "smollm2", "medical", lines + done, 15)) == 9


def test_the_readme_shows_the_table_of_the_committed_lines():
    root = Path(__file__).resolve().parents[2]
    table = markdown(read_lines(root / "benchmarks" / "results" / "ranks.jsonl"))
    assert "| smollm2, medical | r 4" in table
    assert table in (root / "README.md").read_text("utf-8")
