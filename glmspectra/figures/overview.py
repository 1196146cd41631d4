"""The page over all reports of a folder: `reports/index.html`, a row for each page beside it with its results."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmspectra.errors import StoreError
from glmspectra.figures.standing import written_here
from glmspectra.figures.words import number
from glmspectra.figures.writing import REPORTS, Cell, Grid, Page, plain, write_page
from glmspectra.json_files import parse_json
from glmspectra.language import Words, both

_SUMMARY = re.compile(r'<script type="application/json" id="summary">(.*?)</script>', re.DOTALL)
_SUBJECTS = ("svd", "values", "delta", "ranks", "training", "evaluate", "loop", "compare")
_NUMBERS = ("loss", "gain", "mean_rank", "effective_rank")  # a column each where any page has one
_ORDER = {"loop": 0, "compare": 1}  # what brings others together stands first


def write_overview_beside(page: Path) -> Path | None:
    """The overview of the folder `reports` that a page's folder lies in; None, and nothing written, elsewhere."""
    reports = page.resolve().parent
    return write_overview(reports) if reports.name == REPORTS else None


def write_overview(reports: Path) -> Path | None:
    """Write reports/index.html with a row for every page of a folder in `reports` that was written here; its path.

    None, and nothing written, where there is none, or where an index.html stands there that was not written here.
    Raises StoreError when it cannot be written.
    """
    own = reports / "index.html"
    if own.exists() and written_here(own) is None:
        return None
    found = []
    for path in sorted(reports.glob("*/index.html")):
        text = written_here(path)
        if text is not None:
            found.append((path.parent.name, _summary_of(text)))
    if not found:
        return None
    found.sort(key=lambda pair: (_ORDER.get(pair[1].get("kind", ""), 2), pair[0]))
    numbers = [name for name in _NUMBERS if any(summary.get(name) is not None for _, summary in found)]
    heads = ("report", "about", "finding", *(name.replace("_", "-") for name in numbers), "curve")
    grid = Grid(
        heads,
        [_row(folder, summary, numbers) for folder, summary in found],
        both("page-overview-caption", count=len(found)),
    )
    page = Page("overview", both("page-title-overview"), both("page-lead-overview"), reports=grid)
    return write_page(reports, page)


def _summary_of(text: str) -> dict[str, Any]:
    """The summary that a page holds; empty for a page of an earlier version."""
    match = _SUMMARY.search(text)
    try:
        summary = parse_json(match[1], "a page", StoreError) if match else {}
    except StoreError:
        return {}
    return summary if isinstance(summary, dict) else {}


def _row(folder: str, summary: dict[str, Any], numbers: Sequence[str]) -> list[Cell]:
    subject = summary.get("kind")
    finding = summary.get("finding") or ("", "")
    row = [Cell(Words.same(str(summary.get("name") or folder)), link=f"{folder}/index.html")]
    row.append(Cell(both(f"page-about-{subject}") if subject in _SUBJECTS else Words.same("")))
    row.append(Cell(Words(str(finding[0]), str(finding[1]))))
    for name in numbers:
        row.append(plain(number(summary[name], 4) if summary.get(name) is not None else "", number=True))
    line = [value for value in summary.get("line") or () if isinstance(value, int | float)]
    row.append(Cell(Words.same(""), line=line))
    return row
