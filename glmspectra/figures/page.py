"""The page that binds figures: sections, a paragraph under each figure, and tables that sort and filter.

One HTML file with its style and script inside, and SVG files beside it, linked by relative names: it opens from disk.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from glmspectra import __version__
from glmspectra.figures.readings import READINGS, Reading
from glmspectra.figures.style import save_svg
from glmspectra.files import write_text

PIXELS = 96  # of a browser, for an inch


@dataclass(frozen=True)
class Drawing:
    """One figure on a page. file: its name beside the page. reading: the paragraph that says how to read it.
    alt: what someone who does not see it is told. width, height: inches. short: its name in a list of many."""

    file: str
    title: str
    reading: str
    alt: str
    width: float
    height: float
    short: str = ""

    @property
    def id(self) -> str:
        return "figure-" + self.file.removesuffix(".svg")

    @property
    def pixels(self) -> tuple[int, int]:
        return round(self.width * PIXELS), round(self.height * PIXELS)

    @property
    def half(self) -> bool:
        """Narrow figures stand two in a row where the window is wide."""
        return self.width < 6.2


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads to another page, by a relative name."""

    words: str
    href: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Grid:
    """A table for a page. heads: (words, tooltip) of each column; rows: values, numbers as numbers.
    facets: columns a reader may filter by choosing a value; row_head: the column that names a row."""

    caption: str
    heads: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]
    facets: Sequence[int] = ()
    row_head: int = 0

    def numeric(self, column: int) -> bool:
        """True when a column holds numbers only, as far as it holds anything; its head is then set to the right."""
        held = [row[column] for row in self.rows if cell_text(row[column])]
        return bool(held) and all(sort_key(value) for value in held)


@dataclass
class Section:
    """A heading, paragraphs, figures and a table. notes: what was not drawn, and why. jump: many figures of one kind,
    with links to each above them instead of in the contents."""

    id: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    grid: Grid | None = None
    notes: list[str] = field(default_factory=list)
    jump: bool = False


@dataclass
class Album:
    """Saves figures into one folder and remembers what a page needs to know of them."""

    folder: Path

    def add(
        self,
        section: Section,
        name: str,
        figure: Figure | None,
        alt: str,
        title: str = "",
        reading: str = "",
        short: str = "",
        note: str = "",
    ) -> None:
        """Save `figure` as name.svg and hang it in `section`; None becomes a note that it was not measured.

        title, reading, short: the words of `readings` for this name, where they are not given. note: a sentence on this
        very figure, after them.
        """
        words = READINGS.get(name, Reading(title, reading))
        title, reading, short = title or words.title, reading or words.text, short or words.short
        reading = f"{reading} {note.strip()}" if note else reading
        if figure is None:
            section.notes.append(f"{title}: not drawn, this run did not measure it.")
            return
        save_svg(figure, self.folder / f"{name}.svg", title, alt)
        width, height = figure.get_size_inches()
        section.drawings.append(Drawing(f"{name}.svg", title, reading, alt, float(width), float(height), short))


def cell_text(value: Any) -> str:
    """A value as a table shows it: four digits of a number, nothing for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(int(value)).replace("-", "\N{MINUS SIGN}")
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isinf(number):
            return "∞" if number > 0 else "\N{MINUS SIGN}∞"
        text = str(int(number)) if number == int(number) and abs(number) < 1e6 else f"{number:.4g}"
        return text.replace("-", "\N{MINUS SIGN}")
    return str(value)


def sort_key(value: Any) -> str:
    """The number a cell sorts by, as text; empty for words and for what is missing."""
    if isinstance(value, bool | np.bool_ | int | np.integer | float | np.floating) and not (
        isinstance(value, float | np.floating) and math.isnan(value)
    ):
        return repr(float(value))
    return ""


def is_prose(value: Any) -> bool:
    """True for text too long for one line of a table, an answer of a model for example."""
    return isinstance(value, str) and (len(value) > 90 or "\n" in value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("glmspectra.figures"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_text
    environment.filters["key"] = sort_key
    environment.tests["prose"] = is_prose
    environment.tests["link"] = lambda value: isinstance(value, Link)
    # The page's own style and script, not a reader's data: they go in unescaped.
    source = environment.loader.get_source if environment.loader else None
    assert source is not None
    environment.globals["style"] = Markup(source(environment, "report.css")[0])
    environment.globals["script"] = Markup(source(environment, "report.js")[0])
    return environment


def write_page(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    lead: str = "",
) -> Path:
    """Write folder/index.html and return its path.

    facts: a few words and values under the title. warnings: what a reader must know before looking. lead: a paragraph
    that opens the page. Figures of an earlier page that this one no longer shows are removed; nothing else is touched.

    Raises StoreError when the folder cannot be written.
    """
    sections = [
        section for section in sections if section.drawings or section.grid or section.paragraphs or section.notes
    ]
    text = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            lead=lead,
            facts=facts or {},
            warnings=warnings,
            sections=sections,
            version=__version__,
        )
    )
    path = folder / "index.html"
    before = figures_of(path)
    write_text(path, text)
    for name in before - {drawing.file for section in sections for drawing in section.drawings}:
        (folder / name).unlink(missing_ok=True)
    return path


def figures_of(page: Path) -> set[str]:
    """Names of the SVG files that a page written here shows; none when there is no such page."""
    if not page.is_file():
        return set()
    text = page.read_text(encoding="utf-8", errors="replace")
    if 'name="generator" content="glmspectra' not in text:
        return set()
    return set(re.findall(r'<img src="([A-Za-z0-9_.-]+\.svg)"', text))
