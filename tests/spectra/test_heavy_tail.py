import numpy as np
import powerlaw
import pytest

from glmspectra.spectra.heavytail import fit_power_law, hill_alpha


def pareto(alpha: float, count: int, seed: int) -> np.ndarray:
    """Values of density ~ x^-alpha above 1."""
    return (1 - np.random.default_rng(seed).random(count)) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_a_planted_exponent_is_found(alpha):
    fit = fit_power_law(pareto(alpha, 4000, 1))
    assert fit.alpha == pytest.approx(alpha, abs=4 * (alpha - 1) / np.sqrt(fit.tail))
    assert fit.distance < 0.03
    assert hill_alpha(pareto(alpha, 4000, 1)) == pytest.approx(alpha, rel=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # powerlaw warns of its own property
@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize(("alpha", "count", "seed"), [(1.5, 40, 1), (2.2, 150, 2), (3.5, 100, 3), (6.0, 80, 4)])
def test_agrees_with_the_powerlaw_package(alpha, count, seed, body):
    values = pareto(alpha, count, seed)
    if body:  # a bulk below the tail, which moves xmin
        values = np.r_[values, np.random.default_rng(seed).uniform(0.2, 1.2, count)]
    ours = fit_power_law(values)
    theirs = powerlaw.Fit(values, verbose=False, parameter_ranges={"alpha": [1, 30]})
    assert ours.alpha == pytest.approx(theirs.power_law.alpha, abs=1e-6)
    assert ours.xmin == pytest.approx(theirs.xmin, rel=1e-9)
    assert ours.distance == pytest.approx(theirs.power_law.D, abs=1e-9)
    assert ours.tail == int((values >= ours.xmin).sum())


def fit_by_trying_all(values: np.ndarray) -> tuple[float, float, float]:
    """(alpha, xmin, distance) of Clauset, Shalizi & Newman, one candidate after another with nothing left out."""
    data = np.sort(values)
    found = []
    for start in range(data.size - 1):
        tail = data[start:]
        total = np.log(tail / tail[0]).sum()
        alpha = 1 + tail.size / total if total > 0 else np.inf
        if 1 < alpha < np.inf:
            model = 1 - (tail / tail[0]) ** (1 - alpha)
            found.append((np.abs(model - np.arange(tail.size) / tail.size).max(), tail[0], alpha))
    distance, xmin, alpha = min(found)
    return alpha, xmin, distance


@pytest.mark.parametrize("seed", range(12))
def test_leaving_out_what_cannot_win_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 900))
    values = [
        pareto(rng.uniform(1.3, 5), count, seed),
        rng.uniform(0.1, 1, count),
        np.round(pareto(2.5, count, seed), 1),  # many ties
        np.r_[rng.uniform(0.2, 1.2, count), pareto(2.0, 40, seed)],
    ][seed % 4]
    fit = fit_power_law(values)
    assert (fit.alpha, fit.xmin, fit.distance) == pytest.approx(fit_by_trying_all(values), rel=1e-9)


def test_order_does_not_matter_and_tiny_values_are_left_out():
    values = pareto(3.0, 200, 2)
    shuffled = np.random.default_rng(0).permutation(np.r_[values, np.full(50, 1e-9), 0.0])
    assert fit_power_law(shuffled) == fit_power_law(values)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 1e-7]])
def test_nothing_to_fit_is_nan(values):
    fit = fit_power_law(np.array(values, dtype=np.float64))
    assert np.isnan(fit.alpha)
    assert fit.tail == 0


def test_hill_of_few_values_is_what_its_formula_gives():
    assert hill_alpha(np.array([4.0, 2.0])) == pytest.approx(1 + 1 / np.log(2))
    assert hill_alpha(np.array([8.0, 1.0, 4.0, 2.0, 0.0])) == pytest.approx(1 + 2 / np.log(8 * 4 / 2**2))


def test_hill_is_nan_where_it_is_not_defined():
    assert np.isnan(hill_alpha(np.array([])))
    assert np.isnan(hill_alpha(np.array([1.0])))
    assert np.isnan(hill_alpha(np.ones(10)))
