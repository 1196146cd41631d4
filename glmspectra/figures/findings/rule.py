"""A rule and what it finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glmspectra.language import Words, both

if TYPE_CHECKING:
    from glmspectra.figures.findings.evidence import Evidence


@dataclass(frozen=True)
class Finding:
    """One sentence.

    Attributes:
        rule: The name of the rule.
        words: The sentence.
        value: The number it is about, as it is shown in large.
        size: How far out it is: the value over the rule's threshold, at least 1; findings are ordered by it. 0 for what
            is typical.
        link: The address of its evidence on the page, such as '#L13/dense?map=alpha'.
    """

    rule: str
    words: Words
    value: str
    size: float
    link: str


@dataclass(frozen=True)
class Rule:
    """When something is said.

    Attributes:
        name: Its sentence is `finding-<name>`, the reason of its threshold `rule-<name>` in the catalogue.
        measure: What is looked at, in the words of the tables.
        threshold: From which value on it speaks.
        look: Evidence and threshold -> what was found.
        answer: True where it is the answer to the page's question and stands first.
        of_weights: True where it looks at the weights, which a page on their change has to say.
    """

    name: str
    measure: str
    threshold: float
    look: "Callable[[Evidence, Rule], Iterable[Finding]]"
    answer: bool = False
    of_weights: bool = False

    def says(self, value: str, size: float, link: str, /, *, variant: str = "", **values: object) -> Finding:
        """A finding of this rule; `variant`: the ending of another sentence of the same rule."""
        words = both(f"finding-{self.name}{variant}", **values)
        return Finding(self.name, words, value, size, link)

    @property
    def reason(self) -> Words:
        """Why the threshold is where it is."""
        return both(f"rule-{self.name}")


@dataclass(frozen=True)
class Typical:
    """What is said of the usual, to fill a page on which little stands out.

    Attributes:
        name: Its sentence is `finding-<name>`.
        measure: What is looked at, in the words of the tables.
        look: Evidence -> what there is to say; nothing where the evidence does not have it.
        unless: Rules that say the same of a deviation: it is silent where one of them speaks.
    """

    name: str
    measure: str
    look: "Callable[[Evidence, Typical], Iterable[Finding]]"
    unless: tuple[str, ...] = ()

    def says(self, value: str, link: str, /, *, variant: str = "", **values: object) -> Finding:
        """A finding; `variant`: the ending of another sentence of the same name."""
        return Finding(self.name, both(f"finding-{self.name}{variant}", **values), value, 0.0, link)
