"""The pages: one file each, and right in a browser at every width, in both languages, in the dark and on paper."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from glmspectra.cli.main import main
from glmspectra.figures import Tables, write_overview, write_tables_report
from glmspectra.figures.answers import cards, pieces
from glmspectra.figures.findings import find
from glmspectra.figures.payload import as_json, rounded, sampled
from glmspectra.figures.report import evidence_of, run_facts
from glmspectra.figures.words import number
from tests.figures.made_pages import SAMPLES, SUBJECTS, write_all
from tests.figures.synthetic_run import make_tables, store_tables, training_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
WIDTHS = (390, 768, 1440)
EVERY = (*SUBJECTS, "overview")
OPENED = itertools.count()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path, which is not here")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for all: beginning another takes longer than loading a page."""
    return browser.new_page()


class Opened:
    """A page loaded anew in the tab, with everything that the console and the network said."""

    def __init__(self, tab, path: Path, width: int = 1440, scheme: str = "light", address: str = "?lang=en"):
        self.page = tab
        self.said: list[str] = []
        self.listeners = {
            "console": lambda message: self.said.append(f"{message.type}: {message.text}"),
            "pageerror": lambda error: self.said.append(f"error: {error}"),
            "request": self._request,
        }
        for event, listener in self.listeners.items():
            tab.on(event, listener)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(media="screen", color_scheme=scheme)
        # Where only what follows the # differs the browser would not load the page again.
        tab.goto(f"{path.as_uri()}?opened={next(OPENED)}#{address}")
        tab.wait_for_selector("html[data-ready]")

    def _request(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.said.append(request.url)

    def __enter__(self):
        return self.page

    def __exit__(self, *_):
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)
        assert self.said == []


def draw_all(page) -> None:
    """As before a print and after it, so that every figure is drawn."""
    page.evaluate("for (const one of ['beforeprint', 'afterprint']) window.dispatchEvent(new Event(one))")
    page.wait_for_timeout(100)


# What lies beyond the right edge of the window and in no box that scrolls, by tag and class.
BEYOND = """() => [...document.querySelectorAll('main *, header *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && box.right > window.innerWidth + 1 && !e.closest('.scroll, nav, .hidden') && !e.closest('svg');
}).map((e) => `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`)"""


# Heads of tables that link to no entry of the glossary that says something.
UNEXPLAINED = """() => [...document.querySelectorAll('thead th')].filter((head) => {
  const link = head.querySelector('a[href^="#"]');
  const entry = link && document.getElementById(decodeURIComponent(link.hash.slice(1)));
  return !entry || entry.querySelector('dt').textContent.length < 1 || entry.querySelector('dd').textContent.length < 5;
}).map((head) => head.textContent)"""


@pytest.mark.parametrize("subject", EVERY)
def test_one_file_holds_the_page(pages, subject):
    text = pages[subject].read_text(encoding="utf-8")
    assert [path.name for path in pages[subject].parent.iterdir() if path.is_file()] == ["index.html"]
    assert not re.findall(r'(?:src|href)="https?:', text)
    assert 'class="findings"' in text or subject == "overview"
    summary = json.loads(re.search(r'id="summary">(.*?)</script>', text, re.DOTALL)[1])
    assert summary.get("kind", "overview") == subject


@pytest.mark.parametrize("subject", EVERY)
def test_every_page_in_a_browser(tab, pages, subject):
    look_at(tab, pages[subject], [390], "dark", "zh")


@pytest.mark.slow
@pytest.mark.parametrize("subject", EVERY)
@pytest.mark.parametrize(
    ("scheme", "language", "widths"), [("light", "en", sorted(WIDTHS)), ("dark", "zh", sorted(WIDTHS, reverse=True))]
)
def test_every_width_scheme_and_language(tab, pages, subject, scheme, language, widths):
    """axe-core looks at the widest page in the light and at the narrowest in the dark."""
    look_at(tab, pages[subject], widths, scheme, language, axe=True)


def look_at(tab, path: Path, widths: list[int], scheme: str, language: str, axe: bool = False) -> None:
    """Load the page at the first width and have the window take the others in turn; axe-core looks at the last."""
    from axe_playwright_python.sync_playwright import Axe

    with Opened(tab, path, widths[0], scheme, f"?lang={language}") as page:
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(f"window.innerWidth === {width}")
            check_layout(page, width, scheme, language)
        if axe:
            found = Axe().run(page).response["violations"]
            wrong = [(one["id"], one["impact"], one["nodes"][0]["html"][:120]) for one in found]
            assert [one for one in wrong if one[1] != "minor"] == []


def check_layout(page, width: int, scheme: str, language: str) -> None:
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BEYOND) == []
    assert page.evaluate(UNEXPLAINED) == []
    assert page.evaluate("document.documentElement.lang") == language
    hidden = "zh" if language == "en" else "en"
    assert page.evaluate(f"[...document.querySelectorAll('.{hidden}')].every((e) => e.offsetParent === null)")
    drawings = page.evaluate("[...document.querySelectorAll('figure .drawing')].map((d) => d.childElementCount)")
    assert all(count == 1 for count in drawings)
    chinese = page.evaluate("[...document.querySelectorAll('h2')].map((e) => e.innerText).join('')")
    assert bool(re.search("[\u4e00-\u9fff]", chinese)) == (language == "zh")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", ground)[:3]) < 150) == (scheme == "dark")


def test_numbers_of_the_table_are_sorted_filtered_and_sent_on_in_the_address(tab, pages):
    with Opened(tab, pages["svd"]) as page:
        table = page.locator("#table table.data")
        every = table.locator("tbody tr").count()
        head = table.locator('thead th[data-name="stable_rank"]')

        def column() -> list[float]:
            at = head.evaluate("(e) => e.cellIndex")
            cells = table.locator(f"tbody tr > :nth-child({at + 1})").all_inner_texts()
            return [float(text) for text in cells if text]

        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending", "largest first"
        assert column() == sorted(column(), reverse=True)
        page.locator("#table input[type=search]").fill("stable_rank > 2.5 dense")
        left = table.locator("tbody tr").count()
        assert 0 < left < every
        assert all(value > 2.5 for value in column())
        address = page.evaluate("location.hash")
        assert "sort=stable_rank" in address
        page.locator("#table input[type=search]").fill("no_such_column > 1")
        assert "no_such_column >" in page.locator("#table [role=status]").inner_text()
        first = table.locator("tbody th").first
        page.locator("#table .scroll").evaluate("(e) => { e.scrollLeft = 500; }")
        assert first.bounding_box()["x"] >= page.locator("#table .scroll").bounding_box()["x"]
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as CSV").click()
        assert download.value.path().read_text(encoding="utf-8").startswith("layer,matrix,part,name,")
    with Opened(tab, pages["svd"], address=address.removeprefix("#")) as page:
        assert page.locator("#table input[type=search]").input_value() == "stable_rank > 2.5 dense"
        assert page.locator("#table table.data tbody tr").count() == left


def test_a_matrix_has_an_address_and_opens_by_keyboard(tab, pages):
    with Opened(tab, pages["svd"], address="L3/dense?lang=en&map=effective_rank") as page:
        assert page.locator("#panel h3").first.inner_text() == "Layer 3, dense"
        assert page.locator("#map select").first.input_value() == "effective_rank"
        draw_all(page)
        text = page.locator("#panel").inner_text()
        for words in ("Marchenko-Pastur", "power law", "Error bound", "spectral norm"):
            assert words in text
        cell = page.locator('#map svg [role="button"][tabindex="0"]')
        cell.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Layer 1, dense:")
        page.keyboard.press("Enter")
        assert page.locator("#panel h3").first.inner_text() == "Layer 1, dense"
        assert page.evaluate("location.hash").startswith("#L1/dense")
        page.get_by_role("button", name="Next layer").click()
        assert page.locator("#panel h3").first.inner_text() == "Layer 2, dense"


def test_hover_legend_scale_and_saving(tab, pages):
    with Opened(tab, pages["training"]) as page:
        draw_all(page)
        drawing = page.locator("#training .drawing").nth(1)
        before = drawing.locator("path").count()
        drawing.hover(position={"x": 200, "y": 120})
        page.wait_for_timeout(150)
        assert re.search(r"step \d+", drawing.text_content()), "the tip tells step and value"
        page.locator("#training .legend button").first.click()
        assert page.locator("#training .legend button").first.get_attribute("aria-pressed") == "false"
        assert drawing.locator("path").count() < before
        with page.expect_download() as download:
            page.locator("#training figure button").first.click()
        saved = download.value.path().read_text(encoding="utf-8")
        assert saved.startswith("<svg")
        assert "var(" not in saved


def luminance(color: str) -> float:
    """Relative luminance of '#rrggbb' (WCAG 2.2)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_of_all_layers_keep_a_contrast_of_3_to_the_ground(tab, pages, scheme):
    with Opened(tab, pages["svd"], scheme=scheme) as page:
        style = "getComputedStyle(document.documentElement)"
        names = ["--ground", *(f"--s{i}" for i in range(7)), *(f"--d{i}" for i in range(10))]
        ground, *lines = page.evaluate(f"{json.dumps(names)}.map((name) => {style}.getPropertyValue(name).trim())")
        for line in lines:
            low, high = sorted((luminance(ground), luminance(line)))
            assert (high + 0.05) / (low + 0.05) >= 2.95, line
        draw_all(page)
        with page.expect_download() as download:
            page.locator("#spectra figure button").first.click()
        saved = download.value.path().read_text(encoding="utf-8")
        assert "#002051" in saved, "a figure is saved with the colors of the light page"


def test_the_language_switches_on_the_page(tab, pages):
    with Opened(tab, pages["svd"]) as page:
        assert page.locator("h1").inner_text() == "Spectra of made"
        page.get_by_role("button", name="中文").click()
        assert page.locator("h1").inner_text() == "made 的奇异值谱"
        assert page.title() == "made 的奇异值谱"
        assert "稳定秩" in page.locator("#map").inner_text()


@pytest.mark.parametrize("subject", ["svd", "loop", "ranks"])
def test_paper_has_every_row_within_its_width(tab, pages, subject):
    with Opened(tab, pages[subject]) as page:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 703, "height": 1000})  # A4 at 96 dots an inch less 12 mm on each side
        draw_all(page)
        rows = page.evaluate("JSON.parse(document.getElementById('data').textContent).sets[0].rows.layer.length")
        assert page.locator("#table tbody tr").count() == rows
        assert page.evaluate("document.documentElement.scrollWidth") <= 703
        for table in page.locator("main table").all():
            box = table.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 704, "a column beyond the edge of the sheet"


def test_figures_are_drawn_for_the_width_of_a_sheet_and_back(tab, pages):
    """Scaled down from the screen's width, their words could not be read."""
    with Opened(tab, pages["svd"]) as page:
        draw_all(page)
        wide = page.evaluate("document.querySelector('#map svg').clientWidth")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.querySelector('#map svg').viewBox.baseVal.width") <= 703
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("document.querySelector('#map svg').viewBox.baseVal.width") == wide > 1000


def test_a_head_leads_to_its_entry_in_the_glossary(tab, pages):
    with Opened(tab, pages["ranks"]) as page:
        page.locator("#table .tools input[type=checkbox]").check()
        assert page.evaluate(UNEXPLAINED) == []
        page.locator('#table thead th[data-name="difference"] a').click()
        assert page.locator(".glossary div:target dd").inner_text().startswith("Above 0: more directions")
        page.get_by_role("button", name="中文").click()
        assert "大于 0" in page.locator(".glossary div:target dd").inner_text()


def test_findings_are_there_without_scripts(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["loop"].as_uri())
    assert page.locator(".findings li").first.is_visible()
    assert page.locator(".card").count() == 2
    context.close()


def test_cards_show_the_question_once_and_mark_what_differs():
    answers, asked = cards(SAMPLES)
    assert asked == "下面是一个关于身体的问题，认真回答。"
    assert [answer.question for answer in answers] == ["感冒了怎么办？", "头疼怎么办？"]
    results = {one.model: one for one in answers[0].given}
    assert list(results) == ["base", "uniform", "tuned"]
    assert "".join(text for text, differs in results["uniform"].pieces if differs) == "保暖"
    assert results["tuned"].agreement == 1.0
    assert results["base"].pieces == [(SAMPLES[0]["base"], False)]
    assert pieces("", "") == ([], 1.0)


def test_the_same_tables_give_the_same_page(tmp_path):
    tables = make_tables(2, {"dense": ((8, 8), {})})
    one, two = (write_tables_report(tables, tmp_path / name).read_bytes() for name in ("a", "b"))
    assert one == two


def test_names_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    tables = make_tables(2, {evil: ((8, 8), {}), "b": ((8, 8), {})})
    named = Tables(tables.matrices, tables.singular_values, tables.histograms, {"checkpoint": {"name": "<i>"}})
    text = write_tables_report(named, tmp_path).read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text
    assert "<h1><span" in text
    assert "Spectra of &lt;i&gt;" in text


def test_svg_files_of_an_earlier_version_go_and_nothing_else(tmp_path):
    (tmp_path / "index.html").write_text('<meta name="generator" content="glmspectra 0.1.0"><img src="ranks.svg">')
    for name in ("ranks.svg", "mine.svg"):
        (tmp_path / name).write_text("<svg/>")
    write_tables_report(make_tables(2, {"dense": ((8, 8), {})}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "mine.svg"}


def test_what_is_drawn_of_a_spectrum_is_measured_and_holds_both_ends():
    for count in (1, 5, 72, 73, 4096):
        at = sampled(count)
        assert at[0] == 0
        assert at[-1] == count - 1
        assert len(at) <= 72
        assert (at[1:] > at[:-1]).all()
    assert rounded(float("nan")) is None
    assert rounded(123456.7) == 123460
    assert "</" not in as_json({"a": "</script>"})


def test_numbers_in_sentences():
    said = {0.000123456: "0.000123", 3.0: "3", -2.5: "−2.5", 1234.5: "1,234", float("inf"): "∞"}
    assert {value: number(value) for value in said} == said


def test_warnings_name_what_is_wrong():
    tables = make_tables(1, {"dense": ((8, 8), {}), "other": ((8, 8), {})})
    facts, warnings = run_facts(tables)
    assert {words.en: value for words, value in facts}["matrices"] == "2"
    assert warnings == []
    matrices = tables.matrices.copy()
    matrices.loc[0, "status"] = "nonfinite"
    broken = Tables(matrices, tables.singular_values, tables.histograms, {**tables.manifest, "complete": False})
    unfinished, bad = run_facts(broken)[1]
    assert unfinished.en.startswith("This run is not complete")
    assert bad.en.startswith(
        "NaN, infinity or numbers beyond float32 in transformer.encoder.layers.0.dense.weight: such a matrix has no"
    )
    assert find(evidence_of(broken))[0].rule == "nonfinite"


def test_report_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = make_tables(2, {"dense": ((8, 8), {})})
    kept = tables.matrices.columns[: tables.matrices.columns.get_loc("frobenius_norm")]
    of_values = Tables(tables.matrices[kept], tables.singular_values.iloc[:0], tables.histograms)
    for name in ("one", "two"):  # runs of `values` alone: few figures
        store_tables(of_values, tmp_path / "param_matrix" / name)
    trained = training_folder(tmp_path / "trained")

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["report", *arguments])
        assert left.value.code == 0
        return capsys.readouterr().out

    result = json.loads(run("--json"))
    assert result["pages"] == ["reports/one/index.html", "reports/two/index.html"]
    assert result["overview"] == "reports/index.html"
    assert result["figures"] == {page: [] for page in result["pages"]}
    assert all(Path(page).is_file() for page in result["pages"])

    result = json.loads(run("param_matrix/one", "param_matrix/two", "--json"))
    assert result["pages"][-1] == "reports/compare/index.html"

    result = json.loads(run("param_matrix/one", "--svg", "--json"))
    assert "reports/one/histograms.svg" in result["figures"]["reports/one/index.html"]

    assert json.loads(run("param_matrix/one", "--out", "reports/mine", "--json"))["overview"].endswith("index.html")
    assert 'href="mine/index.html' in Path("reports/index.html").read_text(encoding="utf-8"), "a page there is listed"

    said = run("--training", str(trained), "--out", "curves", "--quiet", "--svg", "--lang", "zh")
    assert "curves/index.html（另有 6 个 SVG 文件）" in said


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


def test_the_overview_lists_results_and_leaves_others_alone(pages, tmp_path):
    text = pages["overview"].read_text(encoding="utf-8")
    for subject in SUBJECTS:
        assert f'href="{subject}/index.html"' in text
    assert "Nothing stands out" in text or "nats a token" in text
    reports = tmp_path / "reports"
    assert write_overview(reports) is None
    write_tables_report(make_tables(layers=2), reports / "one")
    (reports / "theirs").mkdir()
    (reports / "theirs" / "index.html").write_text("<title>not ours</title>")
    page = write_overview(reports)
    assert "theirs" not in page.read_text(encoding="utf-8")
    page.write_text("mine")
    assert write_overview(reports) is None
    assert page.read_text() == "mine"
    assert 'href="../index.html"' in (reports / "one" / "index.html").read_text(encoding="utf-8")


def test_a_page_needs_no_matplotlib():
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from tests.figures.synthetic_run import make_tables;"
        "from glmspectra.figures import write_tables_report; import tempfile;"
        "write_tables_report(make_tables(2), Path(tempfile.mkdtemp()));"
        "print([name for name in ('matplotlib', 'seaborn', 'torch', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
