"""What is drawn on the terminal by rich: tables, and signs that work goes on.

Apart from `console`, whose sentences need no rich: it takes as long to import as all commands together.
"""

from typing import Any

from rich.console import Console
from rich.text import Text

from glmspectra.cli.console import printable


class PlainConsole(Console):
    """A rich console that shows every text as it is: no markup, no emoji codes, no control characters."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text for a cell, a title or a line."""
        return super().render_str(printable(text), **options)


stderr = PlainConsole(stderr=True)
stdout = PlainConsole()
