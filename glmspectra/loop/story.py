"""The page of a loop: what was measured, which ranks followed, what training with them gave, and what that is worth."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from glmspectra.figures import Outcome, read_training, write_loop
from glmspectra.figures.findings import Evidence, Scores, find
from glmspectra.figures.report import read_further
from glmspectra.language import Words, both, text
from glmspectra.loop.options import LoopOptions
from glmspectra.store import read_run

Results = dict[str, dict[str, Any]]

# Model of the comparison -> the stage that trained it.
TRAINED = {"suggested": "train", "uniform": "control"}


def write_loop_page(options: LoopOptions, results: Results, out: Path) -> Path:
    """Write out/index.html from the files of the stages; its path."""
    tables = Path(results["svd"]["tables"])
    names = [name for name, stage in TRAINED.items() if "output_dir" in results[stage]]
    return write_loop(
        out,
        str(options.model.name),
        outcome(results),
        read_run(Path(results["final-delta"]["tables"])),
        pd.read_parquet(tables / "ranks.parquet"),
        read_further(tables / "budget_curve.parquet"),
        [
            replace(read_training(options.out / "training" / name, name), label=both(f"ui-model-{name}"))
            for name in names
        ],
        _facts(options, results),
        _warnings(results),
        _whereabouts(options, results),
    )


def outcome(results: Results) -> Outcome:
    """What the evaluation found: losses of each model, and differences row by row."""
    found = results["evaluate"]
    losses: dict[str, dict[str, float]] = {
        name: found[name] for name in ("base", "uniform", "suggested") if name in found
    }
    pairs = (("suggested", "uniform"), ("suggested", "base"), ("uniform", "base"))
    differences = {f"{a}-{b}": found[f"{a}_minus_{b}"] for a, b in pairs if found.get(f"{a}_minus_{b}")}
    parameters = {name: results[stage].get("trainable_parameters") for name, stage in TRAINED.items()}
    known = {name: int(count) for name, count in parameters.items() if count is not None}
    rows = max((int(gap["rows"]) for gap in differences.values()), default=0)
    return Outcome(Scores(losses, differences, found.get("samples") or (), rows), known)


def verdict(results: Results) -> str:
    """What the comparison with uniform ranks can and cannot say, in the language in use."""
    gaps = [found for found in find(Evidence(scores=outcome(results).scores)) if found.rule == "against-uniform"]
    return gaps[0].words.shown if gaps else text("terminal-no-control")


def _facts(options: LoopOptions, results: Results) -> list[tuple[Words, str | Words]]:
    pilots = both("page-pilots", seeds=options.pilot_seeds, steps=str(options.pilot_steps))
    facts = {
        "model": str(options.model.name),
        "matrices": str(results["svd"]["matrices"]),
        "criterion": results["suggest"]["criterion"],
        "parameters": f"{results['suggest']['parameters']:,}",
    }
    listed: list[tuple[Words, str | Words]] = [(both(f"page-fact-{name}"), value) for name, value in facts.items()]
    return [*listed, (both("page-fact-pilots"), pilots)]


def _warnings(results: Results) -> list[Words]:
    broken = results["svd"]["nonfinite"]
    return [both("page-nonfinite", names=", ".join(broken[:5]))] if broken else []


def _whereabouts(options: LoopOptions, results: Results) -> list[Words]:
    """Where everything lies, for the next step."""
    final = results["final-delta"]
    share = f"{final['moved_from_used']:.0%}"
    same = share == "0%"  # a threshold over all directions that were trained, with room for every one of them
    following = both("page-files-next-same" if same else "page-files-next", share=share, path=final["next_ranks_file"])
    return [
        both("page-files-ranks", path=results["suggest"]["ranks_file"]),
        both("page-files-adapter", path=results["train"]["adapter"]),
        both("page-files-tables", path=str(options.out / "param_matrix")),
        both("page-files-reports", path=str(options.out / "reports")),
        following,
    ]
