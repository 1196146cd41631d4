"""What stands out, in sentences computed from the tables: the first thing on every page.

Each rule has a measure, a threshold with its reason, and a sentence in both languages (`finding-<rule>`; the reason is
`rule-<rule>`). `RULES` is the one table of them; docs/findings.md shows it.
"""

from glmspectra.figures.findings.evidence import Evidence, Scores
from glmspectra.figures.findings.rule import Finding, Rule
from glmspectra.figures.findings.rules import MOST, RULES, find, rules_as_markdown

__all__ = ["MOST", "RULES", "Evidence", "Finding", "Rule", "Scores", "find", "rules_as_markdown"]
