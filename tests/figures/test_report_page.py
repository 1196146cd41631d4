"""The page: whole, and right in a browser: no console error, every figure visible, keyboard, sorting."""

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glmspectra.cli.main import main
from glmspectra.figures import Album, Grid, Section, Tables, styled, write_page, write_report, write_tables_report
from glmspectra.figures.overview import write_overview
from glmspectra.figures.page import cell_text, sort_key
from glmspectra.figures.report import run_facts
from glmspectra.figures.style import panels
from tests.figures.synthetic_run import make_tables, store_tables, training_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A page with every kind of section: weights, layers, training, and a table long enough for two pages of rows."""
    folder = tmp_path_factory.mktemp("report")
    run = make_tables(2, {"dense": ((12, 10), {}), "other": ((10, 10), {})}, outside=True)
    stored = store_tables(run, folder / "run")
    trained = training_folder(folder / "trained", ranks=True)
    return write_report(stored, folder / "out", training_folders=[trained], columns=["mp_edge"])


class Outline(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: Counter = Counter()
        self.images: list[dict] = []
        self.links: list[str] = []
        self.tags: Counter = Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags[tag] += 1
        if "id" in attributes:
            self.ids[attributes["id"]] += 1
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])


def test_page_is_whole(report):
    text = report.read_text(encoding="utf-8")
    page = Outline(text)
    assert set(page.ids.values()) == {1}
    for link in page.links:
        assert link.removeprefix("#") in page.ids if link.startswith("#") else (report.parent / link).is_file()
    assert len(page.images) > 20
    for image in page.images:
        assert len(image["alt"]) > 15
        assert (report.parent / image["src"]).is_file()
        assert int(image["width"]) > 100
    assert {image["src"] for image in page.images} == {path.name for path in report.parent.glob("*.svg")}
    assert page.tags["figcaption"] == page.tags["figure"] == len(page.images)
    assert "http://" not in text
    assert "https://" not in text
    assert "heat_mp_edge.svg" in text
    assert "Layer by layer" in text


def test_every_figure_has_a_paragraph_on_how_to_read_it(report):
    captions = report.read_text(encoding="utf-8").split("<figcaption>")[1:]
    for caption in captions:
        reading = caption.split("</strong>")[1].split("</figcaption>")[0]
        assert len(reading) > 30, caption


@pytest.mark.slow
def test_the_same_tables_give_the_same_page(tmp_path):
    tables = make_tables(1, {"dense": ((8, 8), {})})
    pages = [write_tables_report(tables, tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_page_drawn_again_forgets_its_old_figures_and_nothing_else(tmp_path):
    def draw(count: int) -> None:
        section = Section("s", "Some")
        with styled():
            for i in range(count):
                figure, _ = panels(1, 1, (2, 1))
                Album(tmp_path).add(section, f"layer_{i:02d}", figure, "alternative", "title", "reading")
        write_page(tmp_path, "t", [section])

    draw(2)
    (tmp_path / "mine.svg").write_text("<svg/>")
    assert (tmp_path / "layer_01.svg").is_file()
    draw(1)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "layer_00.svg", "mine.svg"}


def test_names_cannot_break_out_of_the_page(tmp_path):
    grid = Grid("c", [("<b>", '"tip'), ("n", "")], [["<script>alert(1)</script>", 1.5]])
    page = write_page(tmp_path, "<i>", [Section("s", "&", grid=grid)], {"a": "<x>"}, ["<y>"]).read_text(
        encoding="utf-8"
    )
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<title>&lt;i&gt;</title>" in page
    assert page.count("<script>") == 1


@pytest.mark.parametrize(
    ("value", "text", "key"),
    [
        (None, "", ""),
        (float("nan"), "", ""),
        (3, "3", "3.0"),
        (3.0, "3", "3.0"),
        (-0.00012345, "−0.0001234", "-0.00012345"),
        (float("inf"), "∞", "inf"),
        ("dense", "dense", ""),
        (True, "yes", "1.0"),
    ],
)
def test_cells(value, text, key):
    assert (cell_text(value), sort_key(value)) == (text, key)


def test_warnings_name_what_is_wrong():
    tables = make_tables(1, {"dense": ((8, 8), {}), "other": ((8, 8), {})})
    facts, warnings = run_facts(tables)
    assert facts["matrices"] == "2"
    assert warnings == []
    matrices = tables.matrices.copy()
    matrices.loc[0, "status"] = "nonfinite"
    broken = Tables(matrices, tables.singular_values, tables.histograms, {**tables.manifest, "complete": False})
    unfinished, bad = run_facts(broken)[1]
    assert unfinished.startswith("This run is not complete")
    assert bad.startswith("NaN or infinity in transformer.encoder.layers.0.dense.weight: such a matrix has no spectrum")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path, which is not here")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def opened(browser, report):
    """The report in a fresh page, with everything the console and the network said."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(report.as_uri())
    yield page, said
    page.close()
    assert said == []


def test_browser_shows_every_figure(opened):
    page, _ = opened
    images = page.locator("figure img")
    assert images.count() > 20
    for i in range(images.count()):
        images.nth(i).scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    boxes = page.evaluate(
        "[...document.images].map((i) => { const b = i.getBoundingClientRect();"
        " return [b.width, b.height, getComputedStyle(i).visibility, b.left, b.right]; })"
    )
    for width, height, visibility, left, right in boxes:
        assert width > 250
        assert height > 80
        assert visibility == "visible"
        assert left >= 0
        assert right <= 1280
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_browser_sorts_and_filters_the_table(opened):
    page, _ = opened
    table = page.locator("#summary-table")
    heads = table.locator("thead button").all_inner_texts()
    column = next(i for i, text in enumerate(heads) if text.startswith("stable rank"))

    def numbers() -> list[float]:
        cells = page.locator(f"#summary-table tbody tr > :nth-child({column + 1})").all_inner_texts()
        return [float(text) for text in cells if text]

    before = numbers()
    assert len(before) == 5
    head, button = table.locator("thead th").nth(column), table.locator("thead button").nth(column)
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(before)
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(before, reverse=True)
    assert before != sorted(before)

    page.locator("#summary [data-filter]").fill("DENSE layers.1")
    assert page.locator("#summary-table tbody tr").count() == 1
    assert page.locator("#summary [data-count]").inner_text() == "1 of 5 rows"
    page.locator("#summary [data-filter]").fill("")
    page.locator("#summary [data-facet='1']").select_option("other")
    assert page.locator("#summary-table tbody tr").count() == 2


def test_browser_reaches_everything_by_keyboard(opened):
    page, _ = opened
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    reached: set[str] = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        kind = page.evaluate(
            "(() => { const e = document.activeElement; if (!e || e === document.body) return 'end';"
            " const shown = getComputedStyle(e).outlineStyle !== 'none';"
            " return (shown ? '' : 'unseen ') + (e.dataset.filter !== undefined ? 'filter'"
            " : e.dataset.facet !== undefined ? 'facet' : e.closest('thead') ? 'head' : e.closest('figure') ? 'figure'"
            " : e.closest('nav') ? 'nav' : e.getAttribute('role') === 'region' ? 'region' : 'other'); })()"
        )
        if kind == "end":
            break
        reached.add(kind)
    assert {"filter", "facet", "head", "figure", "nav", "region"} <= reached
    assert not [kind for kind in reached if kind.startswith("unseen")]
    button = page.locator("#summary-table thead button").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#summary-table thead th").first.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert page.locator("#summary-table thead th").first.get_attribute("aria-sort") == "descending"


def test_browser_pages_through_long_tables(browser, tmp_path):
    rows = [[i, f"weight {i % 7}", None if i % 5 == 0 else i / 7] for i in range(2000)]
    section = Section("long", "Long", grid=Grid("2000 rows", [("n", ""), ("name", ""), ("value", "")], rows, [1]))
    page = browser.new_page()
    page.goto(write_page(tmp_path, "Long", [section]).as_uri())
    shown = page.locator("#long-table tbody tr")
    assert shown.count() == 120
    page.get_by_role("button", name="Next rows").click()
    assert shown.first.locator("th").inner_text() == "120"
    assert page.locator("[data-range]").inner_text() == "rows 121 to 240"
    page.get_by_role("button", name="value").click()
    page.get_by_role("button", name="value").click()
    assert shown.first.locator("th").inner_text() == "1999"  # descending, and what is missing stays at the end
    page.locator("[data-filter]").fill("WEIGHT 3")  # both words, anywhere in the row
    found = sum("3" in "".join(cell_text(value) for value in row) for row in rows)
    assert 286 < found < 2000
    assert page.locator("[data-count]").inner_text() == f"{found} of 2000 rows"
    page.locator("[data-filter]").fill("")
    page.locator("[data-facet='1']").select_option("weight 3")
    assert page.locator("[data-count]").inner_text() == "286 of 2000 rows"
    page.close()


def test_browser_without_script_still_shows_the_table(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#summary-table tbody tr").count() == 5
    assert page.locator("#summary-table").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_in_light_and_dark(browser, report, scheme):
    page = browser.new_page(color_scheme=scheme, viewport={"width": 400, "height": 700})
    page.goto(report.as_uri())
    ink, ground, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.paper')).backgroundColor]"
    )
    brightness = [sum(int(part) for part in colour[4:-1].split(",")[:3]) for colour in (ink, ground)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    assert abs(brightness[0] - brightness[1]) > 500
    assert paper == "rgb(255, 255, 255)"  # figures are drawn for white
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


def test_report_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = make_tables(1, {"dense": ((8, 8), {})})
    kept = tables.matrices.columns[: tables.matrices.columns.get_loc("frobenius_norm")]
    of_values = Tables(tables.matrices[kept], tables.singular_values.iloc[:0], tables.histograms)
    for name in ("one", "two"):  # runs of `values` alone: few figures
        store_tables(of_values, tmp_path / "param_matrix" / name)
    trained = training_folder(tmp_path / "trained")
    with pytest.raises(SystemExit) as left:
        main(["report", "--json"])
    assert left.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pages"] == ["reports/one/index.html", "reports/two/index.html"]
    assert "reports/one/histograms.svg" in result["figures"]["reports/one/index.html"]
    for page, figures in result["figures"].items():
        assert Path(page).is_file()
        assert figures
        assert all(Path(figure).is_file() for figure in figures)

    with pytest.raises(SystemExit) as left:
        main(["report", "--training", str(trained), "--out", "curves", "--quiet"])
    assert left.value.code == 0
    assert Path("curves/index.html").is_file()
    assert "curves/index.html (6 figures)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "there is no run under param_matrix/"),
        (["report", "nowhere"], "nowhere is not there: name a folder under param_matrix/"),
        (["report", "empty"], "empty holds no stored run: name a folder under param_matrix/"),
        (["report", "--training", "empty"], "empty holds no trainer_state.json"),
    ],
)
def test_report_command_says_what_is_wrong(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_over_all_reports_links_to_each_and_leaves_others_alone(tmp_path):
    reports = tmp_path / "reports"
    write_tables_report(make_tables(layers=2), reports / "one <run>", title="Spectra of <one>")
    assert write_overview(reports) is None, "one report needs no list"
    write_tables_report(make_tables(layers=2), reports / "two", title="Spectra of two")
    (reports / "theirs").mkdir()
    (reports / "theirs" / "index.html").write_text("<title>not ours</title>")
    page = write_overview(reports)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert '<a href="one%20%3Crun%3E/index.html">Spectra of &lt;one&gt;</a>' in text
    assert '<a href="two/index.html">Spectra of two</a>' in text
    assert "not ours" not in text
    before = page.read_bytes()
    assert write_overview(reports) == page
    assert page.read_bytes() == before
    page.write_text("mine")
    assert write_overview(reports) is None
    assert page.read_text() == "mine"
