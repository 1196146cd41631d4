"""Rules on suggested ranks."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from glmspectra.figures.findings.evidence import Evidence
from glmspectra.figures.findings.rule import Finding, Rule, Typical
from glmspectra.figures.rank_tables import costs_of, is_control, moved_share, ranks_by_weight
from glmspectra.figures.words import number, percent, signed
from glmspectra.language import Words

LEAST_GAP = 0.5  # directions between matrix types; less is no difference worth a word
_AT = "#map?set=ranks&map=difference"


def _wide(evidence: Evidence) -> tuple[pd.DataFrame, str] | None:
    """Ranks by weight and criterion beside the matrix names, and the chosen criterion; None without ranks."""
    if not len(evidence.ranks):
        return None
    return ranks_by_weight(evidence.ranks), str(evidence.ranks["criterion"].iloc[0])


def _costs(evidence: Evidence) -> "pd.Series | None":
    for tables in evidence.sets.values():
        rows = tables.matrices.drop_duplicates("name").set_index("name")
        return rows["rows"].astype(float) + rows["cols"].astype(float)
    return None


def _moved(evidence: Evidence, wide: pd.DataFrame, chosen: str) -> float | None:
    cost = costs_of(wide.index, _costs(evidence))
    return None if cost is None else moved_share(wide[chosen], wide["uniform"], cost)


def near_uniform(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Ranks that are nearly uniform, so that nothing is to be expected of them."""
    found = _wide(evidence)
    if found is None or "uniform" not in found[0] or found[1] == "uniform":
        return
    moved = _moved(evidence, *found)
    if moved is not None and moved < rule.threshold:
        yield rule.says(
            percent(moved, 2), rule.threshold / max(moved, rule.threshold / 9), _AT, share=percent(moved, 2)
        )


def far_from_uniform(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """How much is elsewhere than with uniform ranks, and which matrix type got most and least."""
    found = _wide(evidence)
    if found is None or "uniform" not in found[0] or found[1] == "uniform":
        return
    wide, chosen = found
    moved = _moved(evidence, wide, chosen)
    if moved is None or moved < rule.threshold:
        return
    gained, variant = (wide[chosen] - wide["uniform"]).groupby(wide["matrix"]).mean(), ""
    if float(gained.max() - gained.min()) < LEAST_GAP and wide["layer"].notna().any():
        # One matrix type, or all alike: what differs is the layers.
        gained, variant = (wide[chosen] - wide["uniform"]).groupby(wide["layer"].astype("Int64")).mean(), "-layers"
    values: dict[str, Any] = {
        "share": percent(moved, 2),
        "criterion": chosen,
        "most": str(gained.idxmax()),
        "least": str(gained.idxmin()),
    }
    values |= {"plus": signed(float(gained.max()), 1), "minus": signed(float(gained.min()), 1)}
    yield rule.says(percent(moved, 2), moved / rule.threshold, _AT, variant=variant, **values)


def left_out(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """Matrices that get no adapter."""
    found = _wide(evidence)
    if found is None:
        return
    wide, chosen = found
    none = wide[wide[chosen] == 0]
    if len(none) >= rule.threshold:
        types = ", ".join(dict.fromkeys(none["matrix"].astype(str)))
        values: dict[str, Any] = {
            "count": len(none),
            "all": str(len(wide)),
            "types": Words(types, types.replace(", ", "、")),
        }
        yield rule.says(f"{len(none)} / {len(wide)}", 1 + len(none) / len(wide), "#map?set=ranks&map=chosen", **values)


def criteria_disagree(evidence: Evidence, rule: Rule) -> Iterable[Finding]:
    """The matrix on which the criteria differ most; controls left out."""
    found = _wide(evidence)
    if found is None:
        return
    wide = found[0]
    names = [name for name in wide.columns if name not in ("layer", "matrix") and not is_control(name)]
    if len(names) < 2:
        return
    ranks = wide[names].astype(float)
    spread = ranks.max(axis=1) - ranks.min(axis=1)
    typical = float(spread.median()) / max(float(ranks.mean(axis=1).median()), 1e-9)
    if typical < rule.threshold:
        return
    weight = spread.idxmax()
    row, low, high = ranks.loc[weight], str(ranks.loc[weight].idxmin()), str(ranks.loc[weight].idxmax())
    at = wide.loc[weight]
    values: dict[str, Any] = {"matrix": str(at["matrix"]), "layer": str(at["layer"]), "low": low, "high": high}
    values |= {"least": str(int(row.min())), "most": str(int(row.max())), "median": f"{float(spread.median()):g}"}
    yield rule.says(values["least"] + " – " + values["most"], typical / rule.threshold, "#criteria", **values)


def rank_range(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """What the budget gives: least, median and largest rank, and the matrix type with most."""
    found = _wide(evidence)
    if found is None or len(found[0]) < 2:
        return
    wide, chosen = found
    ranks = wide[chosen].astype(float)
    values: dict[str, Any] = {"low": number(ranks.min()), "median": number(ranks.median()), "high": number(ranks.max())}
    values |= {"criterion": chosen, "all": str(len(ranks))}
    means = ranks.groupby(wide["matrix"]).mean()
    variant = "" if float(means.max()) > float(means.min()) else "-alike"
    values |= {"most": str(means.idxmax()), "mean": number(float(means.max()))}
    shown = f"{values['low']} – {values['high']}"
    yield rule.says(shown, "#map?set=ranks&map=chosen", variant=variant, **values)


def rank_cost(evidence: Evidence, rule: Typical) -> Iterable[Finding]:
    """What the ranks cost, and how much of it that is beside uniform ranks."""
    found, costs = _wide(evidence), _costs(evidence)
    if found is None or costs is None:
        return
    wide, chosen = found
    cost = costs_of(wide.index, costs)
    if cost is None:
        return
    spent = float((wide[chosen] * cost).sum())
    values: dict[str, Any] = {"parameters": f"{spent:,.0f}", "criterion": chosen}
    variant = ""
    if chosen != "uniform" and "uniform" in wide:
        uniform = float((wide["uniform"] * cost).sum())
        if uniform > 0:
            variant = "-uniform"
            values |= {"share": percent(spent / uniform), "other": f"{uniform:,.0f}"}
    yield rule.says(values.get("share", values["parameters"]), "#criteria", variant=variant, **values)
