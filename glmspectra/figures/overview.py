"""The page over all reports of a folder: `reports/index.html`, a row for each page beside it, read from the pages."""

import re
from html import unescape
from pathlib import Path

from glmspectra.figures.page import Grid, Link, Section, write_page

_FACT = re.compile(r"<dt>(.*?)</dt><dd>(.*?)</dd>")
_SHOWN = ("matrices", "layers", "method", "measured at")


def write_overview(reports: Path) -> Path | None:
    """Write reports/index.html with a link to every page of a folder in `reports` that was drawn here; its path.

    None, and nothing written, where there are fewer than two, or where an index.html stands there that was not drawn
    here. Raises StoreError when it cannot be written.
    """
    own = reports / "index.html"
    if own.exists() and _page(own) is None:
        return None
    pages = {path: text for path in sorted(reports.glob("*/index.html")) if (text := _page(path)) is not None}
    if len(pages) < 2:
        return None
    heads = [("report", "Opens the page."), ("folder", ""), *((name, "") for name in _SHOWN)]
    rows = []
    for path, text in pages.items():
        told = {unescape(name): unescape(value) for name, value in _FACT.findall(text)}
        title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
        name = unescape(title[1]) if title else path.parent.name
        values = [int(v) if (v := told.get(key, "")).isdigit() else v for key in _SHOWN]
        rows.append([Link(name, f"{path.parent.name}/index.html"), path.parent.name, *values])
    section = Section("reports", "All reports", grid=Grid(f"{len(rows)} reports in this folder.", heads, rows))
    return write_page(reports, "Reports", [section], lead="Every report that was drawn into this folder.")


def _page(path: Path) -> str | None:
    """The text of a page that was drawn here, None for any other file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text if 'name="generator" content="glmspectra' in text else None
