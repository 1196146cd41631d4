"""What an adapter's changes do to tensors that share their memory: an output layer tied to its embedding."""

from dataclasses import replace
from pathlib import Path

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.config import BASE_REDUCED
from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.errors import CheckpointError


def untie(path: Path, peft_method: str, found: dict[str, TensorChange], base: BaseLayout) -> dict[str, str]:
    """Tied tensors that are no longer what they are tied to -> the base's tensor that they begin as.

    Trained tokens change what is tied to them, and so does what PEFT kept equal (ensure_weight_tying).
    """
    tied = base.tied | {change.name: change.source for change in found.values() if change.name != change.source}
    apart = False
    followed: dict[str, TensorChange] = {}
    for name, source in tied.items():
        _share(path, peft_method, found, name, source)
        one, other = found.get(name), found.get(source)
        # PEFT saves a pair that it keeps tied twice.
        if other is not None and (one.equals(other) if one is not None else other.only_rows):
            found.pop(name, None)
            followed[name] = replace(other, name=name, source=name if name in base.shapes else source)
        elif one is not None or other is not None:
            apart = True
    # A configuration unties all pairs or none: then those that changed alike are written twice too.
    found |= {name: change for name, change in followed.items() if apart or name in base.shapes}
    return tied if apart else {}


def _share(path: Path, peft_method: str, found: dict[str, TensorChange], name: str, source: str) -> None:
    """What PEFT does to the memory that a tied output layer shares with the embedding, before it trains.

    Raises:
        CheckpointError: That cannot be distinguished from the adapter, or PEFT drops one of two changes.
    """
    one, other = found.get(name), found.get(source)
    if one is None or one.factors is None:
        return
    if other is not None and other.rows is not None:
        raise CheckpointError(
            f"{path}: trains single tokens of {source} and factors of {name}, which is tied to it; PEFT runs "
            "such a model with one of the two left out, so that no merged weight is equal to it."
        )
    if peft_method not in (*BASE_REDUCED, "kasa", "loftq"):
        return
    if one.replaced is None:
        raise CheckpointError(
            f"{path}: {peft_method} changed the weight that {name} shares with {source}, and the adapter "
            "does not hold it; save it again with save_embedding_layers=True."
        )
    other = found.setdefault(source, TensorChange(source, source, str(path)))
    other.replaced = one.replaced if other.replaced is None else other.replaced
