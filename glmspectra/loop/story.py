"""The page of a loop: what was measured, which ranks followed, what training with them gave, and what that is worth."""

from pathlib import Path
from typing import Any

import pandas as pd

from glmspectra.figures import (
    Album,
    Grid,
    Section,
    delta_sections,
    rank_sections,
    read_training,
    styled,
    training_sections,
    write_page,
)
from glmspectra.loop.options import LoopOptions
from glmspectra.store import read_run

Results = dict[str, dict[str, Any]]


def write_loop_page(options: LoopOptions, results: Results, out: Path) -> Path:
    """Write out/index.html and its figures from the files of the stages; its path."""
    album = Album(out)
    pilot = read_run(Path(results["pilot-delta"]["tables"][0]))
    tables = Path(results["svd"]["tables"])
    names = [name for name, stage in (("suggested", "train"), ("uniform", "control")) if "output_dir" in results[stage]]
    runs = [read_training(options.out / "training" / name, name) for name in names]
    with styled():
        sections = [_outcome(results), *_samples(results)]
        sections += rank_sections(
            pd.read_parquet(tables / "ranks.parquet"),
            album,
            _table(tables / "budget_curve.parquet"),
            results["suggest"]["parameters"],
            results["suggest"]["criterion"],
        )
        sections += delta_sections(
            pilot, album, _table(pilot.folder / "delta.parquet"), _table(pilot.folder / "similarity.parquet")
        )
        sections += training_sections(runs, album)
    sections.append(_whereabouts(options, results))
    facts = {
        "model": str(options.model.name),
        "matrices": str(results["svd"]["matrices"]),
        "criterion": results["suggest"]["criterion"],
        "parameters": f"{results['suggest']['parameters']:,}",
        "pilots": f"{options.pilot_seeds} of {options.pilot_steps} steps",
    }
    lead = "Spectra of the base, ranks from a short pilot, training with them beside uniform ranks, and what came out."
    return write_page(out, f"From spectra to a tuned {options.model.name}", sections, facts, _warnings(results), lead)


def _table(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.is_file() else None


def _outcome(results: Results) -> Section:
    """The numbers and the honest sentence about them."""
    found = results["evaluate"]
    heads = [
        ("model", ""),
        ("loss", "Nats a token, over the tokens of rows that were not trained on."),
        ("perplexity", "exp of the loss."),
        ("token accuracy", "Share of tokens whose most likely prediction is right."),
        ("loss of a row - base's", "Mean over rows."),
        ("95 % from", "Student's t interval over rows."),
        ("95 % to", ""),
        ("trainable parameters", ""),
    ]
    rows: list[list[Any]] = []
    for name, stage in (("base", None), ("suggested", "train"), ("uniform", "control")):
        if name not in found:
            continue
        values, gap = found[name], found.get(f"{name}_minus_base") or {}
        parameters = results[stage].get("trainable_parameters") if stage else None
        measured = [values["loss"], values["perplexity"], values["token_accuracy"]]
        rows.append([name, *measured, gap.get("mean"), gap.get("low"), gap.get("high"), parameters])
    words = verdict(results) + list(results["suggest"]["lines"])
    return Section("outcome", "What came out", words, grid=Grid("Losses on rows not trained on.", heads, rows))


def verdict(results: Results) -> list[str]:
    """What the comparison with uniform ranks can and cannot say."""
    gap = results["evaluate"].get("suggested_minus_uniform")
    if gap is None:
        return ["No control with uniform ranks was trained, so nothing is said about what the suggested ranks gained."]
    between = (
        f"{gap['mean']:+.4f} nats a row (95 % interval over {gap['rows']} rows {gap['low']:+.4f} to {gap['high']:+.4f})"
    )
    if gap["high"] < 0:
        word = "the suggested ranks did better than uniform ranks of the same cost"
    elif gap["low"] > 0:
        word = "uniform ranks of the same cost did better than the suggested ones"
    else:
        word = "no difference from uniform ranks of the same cost can be told"
    return [
        f"In this one run {word}: {between}. The interval covers the choice of rows, not the seed of the training; "
        "a claim about ranks takes several seeds (benchmarks/ranks.py)."
    ]


def _samples(results: Results) -> list[Section]:
    samples = results["evaluate"].get("samples") or []
    if not samples:
        return []
    heads = [("question", ""), ("reference", ""), ("base answers", ""), ("tuned model answers", "")]
    rows = [[sample.get(key) for key in ("context", "reference", "base", "tuned")] for sample in samples]
    words = [
        "Answers of the base and of the tuned model to rows that were not trained on, the most likely token each time."
    ]
    return [Section("samples", "Answers side by side", words, grid=Grid(f"{len(rows)} rows.", heads, rows))]


def _warnings(results: Results) -> list[str]:
    broken = results["svd"]["nonfinite"]
    return [f"NaN or infinity in {', '.join(broken[:5])}: these matrices have no spectrum."] if broken else []


def _whereabouts(options: LoopOptions, results: Results) -> Section:
    """Where everything lies, for the next step."""
    moved = results["final-delta"]["moved_from_used"]
    words = [
        f"Ranks used: {results['suggest']['ranks_file']}. Adapter: {results['train']['adapter']}. "
        f"Tables: {options.out / 'param_matrix'}. Full reports of every run: {options.out / 'reports'}.",
        f"What the training itself changed would suggest other ranks for {moved:.0%} of the parameters: "
        f"{results['final-delta']['next_ranks_file']} holds them for the next turn of the loop.",
    ]
    return Section("files", "Where everything is", words)
