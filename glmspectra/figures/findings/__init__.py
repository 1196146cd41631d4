"""What stands out, in sentences computed from the tables: the first thing on every page.

Each rule has a measure, a threshold with its reason, and a sentence in both languages (`finding-<rule>`; the reason is
`rule-<rule>`). `RULES` is the one table of them, `TYPICAL` that of what is said where little stands out;
docs/findings.md shows both.
"""

from glmspectra.figures.findings.evidence import Evidence, Scores
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.figures.findings.rules import (
    LEAST,
    MOST,
    RULES,
    TYPICAL,
    find,
    rules_as_markdown,
    typical,
    typical_as_markdown,
)

__all__ = [
    "LEAST",
    "MOST",
    "RULES",
    "TYPICAL",
    "Evidence",
    "Finding",
    "Rule",
    "Scores",
    "Typical",
    "find",
    "rules_as_markdown",
    "typical",
    "typical_as_markdown",
]
