import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmspectra.errors import RequestError
from glmspectra.spectra import common_edges, counting, distribution_of, read_values, value_distribution
from glmspectra.spectra.moments import Moments, moments_of_chunk
from glmspectra.spectra.student_t import DEGREES_RANGE, StudentT, fit_student_t, student_log_density
from glmspectra.spectra.tally import OUTLIER_SIGMAS, QUANTILES

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def sample(family: str, shape=(400, 150), seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.normal(0.001, 0.02, shape),
        "laplace": lambda: rng.laplace(0, 0.02, shape),
        "student_t": lambda: 0.02 * rng.standard_t(4, shape),
    }[family]()
    return torch.from_numpy(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["normal", "laplace", "student_t"])
def test_every_number_against_numpy_and_scipy(family, dtype):
    weight = sample(family).to(dtype)
    found = value_distribution(weight)["whole"]
    values = weight.double().numpy().ravel()
    columns = found.columns
    assert columns["count"] == values.size
    assert columns["mean"] == pytest.approx(values.mean(), abs=1e-15)
    assert columns["std"] == pytest.approx(values.std(), rel=1e-12)
    assert columns["skewness"] == pytest.approx(scipy.stats.skew(values), abs=1e-10)
    assert columns["excess_kurtosis"] == pytest.approx(scipy.stats.kurtosis(values), rel=1e-9, abs=1e-9)
    assert (columns["min"], columns["max"]) == (values.min(), values.max())
    assert columns["abs_max"] == np.abs(values).max()
    for name, q in QUANTILES.items():
        assert columns[name] == np.quantile(values, q, method="lower"), name
    assert columns["share_zero"] == np.mean(values == 0)
    distance = np.abs(values - values.mean())
    for k in OUTLIER_SIGMAS:
        assert columns[f"share_beyond_{k}_sigma"] == np.mean(distance > k * values.std())
    standard = (values - values.mean()) / values.std()
    # Bins of float32 values are up to 0.8 % wide; 16-bit values are known one by one.
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    assert columns["normal_ks"] == pytest.approx(scipy.stats.kstest(standard, "norm").statistic, abs=tolerance)
    laplace = (np.median(values), np.abs(values - np.median(values)).mean())
    assert columns["laplace_ks"] == pytest.approx(scipy.stats.kstest(values, "laplace", laplace).statistic, abs=2e-3)
    grid = scipy.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    expected = scipy.stats.wasserstein_distance(standard, grid)
    assert columns["normal_wasserstein"] == pytest.approx(expected, abs=1e-3 if dtype == torch.float32 else 5e-5)
    assert columns["best_fit"] == family
    assert found.status == "ok"
    assert found.counts.sum() == values.size


def test_the_student_t_fit_is_the_maximum_of_the_likelihood():
    weight = sample("student_t", (500, 100)).float()
    columns = value_distribution(weight)["whole"].columns
    degrees, location, scale = scipy.stats.t.fit(weight.numpy().ravel().astype(float))
    assert columns["student_t_df"] == pytest.approx(degrees, rel=0.01)
    expected = scipy.stats.kstest(weight.numpy().ravel(), "t", (degrees, location, scale)).statistic
    assert columns["student_t_ks"] == pytest.approx(expected, abs=1e-3)
    assert columns["normal_ks"] > 10 * columns["student_t_ks"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_histogram_counts_are_numpys_on_edges_no_value_sits_on(dtype):
    weight = sample("normal").to(dtype)
    edges = np.array([-1.0, -0.03217, -0.01003, 0.00091, 0.0191, 1.0])
    found = value_distribution(weight, edges=edges)["whole"]
    np.testing.assert_array_equal(found.counts, np.histogram(weight.double().numpy(), edges)[0])
    np.testing.assert_array_equal(found.bin_left, edges[:-1])
    np.testing.assert_array_equal(found.bin_right, edges[1:])


def test_float32_counts_by_upper_bits_are_exact_on_the_common_edges():
    edges = common_edges()
    weight = torch.cat([sample("normal", (100, 100)).float(), torch.from_numpy(edges[:500]).float().view(5, 100)])
    found = value_distribution(weight)["whole"]
    values = weight.double().numpy().ravel()
    away_from_zero = np.where(
        values >= 0, np.searchsorted(edges, values, "right") - 1, np.searchsorted(edges, values, "left") - 1
    ).clip(0, edges.size - 2)
    np.testing.assert_array_equal(found.counts, np.bincount(away_from_zero, minlength=edges.size - 1))


def test_the_common_edges_are_common_symmetric_and_held_by_bfloat16():
    edges = common_edges()
    np.testing.assert_array_equal(edges, -edges[::-1])
    np.testing.assert_array_equal(torch.from_numpy(edges).bfloat16().double().numpy(), edges)
    assert np.all(np.diff(edges) > 0)
    assert edges[-1] >= 65504
    wide = edges[edges > 1e-4]
    assert np.all(np.diff(wide) / wide[:-1] < 0.13)


def test_values_beyond_the_edges_fall_in_the_last_bins():
    found = value_distribution(torch.tensor([[-5.0, 0.5, 7.0]]), edges=np.array([-1.0, 0.0, 1.0]))["whole"]
    assert found.counts.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_are_counted_and_left_out_of_the_rest(dtype):
    weight = sample("normal", (50, 40)).to(dtype)
    clean = weight.flatten()[3:].double().numpy()
    weight.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    found = value_distribution(weight)["whole"]
    assert found.status == "nonfinite"
    assert found.columns["count"] == 2000
    assert found.columns["share_nan"] == 1 / 2000
    assert found.columns["share_inf"] == 2 / 2000
    assert found.columns["mean"] == pytest.approx(clean.mean(), abs=1e-15)
    assert found.columns["max"] == clean.max()
    assert found.counts.sum() == 1997


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_finite_and_nothing_varying(dtype):
    nothing = value_distribution(torch.full((3, 4), float("nan"), dtype=dtype))["whole"]
    assert nothing.status == "nonfinite"
    assert nothing.columns["share_nan"] == 1
    assert np.isnan(nothing.columns["mean"])
    assert np.isnan(nothing.columns["q_50"])
    constant = value_distribution(torch.full((3, 4), 0.5, dtype=dtype))["whole"].columns
    assert (constant["mean"], constant["std"], constant["q_50"]) == (0.5, 0, 0.5)
    assert np.isnan(constant["skewness"])
    assert constant["best_fit"] == ""


def test_largest_rows_and_columns_are_the_outlier_channels():
    weight = sample("normal", (60, 50)).half()
    weight[17] *= 9
    weight[:, 23] *= 7
    columns = value_distribution(weight)["whole"].columns
    values = weight.double().numpy()
    norms = np.linalg.norm(values, axis=1)
    assert columns["largest_rows"] == np.argsort(-norms, kind="stable")[:8].tolist()
    assert columns["largest_rows"][0] == 17
    assert columns["largest_cols"][0] == 23
    np.testing.assert_allclose(columns["largest_row_norms"], np.sort(norms)[::-1][:8], rtol=1e-14)
    assert columns["row_norm_median"] == pytest.approx(np.median(norms), rel=1e-14)
    assert columns["col_norm_median"] == pytest.approx(np.median(np.linalg.norm(values, axis=0)), rel=1e-14)


def test_parts_and_whole_and_float64():
    weight = sample("laplace", (30, 20))
    found = value_distribution(weight, {"top": slice(0, 10), "rest": slice(10, 30)})
    assert list(found) == ["whole", "top", "rest"]
    assert found["top"].columns["count"] == 200
    assert found["rest"].columns["mean"] == pytest.approx(float(weight[10:].mean()), rel=1e-13)
    np.testing.assert_array_equal(found["whole"].counts, found["top"].counts + found["rest"].counts)


def test_streaming_in_chunks_changes_nothing(monkeypatch):
    weights = [sample("student_t", (83, 31)).to(dtype) for dtype in DTYPES]
    at_once = [value_distribution(weight)["whole"].columns for weight in weights]
    monkeypatch.setattr(counting, "CHUNK_ELEMENTS", 200)
    for weight, expected in zip(weights, at_once, strict=True):
        for name, value in value_distribution(weight)["whole"].columns.items():
            same = expected[name] if isinstance(value, str) else pytest.approx(expected[name], rel=1e-9, abs=1e-12)
            assert value == same, name


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_moments_of_two_pieces_are_those_of_the_whole(values, cut):
    tensor = torch.tensor(values, dtype=torch.float64)
    merged = moments_of_chunk(tensor[:cut]).merged(moments_of_chunk(tensor[cut:]))
    whole = moments_of_chunk(tensor)
    spread = float(tensor.abs().max()) + 1
    assert merged.count == whole.count == len(values)
    assert merged.mean == pytest.approx(whole.mean, abs=1e-12 * spread)
    assert merged.second == pytest.approx(whole.second, rel=1e-9, abs=1e-10 * spread**2)
    assert merged.third == pytest.approx(whole.third, rel=1e-9, abs=1e-9 * spread**3)
    assert merged.fourth == pytest.approx(whole.fourth, rel=1e-9, abs=1e-9 * spread**4)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200), st.integers(0, 199))
@settings(max_examples=60, deadline=None)
def test_selection_by_two_counts_finds_any_rank(values, rank):
    weight = torch.tensor([values], dtype=torch.float32)
    counts = counting.count_prefixes(weight)
    rank = min(rank, len(values) - 1)
    found = counting.select_ranks(weight, counts, np.array([rank]))
    assert found[0] == np.sort(weight.numpy().ravel().astype(float))[rank]


def test_an_empty_sample_adds_nothing():
    some = moments_of_chunk(torch.tensor([1.0, 3.0]))
    assert Moments().merged(some) == some.merged(Moments()) == some


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.zeros(4)}, "2-D floating-point"),
        ({"weight": torch.zeros(2, 2), "edges": np.array([1.0, 0.0])}, "ascending"),
        ({"weight": torch.zeros(2, 2), "edges": np.array([1.0])}, "at least two"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(arguments, message):
    with pytest.raises(RequestError, match=message):
        value_distribution(**arguments)


@pytest.mark.parametrize("seed", range(8))
def test_newtons_student_t_is_scipys(seed):
    rng = np.random.default_rng(seed)
    sample = rng.standard_t(rng.uniform(1, 20), 3000) * rng.uniform(0.01, 10) + rng.normal()
    mass = np.full(3000, 1 / 3000)
    ours = fit_student_t(sample, mass)
    theirs = StudentT(*scipy.stats.t.fit(sample, np.exp(0.5), loc=np.median(sample), scale=np.std(sample) / 2))
    gain = np.mean(student_log_density(sample, ours)) - np.mean(student_log_density(sample, theirs))
    assert gain > -1e-9, "scipy's search stops near the same maximum, never above it"
    assert ours.degrees == pytest.approx(theirs.degrees, rel=5e-3)
    assert ours.location == pytest.approx(theirs.location, abs=1e-3 * ours.scale)
    assert ours.scale == pytest.approx(theirs.scale, rel=2e-3)
    np.testing.assert_allclose(
        student_log_density(sample, ours), scipy.stats.t.logpdf(sample, ours.degrees, ours.location, ours.scale)
    )


@pytest.mark.parametrize(
    ("points", "degrees"),
    [(np.random.default_rng(0).standard_normal(20_000), DEGREES_RANGE[1]), (np.linspace(-1, 1, 999), DEGREES_RANGE[1])],
    ids=["normal", "uniform"],
)
def test_light_tails_end_at_the_largest_degrees_of_freedom(points, degrees):
    fit = fit_student_t(points, np.full(points.size, 1 / points.size))
    assert fit.degrees == pytest.approx(degrees)
    assert fit.scale == pytest.approx(points.std(), rel=0.01)


def test_all_but_all_values_equal_still_ends():
    """The likelihood has no maximum: the scale would go to 0."""
    fit = fit_student_t(np.array([0.0, 1.0, 1.5]), np.array([0.999, 0.0005, 0.0005]))
    assert 0 < fit.scale < 0.01
    assert np.isfinite(fit.degrees)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_one_count_are_those_counted_alone(dtype):
    """Overlapping, nested and touching ranges, from one pass over the weight."""
    weight = sample("laplace", (60, 20)).to(dtype)
    parts = {"q": slice(0, 40), "q.head_0": slice(0, 13), "kv": slice(40, 60), "middle": slice(30, 50)}
    together = value_distribution(weight, parts)
    for name, rows in {"whole": slice(None), **parts}.items():
        alone = value_distribution(weight[rows])["whole"]
        np.testing.assert_array_equal(together[name].counts, alone.counts)
        for column, value in alone.columns.items():
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-12, abs=1e-15)
            assert together[name].columns[column] == same, (name, column)


def device_and_cpu(weight: torch.Tensor, device: str) -> None:
    """Counts equal bit for bit, norms to 1e-12, and so every column."""
    parts = {"top": slice(0, 150), "rest": slice(150, 400), "inner": slice(100, 200)}
    here, there = read_values(weight, parts), read_values(weight.to(device), parts)
    for name, ours in here.items():
        theirs = there[name]
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        assert (ours.total, ours.zeros, ours.nans, ours.infs) == (theirs.total, theirs.zeros, theirs.nans, theirs.infs)
        np.testing.assert_allclose(theirs.row_squares, ours.row_squares, rtol=1e-12)
        np.testing.assert_allclose(theirs.column_squares, ours.column_squares, rtol=1e-12)
        on_cpu, on_device = distribution_of(ours), distribution_of(theirs)
        np.testing.assert_array_equal(on_cpu.counts, on_device.counts)
        assert on_cpu.status == on_device.status
        for column, value in on_cpu.columns.items():
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
            assert on_device.columns[column] == same, (name, column)


@pytest.mark.gpu
@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_counts_the_same(dtype, spoilt, monkeypatch):
    weight = sample("student_t").to(dtype)
    if spoilt:
        weight.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    device_and_cpu(weight, "cuda")
    monkeypatch.setattr(counting, "CUDA_CHUNK_ELEMENTS", 5000)
    device_and_cpu(weight, "cuda")


@pytest.mark.gpu
def test_cuda_counts_a_matrix_of_chatglm2s_width():
    weight = torch.randn(4608, 4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    device_and_cpu(weight, "cuda")
