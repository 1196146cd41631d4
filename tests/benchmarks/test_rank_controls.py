"""Controls of the study: step sizes apart from ranks, cut adapters, the portfolio's tests and its picks."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study import controls
from rank_study.control_arms import CONTROLS, CUT, CUT_CONTINUED, DELTA, FLOOR, MENU
from rank_study.cutting import keep_leading, ranks_over_threshold, singular_directions
from rank_study.facts import Facts, train_jobs
from rank_study.many_adapters import ManyAdapters
from rank_study.plan import Job, line_of
from rank_study.tasks import encode
from rank_study.workers import run_cut, run_group, run_truncated

from tests.benchmarks.tiny_bases import tiny_neox


@pytest.fixture(scope="module")
def base():
    return tiny_neox()


@pytest.fixture(scope="module")
def rows(base):
    chance = np.random.default_rng(0)
    pairs = [(f"{n}: {chance.integers(1000000)}?", f"{chance.integers(1000)}.") for n in range(60)]
    parts = {"train": pairs[:40], "development": pairs[40:50], "test": pairs[50:]}
    return {name: encode(part, base.tokens, base.prefix, base.eos, base.length) for name, part in parts.items()}


@pytest.fixture
def facts(base, rows, tmp_path, monkeypatch):
    """Facts whose pilots are given: one direction more a layer, and none in the last two."""
    sizes = {name: 0.8 ** np.arange(12.0) * (n < 6) * (1 + n) for n, name in enumerate(base.modules)}
    found = Facts(base, rows["train"], "medical", tmp_path, 2e-3, 12, 2, own_pilots=controls.SEEDS)
    one = type("Given", (), dict.fromkeys(("plain", "preconditioned", "tempered"), sizes))()
    monkeypatch.setattr(found, "pilots", lambda *_, **__: [one], raising=False)
    return found


def job(arm, seed=300, budget=2, part="test", rate=4e-3):
    return Job("neox", "medical", arm, budget, seed, rate, part)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def delta_of(adapters, number):
    return {name: up[number] @ down[number] for name, up, down in adapters.factors()}


def test_a_scale_of_one_layer_is_the_whole_scale_there(base, rows):
    """Factor 1/2 everywhere at scale 2 is scale 1: the same steps, the same delta-W, beside a job that has none."""
    ranks = dict.fromkeys(base.modules, 3)
    both = train_jobs(
        base, rows["train"], [ranks, ranks], [5e-3] * 2, [1, 1], 4, 2, factors=[dict.fromkeys(base.modules, 0.5), {}]
    )
    both.remove()
    alone = ManyAdapters(base.model, base.modules, [ranks], [5e-3], [1], scale=1.0)
    order = torch.randperm(len(rows["train"]), generator=torch.Generator().manual_seed(1))
    for step in range(4):
        alone.step(rows["train"].take(order[2 * step : 2 * step + 2], "cpu"), step / 4)
    alone.remove()
    for name, delta in delta_of(alone, 0).items():
        torch.testing.assert_close(delta_of(both, 0)[name], delta, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(delta_of(both, 1)[name], delta, rtol=1e-2, atol=1e-7)


def test_b_alone_goes_faster_with_lora_plus(base, rows):
    ranks = [dict.fromkeys(base.modules, 3)] * 2
    found = train_jobs(base, rows["train"], ranks, [1e-4] * 2, [1, 1], 1 + 1, 2, up_rates=[16.0, 1.0])
    found.remove()
    down, up = found.of(found.master, base.modules[0])
    torch.testing.assert_close(
        up[0], 16 * up[1], rtol=1e-3, atol=1e-9
    )  # B starts at 0, and AdamW's first step is its rate
    torch.testing.assert_close(down[0], down[1], rtol=0, atol=5e-4)


def test_controls_lend_the_step_and_not_the_directions(facts, base):
    budget = 2 * sum(target.cost for target in facts.targets)
    ranks = CONTROLS[DELTA].ranks(facts, budget, 300)
    assert min(ranks.values()) == 0
    assert max(ranks.values()) > 2
    control = CONTROLS["uniform-at-delta-steps"]
    own = control.ranks(facts, budget, 300)
    assert set(own.values()) == {2}
    assert control.factors(facts, budget, 300, own) == {name: max(ranks[name], FLOOR) / 2 for name in base.modules}
    constant = CONTROLS["delta-constant-alpha"].factors(facts, budget, 300, ranks)
    root = CONTROLS["delta-sqrt-alpha"].factors(facts, budget, 300, ranks)
    for name, rank in ranks.items():
        if rank:
            assert rank * constant[name] == pytest.approx(2)
            assert math.sqrt(rank) * root[name] == pytest.approx(math.sqrt(2))
    kept = CONTROLS["uniform-on-delta-modules"].ranks(facts, budget, 300)
    assert {name for name, rank in kept.items() if rank} == {name for name, rank in ranks.items() if rank}
    used = [rank for rank in kept.values() if rank]
    assert max(used) - min(used) <= 1
    assert 0.9 * budget < sum(kept[t.module] * t.cost for t in facts.targets) <= budget


def test_a_cut_adapter_is_the_dense_truncated_svd(base, rows, facts):
    budget = 2 * sum(target.cost for target in facts.targets)
    adapters = train_jobs(base, rows["train"], [dict.fromkeys(base.modules, 5)], [1e-2], [1], 4, 2)
    try:
        before = delta_of(adapters, 0)
        (sizes,), (factors,) = singular_directions(adapters, [0])
        ranks = ranks_over_threshold(facts.targets, sizes, budget)
        keep_leading(adapters, 0, factors, ranks)
        for name, delta in delta_of(adapters, 0).items():
            left, sigma, right = torch.linalg.svd(before[name].double())
            r = ranks[name]
            dense = (left[:, :r] * sigma[:r]) @ right[:r]
            torch.testing.assert_close(delta.double(), dense, rtol=1e-4, atol=1e-6 * float(sigma[0]))
    finally:
        adapters.remove()
    dropped = [sizes[t.module][ranks[t.module]] for t in facts.targets if ranks[t.module] < 5]
    held = [sizes[t.module][ranks[t.module] - 1] for t in facts.targets if ranks[t.module]]
    assert min(held) >= np.sort(dropped)[-2]  # one threshold; what was left over may go to one smaller direction


def test_ways_give_each_job_its_line_and_stay_within_the_budget(base, rows, facts, monkeypatch):
    monkeypatch.setattr("rank_study.workers.PILOT", 8)
    whole = sum(target.cost for target in facts.targets)
    cut = [job(arm, seed, budget) for seed in (300, 301) for budget in (2, 4) for arm in controls.CUTS]
    tests = [job(arm, seed, part="truncated") for seed in (300, 301) for arm in ("uniform", DELTA)]
    for run, jobs in ((run_cut, cut), (run_truncated, tests), (run_group, [job("uniform", part="tournament")])):
        lines = lines_of(run(base, rows, facts, jobs, 4, 2))
        assert [Job(**{name: line[name] for name in Job.__dataclass_fields__}) for line in lines] == jobs
        for line in lines:
            assert math.isfinite(line["loss"])
            assert 0 < line["parameters"] <= line["budget"] * whole
    continued = {line["arm"]: line["loss"] for line in lines_of(run_cut(base, rows, facts, cut[:2], 4, 2))}
    assert continued[CUT] != continued[CUT_CONTINUED]
    one = lines_of(run_truncated(base, rows, facts, tests[:1], 4, 2))[0]
    assert one["loss"] == pytest.approx(lines_of(run_truncated(base, rows, facts, tests, 4, 2))[0]["loss"], rel=1e-4)


def made(jobs, loss):
    return [json.loads(line_of(one, loss=loss(one))) for one in jobs]


def test_a_grid_grows_by_the_root_of_two_until_its_best_is_inside():
    where = ("neox", "medical", DELTA, 4)
    lines = []
    for _ in range(6):
        found = controls.Found(lines)
        wanted = controls.wanted_rates(found, *where)
        jobs = [Job(*where, seed, rate, "development") for rate in wanted for seed in controls.RATE_SEEDS]
        lines += made(jobs, lambda one: abs(math.log(one.rate / 1.2e-2)))
    assert not wanted
    best = controls.best_rate(controls.Found(lines), *where)
    tried = sorted(controls.tried(controls.Found(lines), *where))
    assert abs(math.log(best / 1.2e-2)) < math.log(2) / 4 + 1e-3
    assert tried[0] < best < tried[-1]


def test_the_portfolio_picks_by_its_own_test_and_waits_for_the_whole_menu():
    where = ("neox", "medical", 4, 300)
    jobs = [job(arm, budget=4, part=part) for part in controls.TESTS for arm in MENU]
    losses = {("truncated", MENU[3]): 0.5, ("tournament", MENU[0]): 0.4}
    lines = made(jobs, lambda one: losses.get((one.part, one.arm), 1.0))
    assert controls.picked(controls.Found(lines), *where, "truncated") == MENU[3]
    assert controls.picked(controls.Found(lines), *where, "tournament") == MENU[0] == "uniform"
    assert controls.picked(controls.Found(lines[1:]), *where, "truncated") is None


def test_a_group_shares_its_way_and_its_trainings():
    found = []
    sizes = dict.fromkeys(("smollm2", "chatglm2", "neox"), 4)
    for _ in range(60):
        group = controls.next_group(("neox",), found, [], (), sizes)
        assert len({controls.way_of(one) for one in group}) == 1
        assert len({one.base for one in group}) == 1
        assert len({controls.training_of(one) for one in group}) <= 4
        assert len(set(group)) == len(group)
        found += made(group, lambda one: 1.0 + abs(one.rate - 5e-3))
    assert len({tuple(sorted(line.items())) for line in found}) == len(found)
    assert controls.next_group((), found, [], (), sizes) == []
