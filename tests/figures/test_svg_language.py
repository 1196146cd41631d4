"""The SVG files in Chinese: every word of them, wide enough for it; and in English where no font holds Chinese."""

import re

import pytest

from glmspectra.cli.doctor import WEAK, fonts
from glmspectra.figures.svg import files, style, words
from glmspectra.figures.tables import pick
from glmspectra.figures.training_log import read_runs
from glmspectra.language import catalogue, text
from tests.figures.made_pages import changed, curve, quantiles, ranks_of
from tests.figures.synthetic_run import make_tables, training_folder

# What stands in figures in every language: names of weights and criteria, of people, and units.
NAMES = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)+|dense|alpha|uniform|random|ada|Gavish|Donoho|top-k|ΔW|σ|φ|[a-z]\d*")
ENGLISH = re.compile(r"[A-Za-z]{3,}")
CHINESE = re.compile("[\u4e00-\u9fff]")


def every_figure(folder):
    """All figures that there are, from synthetic tables and logs."""
    run = pick(quantiles(make_tables(2, parts=True, heads=3, outside=True)), "weight")
    yield from files.weight_figures(run, ["mean"])
    delta = changed(2)
    rows = delta.matrices[delta.matrices["quantity"] == "delta"]
    last = pick(delta, "delta", step=20)
    yield from files.change_figures(last, rows, pick(delta, "weight"), pick(delta, "weight"))
    yield from files.rank_figures(ranks_of(run), curve(), 1e5)
    folders = [training_folder(folder / name, ranks=name == "ada", loss=2) for name in ("ada", "b")]
    yield from files.training_figures(read_runs(folders, None))


def words_of(figure) -> set[str]:
    """Every text of a figure that is no number."""
    found = {artist.get_text() for artist in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))}
    return {word for word in found if ENGLISH.search(word) or CHINESE.search(word)}


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setattr(catalogue, "_chosen", "zh")


@pytest.mark.slow
@pytest.mark.skipif(words.chinese_font() is None, reason="no font here holds Chinese")
def test_figures_speak_chinese(chinese, tmp_path):
    with style.styled():
        count = 0
        for drawn in every_figure(tmp_path):
            if drawn.figure is None:
                continue
            count += 1
            said = {drawn.title, drawn.described} | words_of(drawn.figure)
            assert not {word for word in said if ENGLISH.search(NAMES.sub("", word))}, drawn.name
            assert CHINESE.search(drawn.title), drawn.name
    assert count > 40


@pytest.mark.skipif(words.chinese_font() is None, reason="no font here holds Chinese")
def test_chinese_is_laid_out_as_wide_as_it_is(chinese):
    with style.styled():
        figure = style.new_figure(4, 2)
        said = figure.text(0, 0, "奇异值有效秩谱范数", fontsize=20)
        width = said.get_window_extent().width
    assert width == pytest.approx(9 * 20 / 72 * figure.dpi, rel=0.05), "nine characters, an em each"


def test_figures_are_english_where_no_font_holds_chinese(chinese, monkeypatch):
    monkeypatch.setattr(words, "chinese_font", lambda: None)
    assert words.say("figure-layer") == "layer"
    assert words.axis("stable_rank").startswith("stable rank")
    assert words.missing_font() == text("figure-no-font", "zh")
    found = fonts()
    assert found.state == WEAK
    assert "Noto Sans CJK SC" in found.words
    monkeypatch.setattr(catalogue, "_chosen", "en")
    assert words.missing_font() is None
