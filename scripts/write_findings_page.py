"""Write docs/findings.md: the table of the rules behind "What stands out"."""

from pathlib import Path

from glmspectra.figures.findings import rules_as_markdown

HEAD = """# What stands out: the rules

Every page begins with up to six sentences that are computed from the tables. Each comes from one of the rules below: a
measure, the value from which on it speaks, and why there. `tests/figures/test_findings.py` holds for each rule a made
matrix, log or comparison that fires it (`MADE`), and that all of them are silent on noise. This page is written by
`python scripts/write_findings_page.py` from `glmspectra/figures/findings/rules.py` and the catalogue.

"""

if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "findings.md"
    page.write_text(HEAD + rules_as_markdown(), encoding="utf-8")
