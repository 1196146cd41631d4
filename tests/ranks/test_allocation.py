"""Scores by largest remainder, one threshold over all directions, limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmspectra.errors import RequestError
from glmspectra.ranks.allocation import (
    Limits,
    allocate_by_gains,
    allocate_by_scores,
    allocate_by_threshold,
    round_ranks,
)
from glmspectra.ranks.evidence import Target


def targets_of(*shapes: tuple[int, int]) -> list[Target]:
    return [Target(f"layers.{i}.m.weight", i, "m", *shape) for i, shape in enumerate(shapes)]


EQUAL = targets_of(*[(60, 40)] * 10)
MIXED = targets_of((60, 40), (40, 40), (200, 40), (40, 100), (64, 64))


def test_equal_scores_give_equal_ranks_and_spend_the_whole_budget():
    budget = sum(7 * t.cost for t in MIXED)
    allocation = allocate_by_scores(MIXED, {t.name: 3.3 for t in MIXED}, budget, Limits())
    assert set(allocation.ranks.values()) == {7}
    assert allocation.parameters == budget


def test_a_remainder_is_spread_over_the_layers():
    allocation = allocate_by_scores(EQUAL, {t.name: 1.0 for t in EQUAL}, 100 * (10 * 4 + 3), Limits())
    more = [i for i, t in enumerate(EQUAL) if allocation.ranks[t.name] == 5]
    assert len(more) == 3
    assert max(more) - min(more) > 4, "not the first three layers"


def test_what_is_left_goes_to_the_largest_remainders_first():
    real = {t.name: 4 + share for t, share in zip(EQUAL[:4], (0.2, 0.6, 0.7, 0.5), strict=True)}
    cost = EQUAL[0].cost
    found = round_ranks(EQUAL[:4], real, cost * (4 * 4 + 2), Limits()).ranks
    assert [found[t.name] for t in EQUAL[:4]] == [4, 5, 5, 4]


def test_scores_are_followed_in_proportion():
    scores = {t.name: float(i + 1) for i, t in enumerate(EQUAL)}
    allocation = allocate_by_scores(EQUAL, scores, 100 * 110, Limits())
    assert [allocation.ranks[t.name] for t in EQUAL] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1e3), min_size=5, max_size=5),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(4, 40)),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(600, 40_000),
)
def test_limits_and_budget_hold_for_any_scores(values, low, high, step, budget):
    try:
        limits = Limits(low, high, step)
    except RequestError:
        return
    least = limits.lowest * sum(t.cost for t in MIXED)
    scores = {t.name: v for t, v in zip(MIXED, values, strict=True)}
    if least > budget:
        with pytest.raises(RequestError, match="alone costs more"):
            allocate_by_scores(MIXED, scores, budget, limits)
        return
    allocation = allocate_by_scores(MIXED, scores, budget, limits)
    assert allocation.parameters <= budget
    for t in MIXED:
        rank = allocation.ranks[t.name]
        assert limits.lowest <= rank <= limits.highest(t)
        assert rank % step == 0
        if values[MIXED.index(t)] == 0 and any(values):
            assert rank == limits.lowest


def test_one_threshold_keeps_exactly_what_is_over_it():
    rng = np.random.default_rng(1)
    sizes = {t.name: np.sort(rng.exponential(size=30))[::-1] for t in EQUAL}
    allocation = allocate_by_threshold(EQUAL, sizes, 100 * 57, Limits())
    assert allocation.parameters == 100 * 57
    pooled = np.sort(np.concatenate(list(sizes.values())))[::-1]
    assert allocation.threshold == pooled[57], "the first direction that did not fit"
    for t in EQUAL:
        assert allocation.ranks[t.name] == int(np.sum(sizes[t.name] > allocation.threshold))
    assert allocation.capped == ()


def test_matrices_at_the_pilots_cap_are_reported_and_zeros_are_not_bought():
    sizes = {t.name: np.array([3.0, 2.0, 1.0]) for t in EQUAL}
    sizes[EQUAL[0].name] = np.array([3.0, 0.0, 0.0])
    sizes[EQUAL[1].name] = np.zeros(0)
    allocation = allocate_by_threshold(EQUAL, sizes, 10**6, Limits())
    assert allocation.ranks[EQUAL[0].name] == 1
    assert allocation.ranks[EQUAL[1].name] == 0
    assert allocation.capped == tuple(t.name for t in EQUAL[2:])
    gains = allocate_by_gains(EQUAL, sizes, 10**6, Limits())
    assert gains.ranks == allocation.ranks
    assert gains.capped == allocation.capped


def test_a_threshold_in_blocks_keeps_to_the_multiple():
    rng = np.random.default_rng(2)
    sizes = {t.name: np.sort(rng.exponential(size=30))[::-1] for t in EQUAL}
    allocation = allocate_by_threshold(EQUAL, sizes, 100 * 57, Limits(min_rank=1, max_rank=8, multiple_of=4))
    assert set(allocation.ranks.values()) <= {4, 8}
    assert allocation.parameters == 100 * 56


def test_limits_that_leave_nothing_are_refused():
    with pytest.raises(RequestError, match="no rank is at least 5, at most 7 and a multiple of 8"):
        Limits(5, 7, 8)


def test_the_least_rank_is_rounded_up_to_a_multiple():
    assert [Limits(min_rank=least, multiple_of=4).lowest for least in (0, 1, 4, 5, 8, 9)] == [0, 4, 4, 8, 8, 12]


def test_more_directions_than_a_rank_may_have_are_left_out():
    gains = {target.name: np.arange(40.0, 0.0, -1.0) for target in EQUAL}
    assert set(allocate_by_gains(EQUAL, gains, 10**6, Limits(max_rank=6)).ranks.values()) == {6}
