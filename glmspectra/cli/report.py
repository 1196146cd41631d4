"""`glmspectra report`: pages made again from the stored tables and from training folders."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmspectra.cli.options import Json, Quiet
from glmspectra.cli.selection_options import SvgFiles

if TYPE_CHECKING:
    from rich.status import Status

RUNS = Path("param_matrix")
COMPARED = "compare"  # the folder of the page that compares runs


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of stored runs; of several a page that compares them too. Absent: every run under "
            "param_matrix/, unless --training is given.",
            show_default=False,
        ),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            "--training",
            metavar="<path>",
            help="A training folder, a checkpoint-N or a trainer_state.json of any year; may be given several times, "
            "then all runs share their axes. With one stored run the curves join its page, else they get their own.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="<name>",
            help="A further column of matrices.parquet to draw a heat map of among the SVG files; implies --svg. "
            "The page's map has all columns.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where pages go: reports/<run>, or one folder for each run in it.", show_default=False
        ),
    ] = None,
    svg: SvgFiles = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pages from what is in param_matrix/ and the training folders; no weights are needed.

    Two runs or more named on the line are also put side by side on a page of their own.
    """
    from glmspectra import figures
    from glmspectra.cli.console import finish
    from glmspectra.cli.drawing import stderr
    from glmspectra.cli.measuring import note_language_of_figures
    from glmspectra.figures.report import REPORTS
    from glmspectra.language import text

    named, training = list(runs or []), list(training or [])
    folders = _folders(named, training)
    names = _names(folders)
    target = out or REPORTS
    alone = out is not None and len(folders) == 1
    joined = training if len(folders) == 1 else []
    pages: list[Path] = []
    with stderr.status(text("terminal-drawing"), spinner="dots") as status:
        if quiet:
            status.stop()
        for name, folder in zip(names, folders, strict=True):
            page = figures.write_report(
                folder,
                out if out is not None and alone else target / name,
                training_folders=joined,
                columns=column or [],
                svg=svg or bool(column),
                progress=(lambda _: None) if quiet else partial(_show, status, name),
            )
            pages.append(page)
        if len(named) > 1:
            pages.append(figures.write_comparison(folders, target / COMPARED))
        if training and not joined:
            folder = out if out is not None and not folders else target / "training"
            pages.append(figures.write_training_report(training, folder, svg=svg))
    if svg or column:
        note_language_of_figures(quiet)
    overview = figures.write_overview_beside(out) if out and len(folders) < 2 else figures.write_overview(target)
    drawn = {str(page): sorted(str(path) for path in page.parent.glob("*.svg")) for page in pages}
    finish(
        {"pages": [str(page) for page in pages], "overview": str(overview) if overview else None, "figures": drawn},
        [_line(page, drawn[str(page)]) for page in pages]
        + ([text("terminal-overview", path=str(overview))] if overview else []),
        as_json,
    )


def _folders(named: list[Path], training: list[Path]) -> list[Path]:
    """The folders of stored runs to draw. Raises RequestError where one is not there or holds none."""
    from glmspectra.errors import RequestError

    folders = named
    if not named and not training:
        folders = sorted(path.parent for path in RUNS.glob("*/manifest.json"))
        if not folders:
            raise RequestError(
                f"there is no run under {RUNS}/: measure one first with `glmspectra svd`, name a run's folder, "
                "or name a training folder with --training."
            )
    missing = [folder for folder in [*folders, *training] if not folder.exists()]
    if missing:
        raise RequestError(f"{missing[0]} is not there: name a folder under {RUNS}/ or a training folder.")
    for folder in folders:
        if not (folder / "manifest.json").is_file():
            raise RequestError(
                f"{folder} holds no stored run: name a folder under {RUNS}/, and training folders with --training."
            )
    return folders


def _names(folders: list[Path]) -> list[str]:
    """The name of each run's page. Raises RequestError where two have the same."""
    from glmspectra.errors import RequestError

    names = [folder.resolve().name for folder in folders]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise RequestError(f"two runs are called {sorted(twice)[0]}: draw them one by one, each with its own --out.")
    return names


def _line(page: Path, drawn: list[str]) -> str:
    from glmspectra.language import text

    return text("terminal-page-svg", path=str(page), count=len(drawn)) if drawn else str(page)


def _show(status: "Status", name: str, words: str) -> None:
    status.update(f"{name}: {words}")
