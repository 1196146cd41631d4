"""What `suggest-rank` writes and says: the ranks file, exports, tables, and the summary in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.files import make_folder, write_atomically, write_text
from glmspectra.json_files import write_json
from glmspectra.ranks.allocation import Allocation
from glmspectra.ranks.budget import BYTES_PER_PARAMETER
from glmspectra.ranks.criteria import find
from glmspectra.ranks.exports import export
from glmspectra.ranks.peft_form import ranks_file
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

WITHOUT_DELTA = (
    "No change of the weights was given. What a short pilot changes gave better ranks than uniform on both models of "
    "our study; the base's effective rank got a sixth to two thirds of that on one and nothing on the other: "
    "`--pilot 80` trains one, `--delta` takes an earlier training's."
)


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
    exported = [export(kind, folder, arguments, suggestion.chosen, evidence) for kind in request.exports]
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
    by_kind: dict[str, list[int]] = {}
    for target in chosen.targets:
        by_kind.setdefault(target.matrix, []).append(chosen.ranks[target.name])
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
        "by_matrix": {k: {"mean": sum(v) / len(v), "min": min(v), "max": max(v)} for k, v in by_kind.items()},
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
    for kind, ranks in numbers["by_matrix"].items():
        said.append(f"  {kind}: rank {ranks['min']} to {ranks['max']}, {ranks['mean']:.1f} on average")
    if numbers["without_adapter"]:
        said.append(
            f"Rank 0, so no adapter and not in target_modules: {len(numbers['without_adapter'])} of the matrices."
        )
    said.append(f"Serve the adapter with a max_lora_rank of {numbers['max_lora_rank']} or more (vLLM, TensorRT-LLM).")
    said += against_uniform(numbers)
    said += _where_criteria_disagree(suggestion.allocations)
    if numbers["at_cap"]:
        said.append(
            f"At all the directions that the tables know of: {len(numbers['at_cap'])} of the matrices (such as "
            f"{numbers['at_cap'][0]}); a pilot of a larger rank might give them more."
        )
    if chosen.gap > 0:
        said.append(f"Greedy: at most {chosen.gap:.3g} of {chosen.value or 0:.3g} may be missing to the optimum.")
    said += _what_a_budget_holds(numbers, suggestion.curve)
    said += [found.sentence(f"{found.pilots} {name}") for name, found in suggestion.stabilities.items()]
    if not suggestion.evidence.has("delta"):
        said.append(WITHOUT_DELTA)
    return said


def _heading(suggestion: Suggestion, numbers: Mapping[str, Any]) -> str:
    chosen, budget = suggestion.chosen, suggestion.budget
    unspent = 1 - chosen.parameters / budget.parameters
    rest = f", {unspent:.1%} of the budget is not spent" if unspent >= 0.001 else ""
    return (
        f"Ranks by {suggestion.criterion} ({chosen.how}): {chosen.parameters:,} trainable parameters, "
        f"{numbers['bytes'] / 2**20:.1f} MiB in float32, for {budget.text} = {budget.parameters:,}{rest}."
    )


def against_uniform(numbers: Mapping[str, Any]) -> list[str]:
    """What the ranks are beside uniform ones of the same cost, and what is to be expected of that; from `facts`."""
    moved = numbers["moved_from_uniform"]
    if moved is None or numbers["criterion"].partition(":")[0] == "uniform":
        return []
    if moved == 0:
        return ["These are uniform ranks: the criterion changes nothing at this budget, so take a plain r."]
    if moved < UNIFORM_WITHIN:
        return [
            f"Only {moved:.1%} of the parameters are elsewhere than with uniform ranks: expect no difference, "
            "and prefer a plain r."
        ]
    said = f"{moved:.0%} of the parameters are elsewhere than with uniform ranks"
    own, theirs = numbers["delta_energy_held"], numbers["delta_energy_held_by_uniform"]
    if own is not None and theirs is not None:
        said += f", which hold {theirs:.1%} of the energy of delta-W at this cost where these hold {own:.1%}"
    return [f"{said}.", *filter(None, [sentence(numbers["criterion"])])]


def _where_criteria_disagree(allocations: Mapping[str, Allocation]) -> list[str]:
    controls = ("uniform", "random", "type")
    names = [name for name in allocations if name.partition(":")[0] not in controls]
    if len(names) < 2:
        return []
    table = disagreement({name: allocations[name] for name in names})
    pairs = [(float(table.loc[a, b]), a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    far, near = max(pairs), min(pairs)
    if far[0] == 0:
        return ["All criteria give the same ranks: limits and budget leave them no choice."]
    targets = next(iter(allocations.values())).targets
    spread = {t.name: [allocations[name].ranks[t.name] for name in names] for t in targets}
    widest = max(spread, key=lambda name: max(spread[name]) - min(spread[name]))
    return [
        f"Criteria disagree most between {far[1]} and {far[2]} ({far[0]:.0%} of the parameters), least between "
        f"{near[1]} and {near[2]} ({near[0]:.0%}); on {widest} they say {min(spread[widest])} "
        f"to {max(spread[widest])}.",
    ]


def _what_a_budget_holds(numbers: Mapping[str, Any], curve: "pd.DataFrame") -> list[str]:
    needed = numbers["needed_parameters"]
    if not needed or str(curve["quantity"].iloc[0]) != "delta":
        return []
    pieces = [f"{share:.0%} at {parameters:,}" for share, parameters in needed.items()]
    return [f"Energy of delta-W that a budget holds: {', '.join(pieces)} parameters."]


def summary_rows(allocations: Mapping[str, Allocation]) -> list[tuple[str, str, int, float]]:
    """For a table on the terminal: criterion, kind, parameters, share of them elsewhere than with uniform ranks."""
    uniform = allocations.get("uniform")
    found: list[tuple[str, str, int, float]] = []
    for name, allocation in allocations.items():
        word = name.partition(":")[0]
        kind = "mixed" if word in ("type", "mixture") else find(name)[0].kind
        moved = moved_share(allocation.ranks, uniform.ranks, allocation.targets) if uniform else float("nan")
        found.append((name, kind, allocation.parameters, moved))
    return found
