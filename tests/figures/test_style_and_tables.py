"""The style that all figures share, and the computing that stands between the stored tables and the axes."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid

from glmspectra.errors import StoreError
from glmspectra.figures import tables as t
from glmspectra.figures.payload import set_of
from glmspectra.figures.svg import style
from glmspectra.figures.svg.values import rebin
from glmspectra.files import write_text
from glmspectra.language import Words
from tests.figures.synthetic_run import make_tables

SVG = "{http://www.w3.org/2000/svg}"


def simple_figure(title: str = "A title"):
    figure, (ax,) = style.panels(1, 1, (3.0, 2.0))
    ax.plot([1, 2, 3], [1, 10, 100], gid="the-line")
    style.log_axis(ax, "y")
    ax.set(title=title, xlabel="step (optimizer updates)", ylabel="σ (units of the weight)")
    return figure


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_same_figure_gives_same_bytes_whatever_the_users_settings_say(tmp_path):
    with style.styled():
        first = style.save_svg(simple_figure(), tmp_path / "a.svg", "t", "d").read_bytes()
    before = matplotlib.rcParams["font.size"]
    with matplotlib.rc_context({"font.size": 31.0, "svg.fonttype": "path", "lines.linewidth": 9}):
        with style.styled():
            second = style.save_svg(simple_figure(), tmp_path / "b.svg", "t", "d").read_bytes()
        assert matplotlib.rcParams["font.size"] == 31.0
    assert matplotlib.rcParams["font.size"] == before
    assert first == second
    with style.styled():
        other = style.svg_text(simple_figure("Another title"), "t", "d")
    assert other.encode() != first  # the comparison can fail


def test_text_stays_text_with_fonts_for_chinese_and_a_title_for_screen_readers():
    with style.styled():
        svg = style.svg_text(simple_figure("损失 $x$ <&>"), "Loss & more", "One line")
    assert {"损失 $x$ <&>", "step (optimizer updates)", "σ (units of the weight)", "1", "10", "100"} <= set(texts(svg))
    root = ElementTree.fromstring(svg)
    assert root.find(f"{SVG}title").text == "Loss & more"
    assert root.find(f"{SVG}desc").text == "One line"
    assert svg.count("font-family") == 1
    assert "Noto Sans CJK SC" in svg
    assert "<dc:date>" not in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (-2.0, "−2"),
        (1500, "1500"),
        (20000, "20k"),
        (1.2e6, "1.2M"),
        (1.5e-5, "1.5e−5"),
        (4096, "4096"),
    ],
)
def test_tick_labels_are_short(value, text):
    assert style.plain_number(value) == text


def test_two_series_never_look_the_same():
    looks = style.strokes([str(i) for i in range(315)])
    assert len({(look.color, look.marker, str(look.dashes)) for look in looks.values()}) == 315
    near = [(a, b) for a, b in zip(list(looks.values()), list(looks.values())[1:], strict=False)]
    assert all(a.color != b.color and a.marker != b.marker and a.dashes != b.dashes for a, b in near)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file cannot be created: a file is in the way of a folder; move it or "):
        write_text(tmp_path / "file" / "x.svg", "y")


def test_pick_takes_one_quantity_and_the_last_step():
    weight = make_tables(2)
    early, late = (make_tables(2, quantity="delta", step=step, seed=step) for step in (10, 20))
    run = t.Tables(
        pd.concat([weight.matrices, early.matrices, late.matrices]),
        pd.concat([weight.singular_values, early.singular_values, late.singular_values]),
    )
    assert set(t.pick(run).matrices["quantity"]) == {"weight"}
    last = t.pick(run, "delta")
    assert set(last.matrices["step"]) == {20}
    assert set(last.singular_values["step"]) == {20}
    assert set(t.pick(run, "delta", 10).matrices["step"]) == {10}
    assert not len(t.pick(run, "merged").matrices)


def test_series_are_named_and_ordered_with_parts_after_their_whole():
    run = t.pick(make_tables(2, parts=True, heads=2))
    assert t.series_order(run.matrices) == [
        "query_key_value", "query_key_value q", "query_key_value k", "query_key_value v",
        "dense", "dense_h_to_4h", "dense_h_to_4h gate", "dense_h_to_4h up", "dense_4h_to_h",
    ]  # fmt: skip
    assert t.split_head("q.head_13") == ("q", 13)
    with pytest.raises(ValueError, match="'q' is not an attention head"):
        t.split_head("q")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.encoder.layers.3.self_attention.dense.weight", (3, "dense")),
        ("base_model.model.model.layers.11.mlp.up_proj", (11, "up_proj")),
        ("encoder.layer.0.attention.self.query", (0, "query")),
        ("h.7.attn.c_attn.weight", (7, "c_attn")),
        ("blk.2.ffn_gate.weight", (2, "ffn_gate")),
        ("transformer.embedding.word_embeddings.weight", (None, "word_embeddings")),
    ],
)
def test_layer_and_matrix_of_a_module(name, expected):
    assert t.layer_and_matrix(name) == expected


@pytest.mark.parametrize("count", [1, 2, 160, 161, 4096])
def test_thinned_spectra_keep_both_ends_and_the_first_values(count):
    at = t.thin(count)
    assert at[0] == 0
    assert at[-1] == count - 1
    assert len(at) <= 160
    assert np.all(np.diff(at) > 0)
    assert set(range(min(count, 10))) <= set(at)


def test_densities_integrate_to_one():
    sigma = np.linalg.svd(np.random.default_rng(0).normal(size=(300, 120)), compute_uv=False)
    edges, density = t.spectral_density(sigma)
    assert np.sum(density * np.diff(edges)) == pytest.approx(1, abs=1e-12)
    edges, density = t.spectral_density(np.array([2.0, 2.0]))
    assert np.sum(density * np.diff(edges)) == pytest.approx(1, abs=1e-12)
    for rows, cols in ((300, 120), (120, 300), (200, 200)):
        grid = np.linspace(1e-6, 0.5 * 40, 200_001)
        law = t.marchenko_pastur_density(grid, rows, cols, 0.5)
        assert trapezoid(law, grid) == pytest.approx(1, abs=1e-3)


def test_marchenko_pastur_density_is_that_of_noise():
    scale, (rows, cols) = 0.3, (800, 400)
    sigma = np.linalg.svd(scale * np.random.default_rng(1).normal(size=(rows, cols)), compute_uv=False)
    edges = np.linspace(sigma[-1], sigma[0], 9)
    measured, _ = np.histogram(sigma, edges)
    grid = np.linspace(edges[0], edges[-1], 8001)
    law = t.marchenko_pastur_density(grid, rows, cols, scale)
    expected = [trapezoid(part, x) for part, x in zip(np.split(law[:-1], 8), np.split(grid[:-1], 8), strict=True)]
    assert np.abs(measured / cols - expected).max() < 0.01
    wrong = t.marchenko_pastur_density(grid, rows, cols, 1.2 * scale)
    off = [trapezoid(part, x) for part, x in zip(np.split(wrong[:-1], 8), np.split(grid[:-1], 8), strict=True)]
    assert np.abs(measured / cols - off).max() > 0.03  # a noise level off by a fifth is seen


def test_other_bins_hold_every_count():
    values = np.random.default_rng(2).normal(size=100_000)
    wide = np.sort(np.concatenate([-np.geomspace(1e-4, 60, 130), [0.0], np.geomspace(1e-4, 60, 130)]))
    counts, _ = np.histogram(values, wide)
    cut = np.linspace(-60, 60, 4001)
    moved = rebin(wide, counts, cut)
    assert moved.sum() == pytest.approx(counts.sum(), rel=1e-12)
    assert moved.min() >= 0
    at = wide[200]  # on an edge of the stored bins the count below it is exact
    assert rebin(wide, counts, np.array([-60, at, 60])) == pytest.approx([(values < at).sum(), (values >= at).sum()])
    fine = np.linspace(-3, 3, 41)
    truth, _ = np.histogram(values, fine)
    assert np.abs(rebin(wide, counts, fine) - truth).max() < 0.05 * truth.max()


def test_infinite_bins_are_left_out_of_a_density():
    bins = pd.DataFrame({"bin_left": [-np.inf, -1, 0, 1], "bin_right": [-1, 0, 1, np.inf], "count": [3, 10, 30, 1]})
    edges, density, counts = t.value_density(bins)
    assert list(edges) == [-1, 0, 1]
    assert list(counts) == [10, 30]
    assert np.sum(density * np.diff(edges)) == pytest.approx(1)


def test_central_range_holds_the_share_it_says():
    edges = np.linspace(-4, 4, 801)
    counts, _ = np.histogram(np.random.default_rng(3).normal(size=200_000), edges)
    low, high = t.central_range([(edges, counts)], 0.95)
    assert low == -high
    assert high == pytest.approx(1.96, abs=0.03)


def test_smoothing_is_without_bias_and_knows_uneven_steps():
    assert t.smooth([1, 5, 90], [2.0, 2.0, 2.0], 10) == pytest.approx([2, 2, 2])
    near, far = t.smooth([0, 1], [0.0, 1.0], 10)[-1], t.smooth([0, 100], [0.0, 1.0], 10)[-1]
    assert 0.5 < near < 0.6
    assert far > 0.999
    with_gap = t.smooth([0, 1, 2], [1.0, np.nan, 1.0], 10)
    assert with_gap == pytest.approx([1, 1, 1])


def test_bins_of_a_histogram_are_about_as_wide_as_each_other():
    tables = make_tables(1, {"dense": ((8, 8), {})})
    edges = np.unique(np.concatenate([np.linspace(-1, -0.1, 20), np.linspace(-0.1, 0.1, 400), np.linspace(0.1, 1, 20)]))
    key = tables.histograms.iloc[:1].drop(columns=["bin_left", "bin_right", "count"])
    bins = pd.DataFrame({"bin_left": edges[:-1], "bin_right": edges[1:], "count": 1}).merge(key, how="cross")
    made = t.Tables(t.with_series(tables.matrices), tables.singular_values, bins)
    drawn, counts = set_of("weight", Words.same("W"), made)["histograms"][0]
    assert sum(counts) == len(edges) - 1
    widths = np.diff(drawn)
    assert (drawn[0], drawn[-1]) == (-1, 1)
    assert widths.max() < 2 * widths.min(), "not one of 0.0005 beside one of 0.05"
