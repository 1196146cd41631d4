"""Pages from what is stored: a run's tables with its ranks and trainings, several runs side by side.

`suggest-rank` leaves `ranks.parquet` and `budget_curve.parquet` beside the three tables (`figures.rank_tables`); the
criterion that `ranks.parquet` names first is the suggested one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from glmspectra.errors import RequestError, StoreError
from glmspectra.figures import payload
from glmspectra.figures.findings import Evidence, Finding, find
from glmspectra.figures.rank_tables import RANK_TABLE, budget_of, check_columns
from glmspectra.figures.tables import RunTables, Tables, has, in_layers, layers_of, pick, whole_matrices
from glmspectra.figures.training_log import TrainingRun, ends_of, read_runs
from glmspectra.figures.words import number
from glmspectra.figures.writing import Cell, Grid, Page, plain, write_page
from glmspectra.language import Words, both, text
from glmspectra.store.columns import COLUMNS, REAL, WHOLE

REPORTS = Path("reports")

# In the order in which they stand on a page: what training changed before the weights it changed.
QUANTITIES = ("delta", "weight", "merged", "quant_error", "gradient")

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that goes nowhere."""


def write_report(
    run_folder: Path,
    out: Path | None = None,
    *,
    training_folders: Sequence[Path] = (),
    columns: Sequence[str] = (),
    svg: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write the page of a stored run and return its index.html.

    Args:
        run_folder: The run's folder under param_matrix/.
        out: The page's folder; None: reports/<run's name>.
        training_folders: Training runs whose curves join the page.
        columns: Further columns to draw heat maps of among the SVG files.
        svg: Write the figures as SVG files too, beside the page.
        progress: Called with a few words before each step.

    Raises:
        StoreError: A table cannot be read or the folder cannot be written.
        RequestError: There is no such column, or nothing to show.
    """
    from glmspectra.store import read_run

    run_folder = Path(run_folder)
    run = read_run(run_folder)
    return write_tables_report(
        run,
        out or REPORTS / run_folder.name,
        runs=read_runs(training_folders),
        columns=columns,
        ranks=read_further(run_folder / "ranks.parquet"),
        budget_curve=read_further(run_folder / "budget_curve.parquet"),
        svg=svg,
        progress=progress,
    )


def read_further(path: Path) -> pd.DataFrame | None:
    """A table beside the three of a run; None where there is none. Raises StoreError for a damaged one."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return pq.ParquetFile(file).read().to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} cannot be read as a table ({error}): remove it, or run the command that writes it again."
        ) from error


def write_tables_report(
    run: RunTables,
    out: Path,
    *,
    runs: Sequence[TrainingRun] = (),
    columns: Sequence[str] = (),
    ranks: pd.DataFrame | None = None,
    budget_curve: pd.DataFrame | None = None,
    svg: bool = False,
    progress: Progress = silent,
) -> Path:
    """As `write_report`, from tables in memory."""
    check_measures(run.matrices, columns)
    evidence = evidence_of(run, ranks=ranks, training=runs)
    if not evidence.sets and not len(evidence.ranks) and not runs:
        raise RequestError("the run holds no matrices: measure some with `glmspectra svd` first.")
    progress(text("report-progress-page"))
    facts, warnings = run_facts(run)
    subject = subject_of(evidence)
    name = {words.en: value for words, value in facts}.get("checkpoint", "-")
    findings = find(evidence)
    page = Page(
        subject,
        both(f"page-title-{subject}", name=name),
        both(f"page-lead-{subject}"),
        facts,
        warnings,
        findings,
        payload_of(evidence, budget_curve),
        runs=runs_grid(runs) if runs else None,
        summary=summary_of(subject, name, evidence, findings),
    )
    path = write_page(Path(out), page)
    if svg:
        draw_svg(evidence, Path(out), columns, budget_curve, progress)
    return path


def check_measures(matrices: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise RequestError for a column without numbers in this run, naming those that have some."""
    known = [name for name, column in COLUMNS.items() if column.type in (REAL, WHOLE) and has(matrices, name)]
    for name in columns:
        if name not in known:
            raise RequestError(f"the column {name!r} has no numbers in this run: choose from {', '.join(known)}.")


def evidence_of(run: RunTables, *, ranks: pd.DataFrame | None = None, training: Sequence[TrainingRun] = ()) -> Evidence:
    """What a run holds, by quantity, at its last step."""
    quantities = set(run.matrices["quantity"]) if len(run.matrices) else set()
    sets = {name: pick(run, name) for name in QUANTITIES if name in quantities}
    sets = {name: tables for name, tables in sets.items() if len(tables.matrices)}
    steps = run.matrices[run.matrices["quantity"] == "delta"] if "delta" in quantities else pd.DataFrame()
    if ranks is not None and len(ranks):
        check_columns(ranks, RANK_TABLE, "ranks")
    return Evidence(sets, steps, ranks if ranks is not None else pd.DataFrame(), training)


def subject_of(evidence: Evidence) -> str:
    """What a page is about: changes before ranks before spectra before values."""
    if "delta" in evidence.sets:
        return "delta"
    if len(evidence.ranks):
        return "ranks"
    if not evidence.sets:
        return "training"
    spectra = any(has(tables.matrices, "spectral_norm") for tables in evidence.sets.values())
    return "svd" if spectra else "values"


def payload_of(evidence: Evidence, budget_curve: pd.DataFrame | None = None) -> payload.Json:
    """The data of a page."""
    found: payload.Json = {}
    sets = [
        payload.set_of(name, both(f"page-set-{name.replace('_', '-')}"), tables)
        for name, tables in evidence.sets.items()
    ]
    if len(evidence.ranks):
        delta = evidence.rows("delta")
        given = payload.ranks_set(evidence.ranks, delta if len(delta) else None)
        # On a loop's page and that of `suggest-rank` the ranks are what it is about.
        sets.insert(1 if "delta" in evidence.sets and not evidence.scores.losses else 0, given)
        costs = costs_of(evidence)
        found["criteria"] = payload.criteria_of(evidence.ranks, costs)
        if budget_curve is not None and len(budget_curve):
            weights = (
                pd.concat([tables.matrices for tables in evidence.sets.values()]) if evidence.sets else pd.DataFrame()
            )
            chosen = budget_of(evidence.ranks, whole_matrices(weights), str(evidence.ranks["criterion"].iloc[0]))
            found["curve"] = payload.curve_of(budget_curve, chosen)
    if sets:
        found["sets"] = sets
    if len(evidence.steps) and (growth := payload.growth_of(evidence.steps)):
        found["growth"] = growth
    if "delta" in evidence.sets and (similarity := payload.similarity_of(evidence.sets["delta"].matrices)):
        found["similarity"] = similarity
    if evidence.training:
        found["training"] = [payload.training_of(run) for run in evidence.training]
    return found


def costs_of(evidence: Evidence) -> dict[str, float] | None:
    """Parameters of one direction of each weight, rows + cols; None where a weight's shape is not known."""
    costs: dict[str, float] = {}
    for tables in evidence.sets.values():
        rows = whole_matrices(tables.matrices)
        costs |= dict(zip(rows["name"], (rows["rows"] + rows["cols"]).astype(float), strict=True))
    return costs if set(evidence.ranks["name"]) <= set(costs) else None


def run_facts(run: RunTables) -> tuple[list[tuple[Words, str]], list[Words]]:
    """What stands under a report's title and what a reader is warned of, from the manifest and the matrices."""
    manifest: dict[str, Any] = dict(run.manifest or {})
    source = manifest.get("checkpoint") or {}
    source = source if isinstance(source, dict) else {"name": str(source)}
    matrices = run.matrices
    named = matrices["checkpoint"].iloc[0] if "checkpoint" in matrices and len(matrices) else "-"
    facts = {"checkpoint": str(source.get("name") or named)}
    if source.get("fingerprint"):
        facts["fingerprint"] = str(source["fingerprint"])
    if len(matrices):
        facts["matrices"] = str(whole_matrices(matrices)["name"].nunique())
        facts["layers"] = str(len(layers_of(matrices)))
        for column in ("method", "dtype"):
            if column in matrices and matrices[column].notna().any():
                facts[column] = ", ".join(sorted({str(value) for value in matrices[column].dropna()}))
    requests = (manifest.get("requests") or {}).values()
    devices = sorted({str(request["device"]) for request in requests if request.get("device")})
    finished = sorted(str(request["finished"]) for request in requests if request.get("finished"))
    if devices:
        facts["device"] = ", ".join(devices)
    if finished:
        facts["time"] = finished[-1][:16].replace("T", " ") + " UTC"
    warnings = [both("page-incomplete")] if manifest.get("complete") is False else []
    said = {"nonfinite": "page-nonfinite", "unreadable": "page-unreadable"} if "status" in matrices else {}
    for status, message in said.items():
        names = list(dict.fromkeys(matrices.loc[matrices["status"] == status, "name"]))
        shown = Words.same(", ".join(names[:5]))
        if len(names) > 5:
            shown = both("page-more", names=shown, count=len(names) - 5)
        warnings += [both(message, names=shown)] if names else []
    return [(both(f"page-fact-{name}"), value) for name, value in facts.items()], warnings


def summary_of(subject: str, name: str, evidence: Evidence, findings: Sequence[Finding]) -> payload.Json:
    """What the overview lists of a page: name, first finding, mean rank, median effective rank, a line of values."""
    first = findings[0]
    summary: payload.Json = {"kind": subject, "name": name, "finding": (first.words.en, first.words.zh)}
    for quantity in evidence.sets:
        rows = evidence.rows(quantity)
        if has(rows, "effective_rank"):
            summary["effective_rank"] = payload.rounded(rows["effective_rank"].median())
            summary["line"] = payload.numbers(rows.groupby("layer")["effective_rank"].median())
            break
    if len(evidence.ranks):
        chosen = evidence.ranks[evidence.ranks["criterion"] == evidence.ranks["criterion"].iloc[0]]
        summary["mean_rank"] = payload.rounded(chosen["rank"].mean())
    losses = [float(run.history["eval_loss"].min()) for run in evidence.training if run.has("eval_loss")]
    if losses:
        summary["loss"] = payload.rounded(min(losses))
    if evidence.training and not summary.get("line"):
        history = evidence.training[0].history
        curve = history["eval_loss" if evidence.training[0].has("eval_loss") else "loss"].dropna().to_numpy()
        summary["line"] = payload.numbers(
            curve[np.unique(np.linspace(0, len(curve) - 1, 24).round().astype(int))] if len(curve) else []
        )
    return summary


def runs_grid(runs: Sequence[TrainingRun]) -> Grid:
    """Last and lowest losses of training runs."""
    heads = ("run", "steps", "last-loss", "best-loss", "best-step", "best-perplexity")
    rows = []
    for run in runs:
        ends, evaluated = ends_of(run), run.history.dropna(subset=["eval_loss"])
        steps = number(float(run.history["step"].max())) if len(run.history) else ""
        row = [Cell(run.title), plain(steps, number=True)]
        row.append(plain(number(ends[1], 4) if ends else "", number=True))
        best = evaluated.loc[evaluated["eval_loss"].idxmin()] if len(evaluated) else None
        for column in ("eval_loss", "step", "eval_perplexity"):
            row.append(plain(number(float(best[column]), 4) if best is not None else "", number=True))
        rows.append(row)
    return Grid(heads, rows, both("page-runs-caption"))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """The page of several stored runs on the same axes; returns its index.html.

    Raises:
        StoreError: A table cannot be read, or the folder cannot be written.
        RequestError: Fewer than two runs, or no matrix in a layer.
    """
    from glmspectra.store import read_run

    if len(folders) < 2:
        raise RequestError("a comparison takes two runs or more.")
    tables: dict[str, Tables] = {}
    for folder in folders:
        run = read_run(Path(folder))
        quantity = next((name for name in QUANTITIES if name in set(run.matrices["quantity"])), "weight")
        picked = pick(run, quantity)
        if not len(in_layers(whole_matrices(picked.matrices))):
            raise RequestError(f"{folder} holds no matrix in a layer: there is nothing to compare by depth.")
        source = (run.manifest.get("checkpoint") or {}).get("name") or Path(folder).name
        label = str(source) if str(source) not in tables else Path(folder).resolve().name
        tables[label] = picked
    evidence = Evidence(compared=tables)
    names = Words(", ".join(tables), "、".join(tables))
    compared = []
    for name, picked in tables.items():
        bare = Tables(whole_matrices(picked.matrices))
        compared.append(payload.set_of(name, Words.same(name), bare))
    findings = find(evidence)
    page = Page(
        "compare",
        both("page-title-compare", names=names),
        both("page-lead-compare"),
        findings=findings,
        payload={"compared": compared},
        summary=summary_of("compare", names.en, evidence, findings),
    )
    return write_page(Path(out), page)


def draw_svg(
    evidence: Evidence,
    out: Path,
    columns: Sequence[str] = (),
    budget_curve: pd.DataFrame | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """The figures of a page as SVG files into `out`; the paths."""
    from glmspectra.figures.svg import files

    progress(text("report-progress-svg"))
    written: list[Path] = []
    empty = Tables(pd.DataFrame(columns=["layer", "matrix", "part", "series"]))
    main = next((name for name in QUANTITIES[1:] if name in evidence.sets), None)
    if "delta" in evidence.sets:
        weight, merged = evidence.sets.get("weight", empty), evidence.sets.get("merged", empty)
        figures = files.change_figures(evidence.sets["delta"], evidence.steps, weight, merged)
        written += files.save_all(figures, out)
        main = main or "delta"
    if main is not None:
        figures = files.weight_figures(evidence.sets[main], columns, per_layer=main != "delta")
        written += files.save_all(figures, out)
    if len(evidence.ranks):
        written += files.save_all(files.rank_figures(evidence.ranks, budget_curve), out)
    if evidence.training:
        written += files.save_all(files.training_figures(evidence.training), out)
    return written


__all__ = [
    "REPORTS",
    "write_comparison",
    "write_report",
    "write_tables_report",
]
