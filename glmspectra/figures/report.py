"""Whole reports: from a run's folder, from tables, from training folders, each to `index.html` and the SVGs beside it.

What `suggest-rank` and `delta` know beyond the three tables of a run lies beside these as `ranks.parquet`,
`budget_curve.parquet`, `delta.parquet` and `similarity.parquet` (columns: `figures.ranks` and `figures.delta`);
`write_report` draws each that is there; the criterion that `ranks.parquet` names first is the suggested one, and
`ranks_summary.json` holds what `suggest-rank` said of it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from glmspectra.errors import RequestError, StoreError
from glmspectra.figures import style, training
from glmspectra.figures.page import Album, Section, write_page
from glmspectra.figures.ranks import budget_of
from glmspectra.figures.sections import Progress, analysis_sections, silent, summary_section, training_sections
from glmspectra.figures.tables import RunTables, Tables, layers_of, pick, whole_matrices
from glmspectra.figures.tuned_sections import comparison_section, delta_sections, rank_sections

FURTHER_TABLES = ("ranks", "budget_curve", "delta", "similarity")
REPORTS = Path("reports")

# In the order in which one of them becomes the main matter of a page.
_QUANTITIES = {
    "weight": "the weights",
    "merged": "the merged weights",
    "quant_error": "the error of quantisation",
    "delta": "what training changed",
    "gradient": "the gradients of a few batches",
}


def write_report(
    run_folder: Path,
    out: Path | None = None,
    *,
    training_folders: Sequence[Path] = (),
    columns: Sequence[str] = (),
    progress: Progress = silent,
) -> Path:
    """Draw everything that a stored run holds, into `out` (default reports/<run's name>), and return its index.html.

    training_folders: training runs whose curves join the page. columns: further columns of matrices.parquet to draw
    heat maps of. progress: called with a few words before each step.

    Raises StoreError when a table cannot be read or the folder cannot be written, RequestError for a column that is not
    there.
    """
    from glmspectra.store import read_run

    run_folder = Path(run_folder)
    run = read_run(run_folder)
    further = {name: _further(run_folder / f"{name}.parquet") for name in FURTHER_TABLES}
    runs = _training_runs(training_folders)
    return write_tables_report(
        run,
        out or REPORTS / run_folder.name,
        runs=runs,
        columns=columns,
        rank_words=_rank_words(run_folder / "ranks_summary.json"),
        progress=progress,
        title=None,
        **further,
    )


def _rank_words(path: Path) -> list[str]:
    """What `suggest-rank` said in words; empty where it left nothing."""
    if not path.is_file():
        return []
    try:
        return [str(line) for line in json.loads(path.read_text(encoding="utf-8"))["lines"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}): remove it, or run `glmspectra suggest-rank` again."
        ) from error


def _further(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read as a table ({error}): remove it, or run the command that writes it again."
        ) from error


def write_tables_report(
    run: RunTables,
    out: Path,
    *,
    title: str | None = None,
    runs: Sequence[training.TrainingRun] = (),
    columns: Sequence[str] = (),
    ranks: pd.DataFrame | None = None,
    budget_curve: pd.DataFrame | None = None,
    delta: pd.DataFrame | None = None,
    similarity: pd.DataFrame | None = None,
    rank_words: Sequence[str] = (),
    progress: Progress = silent,
) -> Path:
    """As `write_report`, from tables in memory; rank_words: the summary of the ranks, a paragraph each.

    Returns the path of index.html.
    """
    album = Album(Path(out))
    facts, warnings = run_facts(run)
    sections: list[Section] = []
    quantities = list(dict.fromkeys(run.matrices["quantity"])) if len(run.matrices) else []
    if not quantities and ranks is None and not runs:
        raise RequestError("the run holds no matrices: measure some with `glmspectra svd` first.")
    with style.styled():
        main = next((name for name in _QUANTITIES if name in quantities), next(iter(quantities), None))
        if main is not None:
            picked = pick(run, main)
            sections += analysis_sections(picked, album, columns, per_layer=main != "delta", progress=progress)
        if "delta" in quantities:
            changed = delta_sections(run, album, delta, similarity, progress=progress)
            if main == "delta":
                sections[1:1] = changed
            else:  # the weights before and after are there too, and come second
                for section in changed[:1]:
                    section.grid = summary_section(pick(run, "delta")).grid
                sections[:1] = [*changed, replace(sections[0], title=f"Table of {_QUANTITIES[str(main)]}")]
        if ranks is not None and len(ranks):
            suggested = str(ranks["criterion"].iloc[0])
            chosen = budget_of(ranks, whole_matrices(run.matrices), suggested)
            sections[1:1] = rank_sections(ranks, album, budget_curve, chosen, suggested, progress, rank_words)
        if runs:
            sections += [comparison_section(runs), *training_sections(runs, album, progress)]
    of = facts.get("checkpoint", "a checkpoint")
    matter = _QUANTITIES.get(main or "", main or "ranks and training")
    if "delta" in quantities:
        name = title or f"What training changed: {of}"
        matter = _QUANTITIES["delta"] + ("" if main == "delta" else f", and of {matter} before it")
    else:
        name = title or f"Spectra of {of}"
    lead = f"Figures of {matter}, drawn from the stored tables alone."
    return write_page(Path(out), name, sections, facts, warnings, lead)


def run_facts(run: RunTables) -> tuple[dict[str, str], list[str]]:
    """What stands under a report's title and what a reader is warned of, from the manifest and the matrices."""
    manifest: dict[str, Any] = dict(run.manifest or {})
    source = manifest.get("checkpoint") or {}
    source = source if isinstance(source, dict) else {"name": str(source)}
    matrices = run.matrices
    facts = {
        "checkpoint": str(
            source.get("name")
            or (matrices["checkpoint"].iloc[0] if "checkpoint" in matrices and len(matrices) else "-")
        )
    }
    if source.get("fingerprint"):
        facts["fingerprint"] = str(source["fingerprint"])
    if len(matrices):
        facts["matrices"] = str(whole_matrices(matrices)["name"].nunique())
        facts["layers"] = str(len(layers_of(matrices)))
        methods = sorted({str(method) for method in matrices["method"].dropna()}) if "method" in matrices else []
        if methods:
            facts["method"] = ", ".join(methods)
        if "dtype" in matrices:
            facts["stored as"] = ", ".join(sorted({str(dtype) for dtype in matrices["dtype"].dropna()}))
    requests = (manifest.get("requests") or {}).values()
    devices = sorted({str(request["device"]) for request in requests if request.get("device")})
    finished = sorted(str(request["finished"]) for request in requests if request.get("finished"))
    if devices:
        facts["measured on"] = ", ".join(devices)
    if finished:
        facts["measured at"] = finished[-1]
    warnings = []
    if manifest.get("complete") is False:
        warnings.append(
            "This run is not complete: what is finished is drawn, and the command that began it goes on from there."
        )
    if "status" in matrices and (matrices["status"] == "nonfinite").any():
        names = list(dict.fromkeys(matrices.loc[matrices["status"] == "nonfinite", "name"]))
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.append(f"NaN or infinity in {shown}: such a matrix has no spectrum, and its lines have gaps.")
    return facts, warnings


def write_ranks_report(
    ranks: pd.DataFrame,
    out: Path,
    *,
    curve: pd.DataFrame | None = None,
    chosen: float | None = None,
    criterion: str | None = None,
    title: str = "Suggested ranks",
    facts: dict[str, str] | None = None,
    warnings: Sequence[str] = (),
    extra_sections: Sequence[Section] = (),
) -> Path:
    """A page of suggested ranks in `out`; returns its index.html.

    ranks: columns criterion, name, layer, matrix, rank; a row for each criterion and weight ('uniform' is the control).
    curve: columns criterion, parameters, value, metric ('loss' or 'energy'), optional low and high. chosen: the budget
    in trainable parameters, marked on the curve. criterion: the suggested one. facts, warnings: shown under the title.

    Raises StoreError when a column is missing or the folder cannot be written.
    """
    album = Album(Path(out))
    with style.styled():
        sections = rank_sections(ranks, album, curve, chosen, criterion)
    return write_page(Path(out), title, [*sections, *extra_sections], facts, warnings)


def write_delta_report(
    run: RunTables | Path,
    out: Path,
    *,
    delta: pd.DataFrame | None = None,
    similarity: pd.DataFrame | None = None,
    base: RunTables | Path | None = None,
    training_folders: Sequence[Path] = (),
    title: str = "What training changed",
    warnings: Sequence[str] = (),
    progress: Progress = silent,
) -> Path:
    """A page of what training changed in `out`; returns its index.html.

    run: a run, or its folder, with rows of quantity 'delta' (several steps: growth is drawn) and perhaps 'merged'.
    delta: columns name, layer, matrix, step and any of allotted_rank, rank, relative_frobenius, noise_floor, intruders,
    amplification. similarity: columns name, layer, matrix, side, i, j, similarity. base: the run of W, when it is
    another one.

    Raises StoreError when a table cannot be read, lacks a column, or the folder cannot be written.
    """
    tables, base_tables = _tables(run), None if base is None else _tables(base)
    if isinstance(run, Path):
        delta = delta if delta is not None else _further(run / "delta.parquet")
        similarity = similarity if similarity is not None else _further(run / "similarity.parquet")
    album = Album(Path(out))
    facts, found = run_facts(tables)
    runs = _training_runs(training_folders)
    with style.styled():
        sections = delta_sections(tables, album, delta, similarity, base_tables, progress)
        picked = pick(tables, "delta")
        if len(picked.matrices):
            sections += analysis_sections(picked, album, per_layer=False, progress=progress)
        if runs:
            sections += [comparison_section(runs), *training_sections(runs, album, progress)]
    return write_page(Path(out), title, sections, facts, [*found, *warnings])


def _tables(run: RunTables | Path) -> RunTables:
    if not isinstance(run, Path):
        return run
    from glmspectra.store import read_run

    stored = read_run(run)
    return Tables(stored.matrices, stored.singular_values, stored.histograms, stored.manifest)


def _training_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[training.TrainingRun]:
    """Read training runs; of equal names all but the first get a number, so that each has a line of its own."""
    runs: list[training.TrainingRun] = []
    taken: dict[str, int] = {}
    for i, folder in enumerate(folders):
        run = training.read_training(Path(folder), names[i] if names else None)
        taken[run.name] = taken.get(run.name, 0) + 1
        if taken[run.name] > 1:
            run = training.TrainingRun(f"{run.name} ({taken[run.name]})", run.folder, run.history, run.ranks)
        runs.append(run)
    return runs


def write_training_report(folders: Sequence[Path], out: Path, names: Sequence[str] | None = None) -> Path:
    """Curves of one or several training runs on the same axes, as a page in `out`; returns its index.html.

    Raises RequestError when a folder holds no trainer_state.json, StoreError when one cannot be read.
    """
    if not folders:
        raise RequestError("no training folder was named: give one that holds a trainer_state.json.")
    runs = _training_runs(folders, names)
    album = Album(Path(out))
    with style.styled():
        sections = [comparison_section(runs), *training_sections(runs, album)]
    title = f"Training of {runs[0].name}" if len(runs) == 1 else f"{len(runs)} training runs"
    return write_page(Path(out), title, sections)


def write_training_curves(folder: Path, out: Path | None = None, name: str | None = None) -> list[Path]:
    """Only the SVG curves of one run, into `out` (default: the folder's curves/); cheap enough for each evaluation.

    Raises as `write_training_report` does. Returns the paths of the files.
    """
    run = training.read_training(Path(folder), name)
    target = Path(out) if out is not None else Path(folder) / "curves"
    album = Album(target)
    with style.styled():
        sections = training_sections([run], album)
    return [target / drawing.file for section in sections for drawing in section.drawings]
