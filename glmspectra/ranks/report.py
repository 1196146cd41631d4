"""What `suggest-rank` writes and says: the ranks file, exports, tables, and the summary in words."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.files import make_folder, write_atomically, write_text
from glmspectra.json_files import write_json
from glmspectra.language import listed, text
from glmspectra.ranks.allocation import Allocation
from glmspectra.ranks.budget import BYTES_PER_PARAMETER
from glmspectra.ranks.criteria import find
from glmspectra.ranks.exports import export
from glmspectra.ranks.peft_patterns import ranks_file
from glmspectra.ranks.request import RankRequest
from glmspectra.ranks.study_gains import sentence
from glmspectra.ranks.suggest import (
    UNIFORM_WITHIN,
    Suggestion,
    disagreement,
    kept_energy,
    moved_share,
    needed_parameters,
    side_by_side,
)

if TYPE_CHECKING:
    import pandas as pd


def long_table(allocations: Mapping[str, Allocation]) -> "pd.DataFrame":
    """One row for each criterion and matrix: criterion, name, layer, matrix, rank. What the report draws."""
    wide = side_by_side(allocations)
    long = wide.melt(
        id_vars=["name", "layer", "matrix"], value_vars=list(allocations), var_name="criterion", value_name="rank"
    )
    return long[["criterion", "name", "layer", "matrix", "rank"]].astype({"rank": "int64"})


def curve_table(curve: "pd.DataFrame") -> "pd.DataFrame":
    """The budget curve as the report draws it: criterion, parameters, value (share of energy), metric."""
    return curve.rename(columns={"energy": "value"}).assign(metric="energy")[
        ["criterion", "parameters", "value", "metric", "quantity"]
    ]


def write_suggestion(suggestion: Suggestion, ranks_path: Path, tables: Path, request: RankRequest) -> dict[str, Any]:
    """Write the ranks file of the chosen criterion, exports beside it, and the tables into a run's folder.

    tables gets ranks.parquet, budget_curve.parquet (what the report draws), ranks.csv (a row a matrix, a column of
    ranks for each criterion), and the summary in words. Returns the paths as text by what they are.

    Raises:
        RequestError: All ranks are 0.
        StoreError: A file cannot be written.
    """
    content = ranks_file(suggestion, request.scale, request.rslora)
    files: dict[str, Any] = {"ranks_file": str(write_json(ranks_path, content))}
    make_folder(tables)
    _write_parquet(long_table(suggestion.allocations), tables / "ranks.parquet")
    write_text(tables / "ranks.csv", side_by_side(suggestion.allocations).to_csv(index=False))
    files |= {"table": str(tables / "ranks.csv"), "ranks_parquet": str(tables / "ranks.parquet")}
    if len(suggestion.curve):
        _write_parquet(curve_table(suggestion.curve), tables / "budget_curve.parquet")
        files["budget_curve"] = str(tables / "budget_curve.parquet")
    folder = ranks_path.parent / f"{ranks_path.stem}_exports"
    arguments, evidence = content["lora_args"], suggestion.evidence
    exported = [export(trainer, folder, arguments, suggestion.chosen, evidence) for trainer in request.exports]
    files["exports"] = [str(path) for paths in exported for path in paths]
    summary = {"ranks_file": str(ranks_path), "lines": lines(suggestion)}
    return {**files, "summary": str(write_json(tables / "ranks_summary.json", summary))}


def _write_parquet(table: "pd.DataFrame", path: Path) -> None:
    write_atomically(path, lambda file: table.to_parquet(file, index=False))


def facts(suggestion: Suggestion) -> dict[str, Any]:
    """The summary as numbers: what `--json` prints."""
    chosen, evidence = suggestion.chosen, suggestion.evidence
    uniform = suggestion.allocations.get("uniform")
    from_uniform = moved_share(chosen.ranks, uniform.ranks, chosen.targets) if uniform else None
    by_matrix: dict[str, list[int]] = {}
    for target in chosen.targets:
        by_matrix.setdefault(target.matrix, []).append(chosen.ranks[target.name])
    return {
        "criterion": suggestion.criterion,
        "how": chosen.how,
        "gap": chosen.gap,
        "threshold": chosen.threshold,
        "budget": suggestion.budget.text,
        "budget_parameters": suggestion.budget.parameters,
        "parameters": chosen.parameters,
        "bytes": chosen.parameters * BYTES_PER_PARAMETER,
        "matrices": len(chosen.targets),
        "without_adapter": [t.name for t in chosen.targets if chosen.ranks[t.name] == 0],
        "max_lora_rank": max(chosen.ranks.values()),
        "at_cap": list(chosen.capped),
        "by_matrix": {k: {"mean": sum(v) / len(v), "min": min(v), "max": max(v)} for k, v in by_matrix.items()},
        "moved_from_uniform": from_uniform,
        "uniform_parameters": uniform.parameters if uniform else None,
        "delta_energy_held": kept_energy(evidence, "delta", chosen.ranks) if evidence.has("delta") else None,
        "delta_energy_held_by_uniform": (
            kept_energy(evidence, "delta", uniform.ranks) if uniform and evidence.has("delta") else None
        ),
        "disagreement": disagreement(suggestion.allocations).round(4).to_dict(),
        "needed_parameters": needed_parameters(suggestion.curve, suggestion.criterion) if len(suggestion.curve) else {},
        "stability": {name: vars(found) for name, found in suggestion.stabilities.items()},
        "deltas": evidence.deltas,
        "base": {"name": evidence.base_name, "fingerprint": evidence.base_fingerprint},
    }


def lines(suggestion: Suggestion) -> list[str]:
    """The summary in words, a sentence a line."""
    chosen = suggestion.chosen
    numbers = facts(suggestion)
    said = [_heading(suggestion, numbers)]
    for matrix, ranks in numbers["by_matrix"].items():
        least, most, mean = ranks["min"], ranks["max"], f"{ranks['mean']:.1f}"
        sentence = "ranks-of-matrix" if least != most else "ranks-of-matrix-alike"
        said.append("  " + text(sentence, matrix=matrix, least=least, most=most, mean=mean))
    if numbers["without_adapter"]:
        said.append(text("ranks-without", count=len(numbers["without_adapter"])))
    said.append(text("ranks-serve", rank=str(numbers["max_lora_rank"])))
    said += against_uniform(numbers)
    said += _where_criteria_disagree(suggestion.allocations)
    if numbers["at_cap"]:
        said.append(text("ranks-at-cap", count=len(numbers["at_cap"]), first=numbers["at_cap"][0]))
    if chosen.gap > 0:
        said.append(text("ranks-greedy", gap=f"{chosen.gap:.3g}", value=f"{chosen.value or 0:.3g}"))
    said += _what_a_budget_holds(numbers, suggestion.curve)
    said += [found.sentence(between) for between, found in suggestion.stabilities.items()]
    if not suggestion.evidence.has("delta"):
        said.append(text("ranks-without-delta"))
    return said


def _heading(suggestion: Suggestion, numbers: Mapping[str, Any]) -> str:
    chosen, budget = suggestion.chosen, suggestion.budget
    unspent = 1 - chosen.parameters / budget.parameters
    values: dict[str, Any] = {
        "criterion": suggestion.criterion,
        "how": text(f"ranks-how-{re.sub('[^a-z0-9]+', '-', chosen.how)}"),
        "parameters": chosen.parameters,
        "mebibytes": f"{numbers['bytes'] / 2**20:.1f}",
        "budget": budget.text,
        "asked": budget.parameters,
    }
    if unspent < 0.001:
        return text("ranks-heading", **values)
    return text("ranks-heading-unspent", **values, unspent=f"{unspent:.1%}")


def against_uniform(numbers: Mapping[str, Any]) -> list[str]:
    """What the ranks are beside uniform ones of the same cost, and what is to be expected of that; from `facts`."""
    moved = numbers["moved_from_uniform"]
    if moved is None or numbers["criterion"].partition(":")[0] == "uniform":
        return []
    if moved == 0:
        return [text("ranks-uniform")]
    if moved < UNIFORM_WITHIN:
        return [text("ranks-near-uniform", moved=f"{moved:.1%}")]
    said = text("ranks-moved", moved=f"{moved:.0%}")
    own, theirs = numbers["delta_energy_held"], numbers["delta_energy_held_by_uniform"]
    if own is not None and theirs is not None:
        said = text("ranks-moved-energy", moved=f"{moved:.0%}", theirs=f"{theirs:.1%}", own=f"{own:.1%}")
    return [said, *filter(None, [sentence(numbers["criterion"])])]


def _where_criteria_disagree(allocations: Mapping[str, Allocation]) -> list[str]:
    controls = ("uniform", "random", "type")
    names = [name for name in allocations if name.partition(":")[0] not in controls]
    if len(names) < 2:
        return []
    table = disagreement({name: allocations[name] for name in names})
    pairs = [(float(table.loc[a, b]), a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    far, near = max(pairs), min(pairs)
    if far[0] == 0:
        return [text("ranks-all-agree")]
    targets = next(iter(allocations.values())).targets
    spread = {t.name: [allocations[name].ranks[t.name] for name in names] for t in targets}
    widest = max(spread, key=lambda name: max(spread[name]) - min(spread[name]))
    pair = {"one": far[1], "two": far[2], "three": near[1], "four": near[2]}
    shares = {"most": f"{far[0]:.0%}", "least": f"{near[0]:.0%}"}
    return [
        text("ranks-disagree", **pair, **shares, name=widest, low=min(spread[widest]), high=max(spread[widest])),
    ]


def _what_a_budget_holds(numbers: Mapping[str, Any], curve: "pd.DataFrame") -> list[str]:
    needed = numbers["needed_parameters"]
    if not needed or str(curve["quantity"].iloc[0]) != "delta":
        return []
    pieces = [text("ranks-held", share=f"{share:.0%}", parameters=number) for share, number in needed.items()]
    return [text("ranks-budget-holds", pieces=listed(pieces))]


def summary_rows(allocations: Mapping[str, Allocation]) -> list[tuple[str, str, int, float]]:
    """For a table on the terminal: criterion, answer, parameters, share of them elsewhere than with uniform ranks."""
    uniform = allocations.get("uniform")
    found: list[tuple[str, str, int, float]] = []
    for name, allocation in allocations.items():
        word = name.partition(":")[0]
        answer = "mixed" if word in ("type", "mixture") else find(name)[0].answer
        moved = moved_share(allocation.ranks, uniform.ranks, allocation.targets) if uniform else float("nan")
        found.append((name, answer, allocation.parameters, moved))
    return found
