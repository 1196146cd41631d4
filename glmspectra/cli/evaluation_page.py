"""The page of an evaluation: losses without and with the adapter, and answers as cards."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmspectra.tuning.inference.evaluation import Evaluation


def write_evaluation_page(result: "Evaluation", out: Path) -> Path:
    """index.html in `out`; returns its path. Raises StoreError when it cannot be written."""
    from glmspectra.figures import Outcome, write_evaluation, write_overview_beside
    from glmspectra.figures.findings import Scores

    losses = {name: values for name, values in (("base", result.base), ("tuned", result.tuned)) if values is not None}
    differences = {"tuned-base": result.difference} if result.difference else {}
    scores = Scores(losses, differences, result.samples, result.rows)
    page = write_evaluation(out, result.model, result.adapter, Outcome(scores, {}))
    write_overview_beside(out)
    return page
