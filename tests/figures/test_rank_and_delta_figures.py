"""Figures of suggested ranks and of what training changed."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from glmspectra.errors import StoreError
from glmspectra.figures import Tables, write_report, write_tables_report
from glmspectra.figures.rank_tables import budget_of
from glmspectra.figures.svg import delta, ranks, style
from glmspectra.figures.svg.layers import Spectra
from glmspectra.figures.tables import pick, with_layer_and_matrix
from tests.figures.synthetic_run import make_tables, store_tables

SVG = "{http://www.w3.org/2000/svg}"
MATRICES = ("query_key_value", "dense")


@pytest.fixture(autouse=True)
def _one_style():
    with style.styled():
        yield


@pytest.fixture
def suggested() -> pd.DataFrame:
    rows = [
        {
            "criterion": criterion,
            "name": f"layers.{layer}.{matrix}.weight",
            "layer": layer,
            "matrix": matrix,
            "rank": rank,
        }
        for criterion, shift in (("delta-threshold", 0), ("effective-rank", 3), ("uniform", None))
        for layer in range(4)
        for matrix in MATRICES
        for rank in [6 if shift is None else layer * 2 + shift * (matrix == "dense")]
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def grown() -> Tables:
    """Deltas of three steps, a base and a merged weight."""
    types = {"query_key_value": ((12, 10), {}), "dense": ((10, 10), {})}
    pieces = [make_tables(3, types, quantity="delta", step=step, seed=step) for step in (10, 20, 30)]
    pieces += [make_tables(3, types, quantity=quantity, seed=seed) for seed, quantity in ((1, "weight"), (2, "merged"))]
    return Tables(
        *(
            pd.concat([getattr(piece, name) for piece in pieces], ignore_index=True)
            for name in ("matrices", "singular_values", "histograms")
        )
    )


@pytest.fixture
def further(grown) -> pd.DataFrame:
    rows = grown.matrices[grown.matrices["quantity"] == "delta"]
    table = rows[["name", "layer", "matrix", "step"]].reset_index(drop=True)
    count = np.arange(len(table))
    return table.assign(
        allotted_rank=8,
        rank=count % 8,
        share_of_rank_in_use=(count % 5) / 8,
        relative_frobenius=0.01 * (1 + count),
        noise_floor=0.2,
        intruders=count % 3,
        amplification=5.0,
    )


@pytest.fixture
def similarity() -> pd.DataFrame:
    grid = [(side, i, j) for side in ("left", "right") for i in range(1, 5) for j in range(1, 4)]
    rows = [
        {"name": f"layers.{layer}.dense.weight", "layer": layer, "matrix": "dense", "side": side, "i": i, "j": j}
        | {"similarity": (i + layer) / 10 if side == "left" else 0.5}
        for layer in range(3)
        for side, i, j in grid
    ]
    return pd.DataFrame(rows)


def drawn(figure) -> dict[str, np.ndarray]:
    return {line.get_gid(): line.get_xydata() for ax in figure.axes for line in ax.lines if line.get_gid()}


def words(figure) -> set[str]:
    root = ElementTree.fromstring(style.svg_text(figure))
    return {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}


def panel(figure, title: str):
    return next(ax for ax in figure.axes if ax.get_title(loc="left") == title)


def test_rank_heat_maps_have_a_panel_for_each_criterion_and_the_number_in_each_cell(suggested):
    figure = ranks.draw_rank_heatmaps(suggested)
    for criterion in ("uniform", "delta-threshold", "effective-rank"):
        ax = panel(figure, criterion)
        expected = suggested[suggested["criterion"] == criterion].pivot(index="matrix", columns="layer", values="rank")
        expected = expected.loc[list(MATRICES)].to_numpy()
        assert np.asarray(ax.collections[0].get_array()).reshape(2, 4) == pytest.approx(expected)
        assert [text.get_text() for text in ax.texts] == [str(rank) for rank in expected.ravel()]
    assert figure.axes[0].get_title(loc="left") == "uniform"  # the control comes first
    scales = {
        (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for ax in figure.axes if ax.get_title(loc="left")
    }
    assert len(scales) == 1


def test_rank_bars_are_means(suggested):
    figure = ranks.draw_rank_bars(suggested)
    bars = {patch.get_gid(): patch.get_height() for patch in figure.axes[0].patches}
    means = suggested.groupby(["criterion", "matrix"])["rank"].mean()
    assert len(bars) == 6
    for (criterion, matrix), mean in means.items():
        assert bars[f"bar-{criterion}-{matrix}"] == pytest.approx(mean)
    by_layer = suggested[suggested["criterion"] == "effective-rank"].groupby("layer")["rank"].mean()
    assert drawn(figure)["by-layer-effective-rank"][:, 1] == pytest.approx(by_layer.to_numpy())
    assert {"rank (directions)", "uniform", "delta-threshold"} <= words(figure)
    hatches = {patch.get_hatch() for patch in figure.axes[0].patches}
    assert len(hatches) == 3  # told apart without color


def test_budget_curve_marks_the_budget():
    rows = [
        {"criterion": criterion, "parameters": parameters, "value": 1 - factor / parameters, "metric": "energy"}
        for criterion, factor in (("delta-threshold", 2e5), ("uniform", 4e5))
        for parameters in (1e6, 2e6, 8e6)
    ]
    figure = ranks.draw_budget_curve(pd.DataFrame(rows), chosen=2e6)
    assert drawn(figure)["budget-energy-uniform"].tolist() == pytest.approx(np.array([[1e6, 60], [2e6, 80], [8e6, 95]]))
    assert {"trainable parameters", "energy held (%)", "this budget"} <= words(figure)
    of_delta = ranks.draw_budget_curve(pd.DataFrame(rows).assign(quantity="delta"))
    assert "energy of ΔW held (%)" in words(of_delta)
    assert "this budget" not in words(of_delta)


def test_budget_of_a_suggestion(suggested):
    shapes = pd.DataFrame({"name": suggested["name"].unique(), "rows": 10, "cols": 30})
    assert budget_of(suggested, shapes, "uniform") == 8 * 6 * 40
    assert budget_of(suggested, shapes.iloc[1:], "uniform") is None


def test_tables_without_a_needed_column_are_refused(suggested, similarity):
    with pytest.raises(
        StoreError, match="the table of ranks has no column rank: it needs criterion, name, layer, matrix, rank"
    ):
        ranks.draw_rank_bars(suggested.drop(columns="rank"))
    with pytest.raises(StoreError, match="the table of subspace similarity has no column side"):
        delta.draw_similarity(similarity.drop(columns="side"))


def test_delta_spectra_and_their_floor(grown, further):
    last = pick(grown, "delta")
    figure = delta.draw_delta_spectra(Spectra.of(last), further)
    rows = last.singular_values.query("matrix == 'dense' and layer == 2")
    lines = drawn(figure)
    assert lines["delta-dense-layer-2"][:, 1] == pytest.approx(rows["sigma"].to_numpy())
    assert lines["floor-dense"][:, 1] == pytest.approx([0.2, 0.2])
    assert "floor-dense" not in drawn(delta.draw_delta_spectra(Spectra.of(last)))
    assert delta.low_floors(Spectra.of(last), further) == 0
    deep = further.assign(noise_floor=1e-9)
    figure = delta.draw_delta_spectra(Spectra.of(last), deep)
    assert "floor-dense" not in drawn(figure), "it would press the lines together"
    assert figure.axes[0].get_ylim()[0] > 1e-6
    assert delta.low_floors(Spectra.of(last), deep) == 1e-9
    assert "singular value σ of ΔW (units of the weight)" in words(figure)


def test_growth_is_the_median_over_layers(grown, further):
    rows = grown.matrices[grown.matrices["quantity"] == "delta"]
    figure = delta.draw_growth(rows, further)
    lines = drawn(figure)
    expected = rows[rows["matrix"] == "dense"].groupby("step")["spectral_norm"].median()
    assert lines["growth-spectral_norm-dense"].tolist() == pytest.approx(
        np.column_stack([[10, 20, 30], expected.to_numpy(float)])
    )
    relative = further[further["matrix"] == "dense"].groupby("step")["relative_frobenius"].median()
    assert lines["growth-relative_frobenius-dense"][:, 1] == pytest.approx(100 * relative.to_numpy(float))
    assert delta.draw_growth(rows[rows["step"] == 10]) is None


def test_rank_in_use_against_allotted(further):
    last = further[further["step"] == 30]
    figure = delta.draw_rank_use(last)
    for matrix in MATRICES:
        rows = last[last["matrix"] == matrix].sort_values("layer")
        used = 8 * rows["share_of_rank_in_use"]
        share = 100 * used.sum() / rows["allotted_rank"].sum()
        ax = panel(figure, f"{matrix}: {share:.0f} % in use")
        heights = [patch.get_height() for patch in ax.patches]
        assert heights == [8, 8, 8, *used]
    assert delta.draw_rank_use(last.drop(columns="share_of_rank_in_use")) is None


def test_similarity_is_the_median_over_layers_or_one_weight(similarity):
    figure = delta.draw_similarity(similarity)
    left = np.asarray(panel(figure, "dense, left").collections[0].get_array()).reshape(4, 3)
    assert left[:, 0] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    one = delta.draw_similarity(similarity, "layers.2.dense.weight")
    assert np.asarray(panel(one, "dense, left").collections[0].get_array()).reshape(4, 3)[:, 1] == pytest.approx(
        [0.3, 0.4, 0.5, 0.6]
    )


def test_merged_spectrum_beside_that_of_the_weight(grown):
    weight, merged = Spectra.of(pick(grown)), Spectra.of(pick(grown, "merged"))
    lines = drawn(delta.draw_merged(weight, merged))
    before, after = weight.sigma[1, "dense"], merged.sigma[1, "dense"]
    assert lines["moved-dense-layer-1"][:, 1] == pytest.approx(100 * (after / before - 1))


def test_places_are_read_off_the_names_where_they_are_missing():
    table = with_layer_and_matrix(pd.DataFrame({"name": ["model.layers.3.mlp.up_proj.weight", "lm_head.weight"]}))
    assert table["layer"].tolist() == [3, pd.NA]
    assert table["matrix"].tolist() == ["up_proj", "lm_head"]


def test_ranks_report(suggested, grown, tmp_path):
    curve = pd.DataFrame(
        {"criterion": ["uniform"] * 2, "parameters": [1e6, 2e6], "value": [2.0, 1.9], "metric": ["loss"] * 2}
    )
    weights = Tables(grown.matrices[grown.matrices["quantity"] == "weight"])
    page = write_tables_report(weights, tmp_path, ranks=suggested, budget_curve=curve, svg=True)
    text = page.read_text(encoding="utf-8")
    assert "Ranks for made" in text
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert {"ranks_by_matrix.svg", "ranks_heat.svg", "budget_curve.svg"} <= drawn
    with pytest.raises(StoreError, match="the table of ranks has no column rank"):
        write_tables_report(weights, tmp_path, ranks=suggested.drop(columns="rank"))


@pytest.mark.slow
def test_delta_report_from_tables_and_from_a_stored_run(grown, further, suggested, tmp_path):
    matrices = grown.matrices.merge(further.drop(columns=["layer", "matrix"]), on=["name", "step"], how="left")
    tables = Tables(matrices, grown.singular_values, grown.histograms)
    page = write_tables_report(tables, tmp_path / "a", svg=True)
    names = {path.name for path in (tmp_path / "a").glob("*.svg")}
    wanted = ["spectra", "ranks", "rank_use", "relative_frobenius", "intruders", "growth", "merged"]
    assert {f"delta_{name}.svg" for name in wanted} <= names
    assert "What training changed" in page.read_text(encoding="utf-8")

    folder = store_tables(tables, tmp_path / "run")
    write_report(folder, tmp_path / "b", svg=True)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    suggested.to_parquet(folder / "ranks.parquet")
    whole = write_report(folder, tmp_path / "c").read_text(encoding="utf-8")
    assert not list((tmp_path / "c").glob("*.svg")), "SVG files are drawn when they are asked for"
    assert whole.index('"id":"delta"') < whole.index('"id":"ranks"') < whole.index('"id":"weight"')
    (folder / "ranks.parquet").write_bytes(b"not a table")
    with pytest.raises(StoreError, match=r"ranks\.parquet cannot be read as a table"):
        write_report(folder, tmp_path / "d")
