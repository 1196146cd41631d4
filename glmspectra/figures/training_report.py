"""The page of training runs, and the curves of one alone."""

from collections.abc import Sequence
from pathlib import Path

from glmspectra.errors import RequestError
from glmspectra.figures.answers import cards
from glmspectra.figures.findings import Evidence, find
from glmspectra.figures.report import draw_svg, payload_of, runs_grid, summary_of
from glmspectra.figures.training_log import read_runs, read_samples
from glmspectra.figures.writing import Page, write_page
from glmspectra.language import both


def write_training_report(
    folders: Sequence[Path], out: Path, names: Sequence[str] | None = None, svg: bool = False
) -> Path:
    """The page of one or several training runs on the same axes; returns its index.html.

    Raises:
        RequestError: A folder holds no trainer_state.json, or none was named.
        StoreError: A file cannot be read, or the folder cannot be written.
    """
    if not folders:
        raise RequestError("no training folder was named: give one that holds a trainer_state.json.")
    runs = read_runs(folders, names)
    evidence = Evidence(training=runs)
    name = runs[0].name
    title = both("page-title-training", name=name) if len(runs) == 1 else both("page-title-trainings", count=len(runs))
    findings = find(evidence)
    answers, asked = cards(read_samples(runs[0])) if len(runs) == 1 else ([], "")
    page = Page(
        "training",
        title,
        both("page-lead-training"),
        findings=findings,
        payload=payload_of(evidence),
        runs=runs_grid(runs),
        answers=answers,
        asked=asked,
        summary=summary_of("training", ", ".join(run.name for run in runs), evidence, findings),
    )
    path = write_page(Path(out), page)
    if svg:
        draw_svg(evidence, Path(out))
    return path


def write_training_curves(folder: Path, out: Path | None = None, name: str | None = None) -> list[Path]:
    """Only the SVG curves of one run, into `out` (default: the folder's curves/). Raises as `write_training_report`."""
    from glmspectra.figures.svg.files import save_all, training_figures

    run = read_runs([Path(folder)], [name] if name else None)[0]
    return save_all(training_figures([run]), Path(out) if out is not None else Path(folder) / "curves")
