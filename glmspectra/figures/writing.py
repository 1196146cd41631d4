"""One page, one file: findings and words as HTML in both languages, data as JSON, styles, scripts and libraries inside.

The assets lie in `page/`: a template, a style sheet, scripts that are put one after the other, and two libraries.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from glmspectra import __version__
from glmspectra.figures.answers import Answer
from glmspectra.figures.findings import Finding
from glmspectra.figures.payload import Json, as_json
from glmspectra.figures.standing import GENERATOR, written_here
from glmspectra.files import write_text
from glmspectra.language import Words, both, plain_messages
from glmspectra.language.catalogue import chosen, current

ASSETS = Path(__file__).parent / "page"
REPORTS = "reports"
LIBRARIES = ("d3.min.js", "plot.umd.min.js")
# In the order in which they need one another.
SCRIPTS = (
    "core",
    "figure",
    "map",
    "panel",
    "depth",
    "spectra",
    "changes",
    "ranks",
    "training",
    "compare",
    "table",
    "start",
)
TERMS = (
    "singular-value", "spectrum", "stable-rank", "effective-rank", "spectral-norm", "marchenko-pastur", "power-law",
    "delta", "intruder", "lora-rank", "loss", "layer", "matrix", "criterion",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell of a small table: words or a number as text, perhaps a link, perhaps a line of values to draw."""

    words: Words
    link: str = ""
    line: Sequence[float] = ()
    number: bool = False


@dataclass(frozen=True)
class Grid:
    """A small table that stands in the page as it is.

    heads: each column by its name in the catalogue: `page-head-<name>`, what it means `page-head-<name>-means`.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: Words


@dataclass
class Page:
    """What a page says and shows.

    Attributes:
        subject: svd, values, delta, ranks, training, evaluate, loop, compare or overview.
        title, lead: Its heading and a paragraph under it.
        facts: A few words and values under the title.
        warnings: What a reader must know before looking.
        findings: See `figures.findings`.
        payload: What the script draws from (`figures.payload`).
        outcome: The table of losses of a loop or an evaluation.
        runs: The table of training runs.
        reports: The table of an overview.
        answers: Answers as cards; asked: what all questions begin with.
        files: Where everything lies, a sentence each.
        summary: What an overview lists of this page.
    """

    subject: str
    title: Words
    lead: Words
    facts: Sequence[tuple[Words, str | Words]] = ()
    warnings: Sequence[Words] = ()
    findings: Sequence[Finding] = ()
    payload: Json = field(default_factory=dict)
    outcome: Grid | None = None
    runs: Grid | None = None
    reports: Grid | None = None
    answers: Sequence[Answer] = ()
    asked: str = ""
    files: Sequence[Words] = ()
    summary: Json = field(default_factory=dict)

    @property
    def heads(self) -> list[str]:
        """Columns of its small tables, each once; the glossary explains them."""
        grids = (grid for grid in (self.outcome, self.runs, self.reports) if grid is not None)
        return list(dict.fromkeys(head for grid in grids for head in grid.heads))


def in_both(words: Words) -> Markup:
    """Both languages as elements, of which the style sheet shows one; no line breaks before a %."""
    english, chinese = (sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in (words.en, words.zh))
    if english == chinese:
        return escape(english)
    template = Markup('<span class="en" lang="en">{}</span><span class="zh" lang="zh">{}</span>')
    return template.format(english, chinese)


def attribute(name: str, words: Words) -> Markup:
    """An attribute in the page's language, and what it is in both for the script to switch."""
    shown = words.shown
    return Markup(' {0}="{1}" data-{0}-en="{2}" data-{0}-zh="{3}"').format(name, shown, words.en, words.zh)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        both=both, in_both=in_both, attribute=attribute, version=__version__, terms=TERMS, generator=GENERATOR
    )
    return environment


def _asset(*parts: str) -> Markup:
    return Markup(ASSETS.joinpath(*parts).read_text(encoding="utf-8"))


def write_page(folder: Path, page: Page) -> Path:
    """Write folder/index.html, whole or not at all, and return its path.

    The language it opens in is the chosen one; under 'auto' that of the reader's browser. SVG files of an earlier
    version's page, which stood beside it, are removed; nothing else is touched.

    Raises:
        StoreError: The folder cannot be written.
    """
    data = {**page.payload, "kind": page.subject, "words": plain_messages("ui"), "opens": chosen()}
    text = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            page=page,
            home=folder.resolve().parent.name == REPORTS,  # there an overview lies beside the pages' folders
            language=current(),
            style=_asset("page.css"),
            libraries=[_asset("vendor", name) for name in LIBRARIES] if page.payload else [],
            scripts=[_asset(f"{name}.js") for name in SCRIPTS],
            data=Markup(as_json(data)),
            summary=Markup(as_json(page.summary)),
        )
    )
    path = folder / "index.html"
    _remove_earlier_figures(path)
    write_text(path, text)
    return path


def _remove_earlier_figures(page: Path) -> None:
    """Remove the SVG files that a page of version 0.1 showed as images, where one of its pages stands here."""
    if page.is_file() and (earlier := written_here(page)) is not None:
        for name in set(re.findall(r'<img src="([A-Za-z0-9_.-]+\.svg)"', earlier)):
            page.with_name(name).unlink(missing_ok=True)


def plain(value: str, *, number: bool = False, link: str = "") -> Cell:
    """A cell of a name or of a number that is already text."""
    return Cell(Words.same(value), link=link, number=number)
