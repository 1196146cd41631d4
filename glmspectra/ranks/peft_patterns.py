r"""Ranks as PEFT's settings: patterns that match one module each, alphas that keep the effective scale.

PEFT matches a pattern's key as `(.*\.)?(key)$` and takes the first that matches, in the order of the file;
so 'dense' would also be 'mlp.dense', and an unescaped '.' anything. Here every key is `^` and the escaped
full name of one module.

The rule for alpha: PEFT multiplies B A by alpha / r, so alpha_i = scale * r_i (rsLoRA: scale * sqrt(r_i))
keeps the scale of every matrix what uniform ranks would have had, whatever its rank.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmspectra.errors import CheckpointError, GlmspectraError, RequestError
from glmspectra.json_files import read_object
from glmspectra.peft_rules import matched_by, module_pattern
from glmspectra.ranks.allocation import Allocation
from glmspectra.ranks.evidence import Evidence
from glmspectra.ranks.suggest import Suggestion

VERSION = 1
DEFAULT_SCALE = 2.0  # the original study's lora_alpha 24 over r 12
ADALORA_START = 1.5  # initial over final budget: Zhang et al. 2023, section 4.1


def scale_of(args: Path) -> tuple[float, bool]:
    """The effective scale that the user's lora_args.json in the folder `args` gives, and whether by rsLoRA's rule.

    It is lora_alpha / r, or over the root of r; the original study's 2 where there is none.
    """
    try:
        found = read_object(args / "lora_args.json")
        rank, alpha, rslora = float(found["r"]), float(found["lora_alpha"]), bool(found.get("use_rslora"))
    except (CheckpointError, ValueError, OverflowError, KeyError, TypeError):
        return DEFAULT_SCALE, False  # `train` says what is wrong with the file; ranks do not depend on it
    if not (0 < rank < math.inf and 0 < alpha < math.inf):
        return DEFAULT_SCALE, False
    return alpha / (math.sqrt(rank) if rslora else rank), rslora


def lora_args(
    allocation: Allocation, evidence: Evidence, scale: float = DEFAULT_SCALE, rslora: bool = False
) -> dict[str, Any]:
    """PEFT's r, lora_alpha, target_modules, rank_pattern and alpha_pattern for the allocation.

    r is the most common rank (every module is in the patterns all the same). Matrices of rank 0 are no
    targets. Raises RequestError when all ranks are 0.
    """
    ranks = {t.module: allocation.ranks[t.name] for t in allocation.targets if allocation.ranks[t.name] > 0}
    if not ranks:
        raise RequestError("every rank is 0: there is nothing to train; raise the budget.")
    values = list(ranks.values())
    common = max(sorted(set(values)), key=values.count)
    rank_pattern = {module_pattern(module): rank for module, rank in ranks.items()}
    alpha_pattern = {module_pattern(module): _alpha(scale, rank, rslora) for module, rank in ranks.items()}
    modules = [target.module for target in evidence.every_matrix]
    verify(rank_pattern, ranks, modules)
    arguments: dict[str, Any] = {
        "r": common,
        "lora_alpha": _alpha(scale, common, rslora),
        "target_modules": target_modules(list(ranks), modules),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_rslora": rslora,  # written either way: the alphas are wrong under the other rule
    }
    return arguments


def _alpha(scale: float, rank: int, rslora: bool) -> int | float:
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    return int(alpha) if float(alpha).is_integer() else alpha


def target_modules(targets: Sequence[str], modules: Sequence[str]) -> list[str] | str:
    """Full names, which PEFT also takes for the ends of longer names.

    One regular expression where that would hit another module.
    """
    chosen = set(targets)
    others = [module for module in modules if module not in chosen]
    if any(other.endswith(f".{target}") for target in targets for other in others):
        return "|".join(re.escape(target) for target in targets)
    return list(targets)


def verify(rank_pattern: Mapping[str, int], ranks: Mapping[str, int], modules: Sequence[str]) -> None:
    """Check that every pattern matches exactly one of all the modules and gives that one its rank.

    Raises:
        GlmspectraError: It does not.
    """
    for pattern, rank in rank_pattern.items():
        found = matched_by(pattern, modules)
        if len(found) != 1 or ranks.get(found[0]) != rank:
            raise GlmspectraError(
                f"the pattern {pattern!r} matches {found or 'nothing'} instead of one module; "
                "please report the model's names."
            )


def adalora_args(allocation: Allocation) -> dict[str, Any]:
    """AdaLoRA's budget: target_r triplets a matrix on average at the end, 1.5 times as many at the start.

    start_ranks: module -> where each begins, in proportion to its suggested rank. PEFT itself starts all at
    init_r and cannot start them apart; glmspectra's training can. init_r is the largest start rank.
    """
    ranks = {t.module: allocation.ranks[t.name] for t in allocation.targets if allocation.ranks[t.name] > 0}
    smallest = {t.module: min(t.rows, t.cols) for t in allocation.targets}
    starts = {module: min(math.ceil(ADALORA_START * rank), smallest[module]) for module, rank in ranks.items()}
    target = max(1, round(sum(ranks.values()) / len(ranks)))
    return {"init_r": max(*starts.values(), target, 1), "target_r": target, "start_ranks": starts}


def ranks_file(
    suggestion: Suggestion, scale: float = DEFAULT_SCALE, rslora: bool = False, criterion: str | None = None
) -> dict[str, Any]:
    """What `train --ranks` takes.

    That is the base's fingerprint, settings for PEFT, and every rank by weight name, 0 included.

    Args:
        suggestion: Whose ranks.
        scale: alpha / r of every matrix.
        rslora: Whether the scale follows rsLoRA's rule, alpha / sqrt(r).
        criterion: One of the suggestion's allocations; None: the chosen one.

    Raises:
        RequestError: All ranks are 0.
    """
    criterion = criterion or suggestion.criterion
    allocation, evidence = suggestion.allocations[criterion], suggestion.evidence
    return {
        "glmspectra_ranks": VERSION,
        "base": {"name": evidence.base_name, "fingerprint": evidence.base_fingerprint},
        "criterion": criterion,
        "budget": {
            "kind": suggestion.budget.unit,
            "text": suggestion.budget.text,
            "parameters": suggestion.budget.parameters,
            "used": allocation.parameters,
        },
        "alpha_rule": f"alpha = {scale:g} * {'sqrt(rank)' if rslora else 'rank'}",
        "lora_args": lora_args(allocation, evidence, scale, rslora),
        "adalora": adalora_args(allocation),
        "ranks": dict(allocation.ranks),
    }
