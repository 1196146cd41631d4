"""`glmspectra report`: figures and pages drawn again from the stored tables and from training folders."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmspectra.cli.options import Json, Quiet

if TYPE_CHECKING:
    from rich.status import Status

RUNS = Path("param_matrix")


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of stored runs. Absent: every run under param_matrix/, unless --training is given.",
            show_default=False,
        ),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            "--training",
            help="A training folder, a checkpoint-N or a trainer_state.json of any year; may be given several times, "
            "then all runs share their axes. With one stored run the curves join its page, else they get their own.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="A further column of matrices.parquet to draw a heat map of.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where pages go: reports/<run>, or one folder for each run in it.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """SVGs and index.html from what is in param_matrix/ and the training folders; no weights are needed."""
    from glmspectra import figures
    from glmspectra.cli.console import finish, stderr
    from glmspectra.errors import RequestError
    from glmspectra.figures.report import REPORTS

    folders, training = list(runs or []), list(training or [])
    if not folders and not training:
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
    target = out or REPORTS
    names = [folder.resolve().name for folder in folders]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise RequestError(f"two runs are called {sorted(twice)[0]}: draw them one by one, each with its own --out.")

    joined = training if len(folders) == 1 else []
    pages: list[Path] = []
    with stderr.status("drawing", spinner="dots") as status:
        if quiet:
            status.stop()
        for name, folder in zip(names, folders, strict=True):
            place = out if out is not None and len(folders) == 1 else target / name
            update = (lambda _: None) if quiet else partial(_show, status, name)
            page = figures.write_report(folder, place, training_folders=joined, columns=column or [], progress=update)
            pages.append(page)
        if training and not joined:
            place = out if out is not None and not folders else target / "training"
            pages.append(figures.write_training_report(training, place))
    overview = figures.write_overview(target) if out is None or len(folders) > 1 else None
    drawn = {str(page): sorted(str(page.parent / name) for name in figures.figures_of(page)) for page in pages}
    finish(
        {"pages": [str(page) for page in pages], "overview": str(overview) if overview else None, "figures": drawn},
        [f"{page} ({len(drawn[str(page)])} figures)" for page in pages]
        + ([f"{overview} (all of them)"] if overview else []),
        as_json,
    )


def _show(status: "Status", name: str, words: str) -> None:
    status.update(f"{name}: {words}")
