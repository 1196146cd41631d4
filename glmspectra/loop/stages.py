"""The stages of a loop, in order. Each reads files of the ones before it and leaves files of its own.

A stage is a function of the options and of the results so far; it returns what it found as plain JSON. All of them
may be run again: what is already on disk is reused (tables matrix by matrix, trainings from their last checkpoint).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmspectra.errors import StoreError
from glmspectra.json_files import read_object, write_json
from glmspectra.loop.options import LoopOptions
from glmspectra.loop.pilot import as_overrides, run_pilots, train_once
from glmspectra.loop.suggestion import TABLES
from glmspectra.ranks import Suggestion, ranks_file
from glmspectra.ranks.peft_patterns import scale_of
from glmspectra.ranks.report import facts, lines, write_suggestion
from glmspectra.ranks.request import RankRequest, evidence_and_budget, suggest_ranks
from glmspectra.store import Run, read_run

Results = dict[str, dict[str, Any]]

REPORTS = "reports"


def measure_weights(options: LoopOptions, results: Results) -> dict[str, Any]:
    """Spectra and value distributions of every layer matrix of the base."""
    from glmspectra.checkpoint import open_checkpoint, select
    from glmspectra.store import RunStore
    from glmspectra.sweep import SweepOptions, source_of, sweep

    with open_checkpoint(options.model) as checkpoint:
        store = RunStore.of(options.out / TABLES, source_of(checkpoint))
        found = sweep(checkpoint, select(checkpoint), SweepOptions(device=options.device, quiet=options.quiet), store)
    return {"tables": str(store.folder), "matrices": found.matrices, "nonfinite": found.nonfinite}


def suggest_from_base(options: LoopOptions, results: Results) -> dict[str, Any]:
    """What the base weights alone suggest: the answer that a pilot is then to better."""
    request = replace(_request(options), criterion=None)
    return _write(suggest_ranks(_base(results), [], request), request, options, results, "ranks_from_base.json")


def train_pilots(options: LoopOptions, results: Results) -> dict[str, Any]:
    """Short uniform runs of a large rank."""
    evidence, budget = evidence_and_budget(_base(results), [], _request(options))
    folders = run_pilots(
        options.out / "pilots",
        options.model,
        options.args,
        evidence,
        budget,
        options.pilot_steps,
        options.pilot_seeds,
        options.overrides,
        options.device,
        options.quiet,
    )
    return {"folders": [str(folder) for folder in folders], "steps": options.pilot_steps}


def measure_pilots(options: LoopOptions, results: Results) -> dict[str, Any]:
    """Exact spectra of what each pilot changed, from its small factors."""
    runs = [_change(options, Path(folder)) for folder in results["pilot"]["folders"]]
    return {"tables": [str(run.folder) for run in runs]}


def suggest_from_pilots(options: LoopOptions, results: Results) -> dict[str, Any]:
    """The ranks that training will use, and the uniform control's at the same budget."""
    deltas = [read_run(Path(folder)) for folder in results["pilot-delta"]["tables"]]
    request = replace(_request(options), exports=("peft", "axolotl"))
    suggestion = suggest_ranks(_base(results), deltas, request)
    written = _write(suggestion, request, options, results, "ranks.json")
    uniform = ranks_file(suggestion, request.scale, request.rslora, "uniform")
    return written | {"uniform_file": str(write_json(options.out / "args_file" / "ranks_uniform.json", uniform))}


def train_suggested(options: LoopOptions, results: Results) -> dict[str, Any]:
    """The training of the three JSON files, with the suggested ranks."""
    return _train(options, Path(results["suggest"]["ranks_file"]), "suggested")


def train_uniform(options: LoopOptions, results: Results) -> dict[str, Any]:
    """The same training with uniform ranks at the same budget: what the suggestion has to better."""
    if not options.control:
        return {"skipped": "no control was asked for"}
    return _train(options, Path(results["suggest"]["uniform_file"]), "uniform")


def evaluate_both(options: LoopOptions, results: Results) -> dict[str, Any]:
    """Both adapters on the rows that were not trained on, and the difference between them row by row."""
    from glmspectra.tuning.inference.evaluation import evaluate, paired_interval, write_evaluation
    from glmspectra.tuning.settings.load import load_settings

    settings = load_settings(options.args, [*options.overrides, *model_override(options)])
    found: dict[str, Any] = {}
    rows, answers = {}, {}
    for name, stage in (("suggested", "train"), ("uniform", "control")):
        if "adapter" not in results[stage]:
            continue
        evaluation = evaluate(settings, Path(results[stage]["adapter"]), options.device, samples=options.samples)
        write_evaluation(evaluation, options.out / "evaluation" / name)
        rows[name] = evaluation.row_losses["tuned"]
        found["base"] = evaluation.base
        found[name] = evaluation.tuned
        found[f"{name}_minus_base"] = evaluation.difference
        answers[name] = evaluation.samples
    if len(rows) == 2:
        found["suggested_minus_uniform"] = paired_interval(rows["uniform"], rows["suggested"])
    # Both answer the same rows: one card holds the base and both of them.
    found["samples"] = [dict(sample) for sample in answers.get("suggested", [])]
    for sample, other in zip(found["samples"], answers.get("uniform", []), strict=False):
        sample["uniform"] = other["tuned"]
    return found


def measure_trained(options: LoopOptions, results: Results) -> dict[str, Any]:
    """Spectra of what the training changed, and the ranks they would suggest next time."""
    run = _change(options, Path(results["train"]["output_dir"]), against_base=True)
    request = _request(options)
    suggestion = suggest_ranks(_base(results), [run], request)
    files = write_suggestion(suggestion, options.out / "args_file" / "ranks_next.json", run.folder, request)
    from glmspectra.ranks import moved_share

    used = _ranks_of(Path(results["suggest"]["ranks_file"]))
    moved = moved_share(suggestion.chosen.ranks, used, suggestion.chosen.targets)
    return {"tables": str(run.folder), "next_ranks_file": files["ranks_file"], "moved_from_used": moved}


def write_story(options: LoopOptions, results: Results) -> dict[str, Any]:
    """The one page that tells what happened, and the full reports beside it."""
    from glmspectra.figures import write_overview, write_report
    from glmspectra.loop.story import write_loop_page

    reports = options.out / REPORTS
    folders = [Path(results["svd"]["tables"]), *map(Path, results["pilot-delta"]["tables"])]
    folders.append(Path(results["final-delta"]["tables"]))
    for folder in folders:
        write_report(folder, reports / folder.name)
    page = write_loop_page(options, results, reports / "loop")
    write_overview(reports)
    return {"page": str(page)}


# name -> what runs; the order is the order of the loop.
STAGES: dict[str, Callable[[LoopOptions, Results], dict[str, Any]]] = {
    "svd": measure_weights,
    "suggest-from-base": suggest_from_base,
    "pilot": train_pilots,
    "pilot-delta": measure_pilots,
    "suggest": suggest_from_pilots,
    "train": train_suggested,
    "control": train_uniform,
    "evaluate": evaluate_both,
    "final-delta": measure_trained,
    "report": write_story,
}


def _change(options: LoopOptions, tuned: Path, against_base: bool = False) -> Run:
    """Delta spectra of a training folder into the loop's tables."""
    from glmspectra.sweep.delta import measure_change
    from glmspectra.sweep.delta_plan import DeltaOptions

    asked = DeltaOptions(against_base=against_base, device=options.device, quiet=options.quiet)
    return measure_change(options.model, tuned, options.out / TABLES, asked)[0]


def _base(results: Results) -> Run:
    return read_run(Path(results["svd"]["tables"]))


def model_override(options: LoopOptions) -> list[str]:
    """The model of the loop in place of the one that the settings name."""
    return as_overrides({"finetune.model_path": str(options.model)})


def _request(options: LoopOptions) -> RankRequest:
    """What the loop asks of `ranks`, with the effective scale of the user's own settings."""
    scale, rslora = scale_of(options.args)
    return RankRequest(options.criterion, options.budget, options.targets, scale=scale, rslora=rslora)


def _write(
    suggestion: Suggestion, request: RankRequest, options: LoopOptions, results: Results, name: str
) -> dict[str, Any]:
    tables = Path(results["svd"]["tables"])
    files = write_suggestion(suggestion, options.out / "args_file" / name, tables, request)
    return facts(suggestion) | files | {"lines": lines(suggestion)}


def _ranks_of(path: Path) -> dict[str, int]:
    ranks = read_object(path, StoreError).get("ranks")
    if not isinstance(ranks, dict) or not all(type(rank) is int for rank in ranks.values()):
        raise StoreError(f"{path}: ranks is no object of whole numbers: remove the file, and run the command again.")
    return ranks


def _train(options: LoopOptions, ranks: Path, name: str) -> dict[str, Any]:
    folder = options.out / "training" / name
    own = as_overrides({"train.output_dir": str(folder), "finetune.final_model_path": str(folder / "final_adapter")})
    return train_once(
        options.args, [*options.overrides, *model_override(options), *own], ranks, options.device, options.quiet
    )
