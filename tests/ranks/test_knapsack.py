"""The best sum of gains, against brute force and against the linear relaxation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmspectra.errors import RequestError
from glmspectra.ranks.allocation import Limits, allocate_by_gains
from glmspectra.ranks.evidence import Target
from glmspectra.ranks.knapsack import choose


def brute_force(weights, values, capacity):
    """The most that any choice of one option a class is worth."""
    best = -1.0
    for picks in itertools.product(*(range(len(weight)) for weight in weights)):
        if sum(weight[pick] for weight, pick in zip(weights, picks, strict=True)) <= capacity:
            best = max(best, sum(value[pick] for value, pick in zip(values, picks, strict=True)))
    return best


@st.composite
def problems(draw):
    classes = draw(st.integers(1, 4))
    weights, values = [], []
    for _ in range(classes):
        cost = draw(st.integers(1, 9))
        gains = draw(st.lists(st.floats(0, 10, allow_nan=False, width=32), min_size=1, max_size=5))
        if draw(st.booleans()):
            gains = sorted(gains, reverse=True)  # the usual case: sigma descends
        weights.append(np.arange(len(gains) + 1, dtype=np.int64) * cost)
        values.append(np.concatenate([[0.0], np.cumsum(np.array(gains, dtype=np.float64))]))
    return weights, values, draw(st.integers(0, 60))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_the_choice_is_optimal_also_where_gains_do_not_descend(problem):
    weights, values, capacity = problem
    found = choose(weights, values, capacity)
    best = brute_force(weights, values, capacity)
    assert found.exact
    assert found.value == pytest.approx(best, abs=1e-9)
    assert found.weight <= capacity
    assert found.value == pytest.approx(sum(v[p] for v, p in zip(values, found.picks, strict=True)))
    assert found.bound >= best - 1e-9


@settings(max_examples=150, deadline=None)
@given(problems())
def test_greedy_is_feasible_and_its_gap_holds_the_optimum(problem):
    weights, values, capacity = problem
    found = choose(weights, values, capacity, seconds=0)
    best = brute_force(weights, values, capacity)
    assert found.weight <= capacity
    assert found.value <= best + 1e-9 <= found.bound + 2e-9
    assert found.gap >= best - found.value - 1e-9


def test_greedy_alone_can_be_beaten():
    """The control: without the solver this one is missed, so the test above is not about nothing."""
    weights = [np.array([0, 6]), np.array([0, 5]), np.array([0, 5])]
    values = [np.array([0.0, 6.6]), np.array([0.0, 5.0]), np.array([0.0, 5.0])]
    assert choose(weights, values, 10, seconds=0).value == pytest.approx(6.6)
    assert choose(weights, values, 10).value == pytest.approx(10.0)


def test_first_options_over_the_budget_are_refused():
    with pytest.raises(RequestError, match="smallest ranks asked for cost 12"):
        choose([np.array([6, 7])] * 2, [np.array([0.0, 1.0])] * 2, 11)


def chatglm2_targets(layers: int = 28) -> list[Target]:
    shapes = {
        "query_key_value": (4608, 4096),
        "dense": (4096, 4096),
        "dense_h_to_4h": (27392, 4096),
        "dense_4h_to_h": (4096, 13696),
    }
    return [Target(f"layers.{i}.{m}.weight", i, m, *shape) for i in range(layers) for m, shape in shapes.items()]


def test_the_published_models_size_is_solved_exactly_and_at_once():
    targets = chatglm2_targets()
    rng = np.random.default_rng(0)
    gains = {t.name: np.sort(rng.pareto(1.5, 64))[::-1] ** 2 for t in targets}
    budget = 12 * 28 * (4608 + 4096)
    allocation = allocate_by_gains(targets, gains, budget, Limits())
    assert allocation.how == "best sum"
    assert allocation.gap == 0
    greedy = allocate_by_gains(targets, gains, budget, Limits(), seconds=0)
    assert greedy.how in ("greedy", "best sum")
    assert greedy.value <= allocation.value <= greedy.value + greedy.gap
    assert allocation.parameters <= budget
    odd = [Target(t.name, t.layer, t.matrix, t.rows + 1, t.cols) for t in targets]
    assert allocate_by_gains(odd, gains, 8_000_000, Limits()).how == "best sum", "no divisor, and still exact"
