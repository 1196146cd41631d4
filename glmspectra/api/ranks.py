"""A rank for every matrix under one budget, from the tables of a run and of what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from glmspectra.json_files import write_json
from glmspectra.ranks import Suggestion, ranks_file
from glmspectra.ranks.report import lines
from glmspectra.ranks.request import RankRequest
from glmspectra.ranks.request import suggest_ranks as suggest
from glmspectra.store import Run

__all__ = ["SuggestedRanks", "suggest_ranks"]


@dataclass(frozen=True)
class SuggestedRanks:
    """Ranks under one budget.

    Attributes:
        table: One row a matrix: checkpoint, name, layer, matrix, rows, cols, rank, and uniform, the rank it would have
            were all equal at the same cost.
        criterion: What the ranks were chosen by.
        parameters: Trainable parameters that they come to.
        lines: What `glmspectra suggest-rank` says of them.
    """

    table: pd.DataFrame
    criterion: str
    parameters: int
    lines: list[str] = field(repr=False)
    _suggestion: Suggestion = field(repr=False)
    _request: RankRequest = field(repr=False)

    def write(self, path: str | Path) -> Path:
        """Write the file that `train(ranks=...)` takes; returns its path. Raises RequestError when all ranks are 0."""
        return write_json(Path(path), ranks_file(self._suggestion, self._request.scale, self._request.rslora))

    def _repr_html_(self) -> str:
        """The table and the first line, for Jupyter."""
        return f"<p>{self.lines[0] if self.lines else ''}</p>{self.table.to_html(index=False)}"


def suggest_ranks(
    base: Run | None, deltas: Run | Sequence[Run] = (), *, budget: str | None = None, **request: Any
) -> SuggestedRanks:
    """Ranks as `glmspectra suggest-rank` gives them.

    Args:
        base: The run of the base model (`svd`); None where the deltas were measured against it.
        deltas: Runs of what trainings changed (`delta`); several pilots are averaged.
        budget: "like:r=12", "params:8M", "bytes:32MiB" or "share:0.1%"; None: as the command.
        **request: Of `RankRequest`: criterion, targets, limits, step, scale, rslora.

    Raises:
        RequestError: The tables cannot answer what is asked.
    """
    asked = RankRequest(budget=budget, **request)
    found = suggest(base, [deltas] if isinstance(deltas, Run) else list(deltas), asked)
    chosen, uniform = found.chosen, found.allocations.get("uniform")
    rows = [
        {
            "checkpoint": found.evidence.base_name,
            "name": target.name,
            "layer": target.layer,
            "matrix": target.matrix,
            "rows": target.rows,
            "cols": target.cols,
            "rank": chosen.ranks[target.name],
            "uniform": uniform.ranks[target.name] if uniform else None,
        }
        for target in chosen.targets
    ]
    return SuggestedRanks(pd.DataFrame(rows), found.criterion, chosen.parameters, lines(found), found, asked)
