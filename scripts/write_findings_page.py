"""Write docs/findings.md: the tables of the rules behind "What stands out"."""

from pathlib import Path

from glmspectra.figures.findings import rules_as_markdown, typical_as_markdown

HEAD = """# What stands out: the rules

Every page begins with three to six sentences that are computed from the tables. First come those of the rules below: a
measure, the value from which on it speaks, and why there. `tests/figures/test_findings.py` holds for each rule a made
matrix, log or comparison that fires it (`MADE`), and that all of them are silent on noise. This page is written by
`python scripts/write_findings_page.py` from `glmspectra/figures/findings/rules.py` and the catalogue.

"""

TYPICAL = """
## What is typical

Where the rules find fewer than three deviations, sentences on the usual follow, in this order, up to three in all. They
have no threshold and speak of noise too; `tests/figures/test_typical.py` holds their numbers against numpy. One is left
out where a rule says the same of a deviation. Fewer than three sentences stand where there is too little to say: on the
page of a single matrix, of a training log that is empty or has nothing but its losses, and of runs compared whose
matrices have no measure in common.

"""

if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "findings.md"
    page.write_text(HEAD + rules_as_markdown() + TYPICAL + typical_as_markdown(), encoding="utf-8")
