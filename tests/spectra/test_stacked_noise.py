import numpy as np
import pytest
import torch
from scipy import optimize

from glmspectra.spectra import NoiseBlock, entry_scales, spectra_of, summarize_spectra, summarize_spectrum
from glmspectra.spectra.marchenko_pastur import bulk_median, noise_edge
from glmspectra.spectra.stacked_noise import scaled_to_bulk, stacked_bulk_median, stacked_noise_edge
from tests.spectra.planted import orthonormal

GATE_UP = [slice(0, 150), slice(150, 300)]


def stack(heights, levels, cols, rng, draw="standard_normal", *arguments):
    return np.vstack([v * getattr(rng, draw)(*arguments, size=(h, cols)) for h, v in zip(heights, levels, strict=True)])


def test_stacked_parts_of_unequal_scale_make_no_false_spikes():
    heights, levels = (120, 40, 40), (0.02, 0.08, 0.005)
    false_alarms, naive = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        weight = np.vstack([level * rng.standard_normal((h, 100)) for h, level in zip(heights, levels, strict=True)])
        parts = {"q": slice(0, 120), "k": slice(120, 160), "v": slice(160, 200), "q.head_0": slice(0, 60)}
        spectra = spectra_of(torch.from_numpy(weight), parts)
        rows = summarize_spectra(spectra)
        false_alarms.append(rows["whole"]["mp_spikes"])
        naive.append(summarize_spectrum(spectra["whole"])["mp_spikes"])
        assert rows["k"]["mp_sigma"] == pytest.approx(0.08, rel=0.1)
    assert np.mean(np.array(false_alarms) <= 1) >= 0.95
    assert np.mean(naive) > 5  # with one level for the whole, the loud part is taken for signal


@pytest.mark.parametrize(("rows", "cols"), [(300, 100), (100, 300), (50, 50)])
def test_stacking_parts_of_one_level_changes_nothing(rows, cols):
    whole = noise_edge(0.7, rows, cols)
    stacked = stacked_noise_edge([0.7, 0.7], [rows // 5, rows - rows // 5], cols)
    assert stacked == pytest.approx(whole, rel=0.01)


def test_the_edge_is_the_minimum_of_the_equation():
    """Silverstein and Choi's z(s), its minimum by scipy; the Tracy-Widom term is small where cols are many."""
    levels, counts, cols = np.array([0.3, 1.0, 2.0]), np.array([1e12, 3e12, 5e11]), 2e12
    variances = levels**2

    def z(s):
        return -cols / s + np.sum(counts * variances / (1 + variances * s))

    least = optimize.minimize_scalar(z, bounds=(-1 / variances.max(), 0), method="bounded", options={"xatol": 1e-12})
    assert stacked_noise_edge(levels, counts, cols) == pytest.approx(np.sqrt(least.fun), rel=1e-7)


def test_a_silent_part_only_adds_nothing():
    assert stacked_noise_edge([1.0, 0.0], [200, 100], 80) == pytest.approx(stacked_noise_edge([1.0], [200], 80))
    assert stacked_noise_edge([0.0, 0.0], [5, 5], 8) == 0.0


def fused_summary(weight: np.ndarray, parts: list[slice]) -> dict:
    """The row of a fused whole whose parts were not measured."""
    tensor = torch.from_numpy(weight).half()
    return summarize_spectrum(spectra_of(tensor)["whole"], blocks=entry_scales(tensor, parts))


@pytest.mark.parametrize(
    ("draw", "arguments"), [("standard_normal", ()), ("laplace", (0.0, 0.7)), ("standard_t", (5,))], ids=str
)
def test_a_fused_whole_of_unmeasured_parts_makes_no_false_spikes(draw, arguments):
    """Two parts of noise of unequal scale, without their spectra; heavy-tailed entries too, which both parts share."""
    spikes, naive = [], []
    for seed in range(40):
        weight = stack((150, 150), (0.02, 0.05), 100, np.random.default_rng(seed), draw, *arguments)
        spikes.append(fused_summary(weight, GATE_UP)["mp_spikes"])
        naive.append(summarize_spectrum(spectra_of(torch.from_numpy(weight).half())["whole"])["mp_spikes"])
    assert np.mean(np.array(spikes) <= 1) >= 0.95
    assert np.mean(naive) > 4


def test_a_fused_whole_still_shows_what_is_planted_in_it():
    rng = np.random.default_rng(1)
    weight = stack((150, 150), (0.02, 0.05), 100, rng)
    theta = np.array([3.0, 2.5, 2.2])  # the noise ends at about 1
    weight += (orthonormal(300, 3, rng) * theta) @ orthonormal(100, 3, rng).T
    row = fused_summary(weight, GATE_UP)
    assert row["mp_spikes"] == 3
    assert row["mp_sigma"] == pytest.approx(np.sqrt((0.02**2 + 0.05**2) / 2), rel=0.1)
    noise = stack((150, 150), (0.02, 0.05), 100, rng)
    assert 0.9 < np.linalg.norm(noise, 2) / row["mp_edge"] < 1.01


def test_one_scale_gives_what_the_whole_alone_gives():
    weight = 0.02 * np.random.default_rng(2).standard_normal((300, 100))
    alone = summarize_spectrum(spectra_of(torch.from_numpy(weight).half())["whole"])
    fused = fused_summary(weight, GATE_UP)
    assert fused["mp_sigma"] == pytest.approx(alone["mp_sigma"], rel=2e-3)
    assert fused["mp_edge"] == pytest.approx(alone["mp_edge"], rel=0.01)


def test_measured_parts_come_before_scales_of_entries():
    weight = torch.from_numpy(stack((150, 150), (0.02, 0.05), 100, np.random.default_rng(3)))
    spectra = spectra_of(weight, {"gate": GATE_UP[0], "up": GATE_UP[1]})
    misleading = [NoiseBlock(150, 1.0), NoiseBlock(150, 9.0)]
    assert summarize_spectra(spectra, blocks=misleading)["whole"] == summarize_spectra(spectra)["whole"]


def test_a_part_that_is_mostly_zero_leaves_the_level_untold():
    weight = stack((150, 150), (0.0, 0.05), 100, np.random.default_rng(4))
    row = fused_summary(weight, GATE_UP)
    assert all(np.isnan(row[column]) for column in ("mp_sigma", "mp_edge", "mp_spikes"))
    nothing = fused_summary(np.zeros((300, 100)), GATE_UP)
    assert nothing["mp_edge"] == nothing["mp_spikes"] == 0


def test_scales_are_of_all_columns_of_a_sample(monkeypatch):
    """A step that divides the number of columns would see only some of them."""
    weight = torch.from_numpy(np.random.default_rng(5).standard_normal((4000, 64)))
    weight[:, ::4] *= 100
    everything = entry_scales(weight, [slice(0, 4000)])[0]
    monkeypatch.setattr("glmspectra.spectra.stacked_noise.SAMPLE", 1 << 14)
    assert entry_scales(weight, [slice(0, 4000)])[0].level == pytest.approx(everything.level, rel=0.05)


@pytest.mark.parametrize(("rows", "cols"), [(300, 100), (100, 300), (90, 90)])
def test_the_median_of_one_level_is_marchenko_pasturs(rows, cols):
    found = stacked_bulk_median([0.7, 0.7, 0.7], [10, rows - 30, 20], cols)
    expected = 0.49 * max(rows, cols) * bulk_median(min(rows, cols) / max(rows, cols))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("heights", "levels", "cols"),
    [((300, 100, 100), (0.02, 0.08, 0.005), 250), ((450, 450), (1.0, 0.3), 200), ((100, 50), (1.0, 5.0), 300)],
)
def test_the_median_of_unequal_levels_is_that_of_a_sample(heights, levels, cols):
    weight = stack(heights, levels, cols, np.random.default_rng(6))
    sigma = np.linalg.svd(weight, compute_uv=False)
    assert stacked_bulk_median(levels, heights, cols) == pytest.approx(np.median(sigma) ** 2, rel=0.04)
    blocks = scaled_to_bulk([NoiseBlock(h, 10 * v) for h, v in zip(heights, levels, strict=True)], sigma, cols)
    assert [block.level for block in blocks] == pytest.approx(levels, rel=0.02)


@pytest.mark.gpu
def test_cuda_reads_the_same_scales():
    weight = torch.randn(4608, 4096, generator=torch.Generator().manual_seed(7)).mul_(0.02).half()
    parts = [slice(0, 4096), slice(4096, 4352), slice(4352, 4608)]
    assert entry_scales(weight.cuda(), parts) == entry_scales(weight, parts)
