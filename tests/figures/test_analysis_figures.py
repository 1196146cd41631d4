"""Figures of weights: what is drawn is what the tables hold, for every sort of run."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm, TwoSlopeNorm

from glmspectra.errors import RequestError
from glmspectra.figures.svg import depth, files, heatmaps, layers, style, values
from glmspectra.figures.svg.one_layer import draw_layer
from glmspectra.figures.tables import Tables, pick, thin, with_outlier_ratios
from glmspectra.store.columns import CHANGE, COLUMNS, DERIVED, REAL, SPECTRUM, VALUES, WHOLE
from glmspectra.store.schema import MATRICES
from tests.figures.synthetic_run import EDGES, GLM, make_tables

SVG = "{http://www.w3.org/2000/svg}"
LLAMA = {name: ((24, 20), {}) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}
MANY = {f"expert_{i}": ((12, 10), {}) for i in range(layers.MOST_LINES + 2)}


@pytest.fixture(autouse=True)
def _one_style():
    with style.styled():
        yield


@pytest.fixture(scope="module")
def run() -> Tables:
    return pick(make_tables(3))


@pytest.fixture(scope="module")
def split() -> Tables:
    return pick(make_tables(3, parts=True, heads=4))


@pytest.fixture(scope="module")
def by_depth(run) -> dict:
    """Measures -> their lines by depth."""
    every = (depth.TOP12, depth.RANKS, depth.EDGES, depth.TAILS, depth.NORMS, depth.SPREAD, depth.OUTLIERS)
    with style.styled():
        return {measures: depth.draw_by_depth(with_outlier_ratios(run.matrices), measures) for measures in every}


def lines(figure) -> dict[str, np.ndarray]:
    """gid -> (n, 2) drawn points of every line of a figure that has one."""
    return {line.get_gid(): line.get_xydata() for ax in figure.axes for line in ax.lines if line.get_gid()}


def words(figure) -> set[str]:
    root = ElementTree.fromstring(style.svg_text(figure))
    return {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}


def sigma_of(run: Tables, layer: int, matrix: str, part: str = "whole") -> np.ndarray:
    rows = run.singular_values
    return rows[(rows["layer"] == layer) & (rows["matrix"] == matrix) & (rows["part"] == part)]["sigma"].to_numpy()


def test_a_layers_figure_shows_its_singular_values(run):
    figure = draw_layer(layers.Spectra.of(run), 1)
    drawn = lines(figure)
    for matrix in ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"):
        sigma = sigma_of(run, 1, matrix)
        assert drawn[f"top-{matrix}"][:, 1] == pytest.approx(sigma[:20])
        assert list(drawn[f"top-{matrix}"][:, 0]) == list(range(1, 21))
        at = thin(len(sigma))
        assert drawn[f"spectrum-{matrix}"][:, 1] == pytest.approx(sigma[at])
    said = words(figure)
    assert {"Layer 1: the 20 largest", "Layer 1: the whole spectrum", "singular value number (1 = largest)"} <= said
    assert {"singular value σ (units of the weight)", "σ (units of the weight)", "density (1 / unit)"} <= said
    assert {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"} <= said
    full = figure.axes[1]
    assert full.get_xscale() == full.get_yscale() == "log"


def test_bulk_edges_stand_where_the_table_has_them(split):
    figure = draw_layer(layers.Spectra.of(split), 2)
    drawn = lines(figure)
    rows = split.matrices[split.matrices["layer"] == 2].set_index("series")
    for series in ("dense", "query_key_value q", "query_key_value k", "dense_h_to_4h gate", "dense_4h_to_h"):
        gid = layers.slug(f"edge-{series}")
        assert drawn[gid][:, 0] == pytest.approx([rows.loc[series, "mp_edge"]] * 2)
        assert drawn[layers.slug(f"bulk-{series}")][:, 0].max() <= rows.loc[series, "mp_edge"] * (1 + 1e-9)
    assert "edge-query_key_value" not in drawn  # a fused weight has no edge of its own beside its parts
    said = words(figure)
    q, k, v = (int(rows.loc[f"query_key_value {part}", "mp_spikes"]) for part in "qkv")
    assert f"beyond edge: q {q}, k {k}, v {v}" in said


def test_sheets_have_a_panel_for_each_layer_on_common_axes(run):
    spectra = layers.Spectra.of(run)
    for what in ("top", "spectrum"):
        figure = layers.draw_sheet(spectra, what)
        assert len(figure.axes) == 3
        assert {"layer 0", "layer 1", "layer 2"} <= words(figure)
        assert len({ax.get_ylim() for ax in figure.axes}) == 1
        highest = max(float(points[:, 1].max()) for points in lines(figure).values())
        assert highest == pytest.approx(run.singular_values["sigma"].max())
    by_matrix = lines(layers.draw_spectra_by_matrix(spectra))
    assert len(by_matrix) == 3 * 4
    assert by_matrix["dense-layer-2"][0, 1] == pytest.approx(sigma_of(run, 2, "dense")[0])


@pytest.mark.parametrize("count", [1, 2, 40])
def test_sheets_of_any_number_of_layers_stay_on_a_screen(count):
    spectra = layers.Spectra.of(pick(make_tables(count, {"dense": ((8, 6), {}), "other": ((6, 6), {})})))
    figure = layers.draw_sheet(spectra, "top")
    assert len(figure.axes) == count
    width, height = figure.get_size_inches()
    assert 2 <= width <= 12
    assert height <= 1.5 * -(-count // 7) + 3
    layers.draw_spectra_by_matrix(spectra)


def test_lines_by_depth_are_the_columns_of_the_table(run, by_depth):
    matrices = with_outlier_ratios(run.matrices)
    for measures, figure in by_depth.items():
        drawn = lines(figure)
        for measure in measures:
            for series, rows in matrices.groupby("series"):
                points = drawn[layers.slug(f"{measure.column}-{series}")]
                assert list(points[:, 0]) == [0, 1, 2]
                assert points[:, 1] == pytest.approx(rows[measure.column].to_numpy(float))
    said = words(by_depth[depth.TOP12])
    assert {"top 12, share of the sum of σ (%)", "layer (0 = nearest the input)"} <= said


def test_every_axis_says_its_unit(by_depth):
    for ax in (ax for figure in by_depth.values() for ax in figure.axes):
        assert re.search(r"\(.+\)$", ax.get_ylabel()), ax.get_title()
        assert ax.get_xlabel()
    for column in (*VALUES, *SPECTRUM, *CHANGE, *DERIVED):
        assert column.unit or column.share or column.type not in (REAL, WHOLE), column.name


def test_energy_ranks_and_their_ceiling(run):
    figure = depth.draw_energy_ranks(run.matrices)
    drawn = lines(figure)
    for level in (50, 80, 90, 95, 99):
        rows = run.matrices[run.matrices["series"] == "dense_h_to_4h"]
        assert drawn[f"energy-{level}-dense_h_to_4h"][:, 1] == pytest.approx(
            rows[f"energy_rank_{level}"].to_numpy(float)
        )
    assert all(ax.get_ylim()[1] > 32 for ax in figure.axes)


def test_outlier_ratios():
    table = pd.DataFrame(
        {"abs_max": [3.0, 1.0], "std": [0.5, 0.0], "largest_row_norms": [[4.0, 1.0], []], "row_norm_median": [2.0, 1.0]}
    )
    added = with_outlier_ratios(table)
    assert added["abs_max_in_std"].iloc[0] == 6
    assert added["row_peak"].iloc[0] == 2
    assert added[["abs_max_in_std", "row_peak"]].iloc[1].isna().all()
    assert "column_peak" not in added


def test_heat_map_cells_are_the_table(run):
    table = heatmaps.layer_by_matrix(run.matrices, "stable_rank")
    assert list(table.index) == ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    figure = heatmaps.draw_heatmap(run.matrices, "stable_rank")
    mesh = figure.axes[0].collections[0]
    assert np.ma.filled(mesh.get_array(), np.nan).reshape(table.shape) == pytest.approx(table.to_numpy())
    assert {"Stable rank (directions)", "layer (0 = nearest the input)", *table.index} <= words(figure)
    bottom_up = figure.axes[0].get_ylim()
    assert bottom_up[0] > bottom_up[1]  # the first matrix is on top


def test_heat_map_hatches_what_was_not_measured_and_refuses_unknown_columns(run):
    holes = run.matrices.assign(alpha=run.matrices["alpha"].where(run.matrices["layer"] != 1))
    figure = heatmaps.draw_heatmap(holes, "alpha")
    mesh = figure.axes[0].collections[0]
    assert np.ma.getmaskarray(mesh.get_array()).reshape(4, 3)[:, 1].all()
    assert figure.axes[0].patch.get_hatch()
    with pytest.raises(RequestError, match=r"the column 'nothing' has no numbers .* choose from .*stable_rank"):
        heatmaps.draw_heatmap(run.matrices, "nothing")
    with pytest.raises(RequestError, match="the column 'dtype' has no numbers"):
        heatmaps.draw_heatmap(run.matrices, "dtype")


def test_color_scales_suit_the_numbers():
    assert isinstance(heatmaps.scale_for(np.array([1.0, 500.0]), COLUMNS["std"]), LogNorm)
    signed = heatmaps.scale_for(np.array([-1.0, 3.0]), COLUMNS["mean"])
    assert isinstance(signed, TwoSlopeNorm)
    assert signed(0.0) == pytest.approx(0.5)
    flat = heatmaps.scale_for(np.array([2.0, 2.0, np.nan]), COLUMNS["std"])
    assert flat.vmin < 2 < flat.vmax


def test_every_numeric_column_can_be_drawn(run):
    names = heatmaps.numeric_columns(run.matrices)
    assert len(names) > 25
    for name in ("rows", "energy_rank_99", "share_beyond_3_sigma", "mean"):
        assert name in names
        heatmaps.draw_heatmap(run.matrices, name)


def test_heads_have_a_cell_each(split):
    figure = heatmaps.draw_heads(split.matrices, "spectral_norm")
    mesh = figure.axes[0].collections[0]
    rows = split.matrices[split.matrices["part"] == "q.head_2"].sort_values("layer")
    assert np.asarray(mesh.get_array()).reshape(3, 4)[:, 2] == pytest.approx(rows["spectral_norm"].to_numpy())
    assert heatmaps.draw_heads(pick(make_tables(1)).matrices) is None


def test_ridges_hold_the_share_of_the_weights_they_show(run):
    figure = values.draw_value_ridges(run)
    rows = run.histograms
    for matrix in ("dense", "query_key_value"):
        ax = next(ax for ax in figure.axes if ax.get_title(loc="left") == matrix)
        low, high = ax.get_xlim()
        areas = {}
        for layer in range(3):
            points = lines(figure)[f"ridge-{matrix}-layer-{layer}"]
            counts = rows[(rows["layer"] == layer) & (rows["matrix"] == matrix)]["count"].to_numpy()
            shown = np.interp([low, high], EDGES, np.concatenate([[0], np.cumsum(counts)]))
            areas[layer] = (points[:, 1] - layer).sum() / ((shown[1] - shown[0]) / counts.sum())
        assert areas[0] == pytest.approx(areas[1], rel=1e-6)  # one scale for all layers: areas are shares
        assert areas[0] == pytest.approx(areas[2], rel=1e-6)


def test_top_k_runs_draw_what_they_have():
    run = pick(make_tables(2, top=25))
    spectra = layers.Spectra.of(run)
    assert not spectra.complete(0, "dense_h_to_4h")
    figure = draw_layer(spectra, 0)
    assert {"Layer 0: the largest values (top-k run)", "not all values measured"} <= {
        part for said in words(figure) for part in (said, said.split("\n")[0])
    }
    assert depth.draw_energy_ranks(run.matrices) is None
    assert set(lines(depth.draw_by_depth(run.matrices, depth.RANKS))) == {
        layers.slug(f"stable_rank-{name}") for name in spectra.order
    }  # effective rank and participation ratio need every value


def test_what_a_run_did_not_measure_is_not_drawn():
    run = pick(make_tables(2, {"dense": ((24, 20), {})}, top=15))
    names = [drawn.name for drawn in files.weight_figures(run) if drawn.figure is not None]
    assert "energy_ranks" not in names
    assert "ranks" in names


def test_a_measure_of_one_value_is_not_drawn():
    tables = make_tables(2, {"dense": ((24, 20), {})})
    same = Tables(
        tables.matrices.assign(top12_energy_share=1.0, top12_share_of_singular_value_sum=1.0), tables.singular_values
    )
    drawn = {drawn.name: drawn.figure for drawn in files.weight_figures(pick(same), per_layer=False)}
    assert drawn["top12"] is None, "the top 12 of an adapter of rank 12 hold everything by definition"
    assert "heat_top12_share_of_singular_value_sum" not in drawn
    assert drawn["ranks"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("types", [LLAMA, MANY], ids=["seven matrices", "sixteen matrices"])
def test_reports_on_checkpoints_of_other_families(tmp_path, types):
    run = pick(make_tables(2, types, outside=True))
    written = files.save_all(files.weight_figures(run), tmp_path)
    wanted = {"layer_00.svg", "layer_01.svg", "outside_layers.svg", "ranks.svg", "histograms.svg"}
    assert wanted <= {path.name for path in written}
    for path in written:
        root = ElementTree.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        assert float(root.get("width").removesuffix("pt")) < 72 * 14


@pytest.mark.parametrize("types", [LLAMA, MANY], ids=["seven matrices", "sixteen matrices"])
def test_any_number_of_matrix_types(types):
    run = pick(make_tables(2, types))
    drawn = lines(depth.draw_by_depth(run.matrices, depth.RANKS))
    assert len(drawn) == 3 * len(types)
    figure = draw_layer(layers.Spectra.of(run), 0)
    shown = [gid for gid in lines(figure) if gid.startswith("top-")]
    assert len(shown) == min(len(types), layers.MOST_LINES)
    assert heatmaps.layer_by_matrix(run.matrices, "std").shape == (len(types), 2)


def test_matrices_outside_layers_have_a_figure_of_their_own():
    run = pick(make_tables(1, outside=True))
    drawn = lines(layers.draw_outside(run))
    rows = run.singular_values
    assert drawn["spectrum-transformer.embedding.weight"][:, 1] == pytest.approx(
        rows[rows["layer"].isna()]["sigma"].to_numpy()
    )
    assert layers.draw_outside(pick(make_tables(1))) is None


def test_a_run_with_nothing_in_layers(tmp_path):
    run = pick(make_tables(0, outside=True))
    files.save_all(files.weight_figures(run), tmp_path)
    assert (tmp_path / "outside_layers.svg").is_file()
    assert not list(tmp_path.glob("heat_*"))


def test_a_matrix_with_nan_leaves_a_gap():
    tables = make_tables(3)
    bad = (tables.matrices["layer"] == 1) & (tables.matrices["matrix"] == "dense")
    matrices = tables.matrices.copy()
    matrices.loc[bad, "status"] = "nonfinite"
    matrices.loc[bad, ["stable_rank", "spectral_norm", "mp_spikes", "effective_rank"]] = np.nan
    values_left = tables.singular_values
    values_left = values_left[~((values_left["layer"] == 1) & (values_left["matrix"] == "dense"))]
    run = pick(Tables(matrices, values_left, tables.histograms))
    drawn = lines(depth.draw_by_depth(run.matrices, depth.RANKS))
    assert np.isnan(drawn["stable_rank-dense"][1, 1])
    layers.draw_sheet(layers.Spectra.of(run), "top")
    assert "dense" not in layers.Spectra.of(run).of_layer(1)


def test_series_keep_their_look_from_figure_to_figure(run):
    spectra = layers.Spectra.of(run)
    one = {line.get_gid(): line for ax in draw_layer(spectra, 0).axes for line in ax.lines}
    other = {line.get_gid(): line for ax in depth.draw_by_depth(run.matrices, depth.RANKS).axes for line in ax.lines}
    for matrix in spectra.order:
        a, b = one[f"top-{matrix}"], other[f"stable_rank-{matrix}"]
        assert (a.get_color(), a.get_marker(), a.get_linestyle()) == (b.get_color(), b.get_marker(), b.get_linestyle())


@pytest.mark.slow
def test_the_whole_set_is_the_same_bytes_twice(tmp_path):
    two = {name: GLM[name] for name in ("query_key_value", "dense")}
    for folder in ("a", "b"):
        files.save_all(files.weight_figures(pick(make_tables(2, two, parts=True))), tmp_path / folder)
    one, other = (sorted((tmp_path / folder).glob("*.svg")) for folder in ("a", "b"))
    assert [path.name for path in one] == [path.name for path in other]
    assert len(one) > 20
    for first, second in zip(one, other, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_no_figure_is_left_in_pyplot(run):
    import matplotlib.pyplot as plt

    draw_layer(layers.Spectra.of(run), 0)
    heatmaps.draw_heatmap(run.matrices, "std")
    assert plt.get_fignums() == []
    assert matplotlib.rcParams["svg.fonttype"] == "none"


def test_every_number_of_the_table_has_a_meaning():
    """A heat map can be asked of any column, and its paragraph must say more than the column's name."""
    numbers = {field.name for field in MATRICES if str(field.type) in ("double", "int64")}
    assert {"mp_edge", "q_0001", "intruders"} <= numbers
    for name in numbers - {"step", "layer", "seconds"} | {"abs_max_in_std", "row_peak", "column_peak"}:
        assert name in COLUMNS, name


@pytest.mark.slow
def test_a_figure_that_leaves_lines_out_says_so():
    shapes = {f"matrix_{i:02d}": ((6, 5), {}) for i in range(layers.MOST_LINES + 2)}
    said = {drawn.name: drawn.described for drawn in files.weight_figures(pick(make_tables(1, shapes), "weight"))}
    assert "Of 16 only 14 are drawn here" in said["layer_00"]
    assert "Of 16 only 14 are drawn here" in said["sheet_top20"]
    assert "are drawn here" not in said["top12"], "16 lines go to three rows of panels"
    few = files.weight_figures(pick(make_tables(1, dict(list(shapes.items())[:3])), "weight"))
    assert not any("are drawn here" in drawn.described for drawn in few)
