"""Second moments of the loss gradient of each weight, from what AdamW left in a checkpoint's `optimizer.pt`.

transformers' Trainer keeps the optimizer's state beside the adapter. AdamW's running mean of the squared gradients of A
and B says, without the model or a row of data, how large dL/dW is by row and by column of W.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmspectra.checkpoint.adapter.adapter import Adapter
from glmspectra.checkpoint.formats.torch_file import load_torch_file
from glmspectra.errors import CheckpointError

OPTIMIZER_FILE = "optimizer.pt"
ADAMW = frozenset({"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
_OTHERS = (  # a key of the state of a parameter, and whose it is
    ("qmap1", "an 8-bit optimizer of bitsandbytes, which keeps rounded blocks"),
    ("state1", "an optimizer of bitsandbytes"),
    ("exp_avg_sq_row", "Adafactor, which keeps sums of rows and columns"),
    ("exp_avg_sq_col", "Adafactor, which keeps sums of rows and columns"),
    ("momentum_buffer", "SGD or Muon, which keep no second moment"),
    ("square_avg", "RMSprop"),
    ("sum", "Adagrad"),
    ("z", "a schedule-free optimizer"),
    ("exp_avg", "Lion, or another that keeps no second moment"),
)
_FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.(?:[^.]+\.)?weight$")


@dataclass(frozen=True)
class SecondMoments:
    """Of dL/dW, for a weight (rows, cols) as its layer multiplies; taken for separable, V_ij = rows_i columns_j.

    Attributes:
        rows: Mean over columns, float64 (rows,).
        columns: The shape over columns, of mean 1, float64 (cols,).
    """

    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def level(self) -> float:
        """The mean over the whole matrix."""
        return float(self.rows.mean())


def optimizer_file(adapter: Path) -> Path | None:
    """The optimizer's state that was saved with an adapter: in its folder, or in the checkpoint-N that it lies in."""
    for folder in (adapter, adapter.parent):
        inside = folder == adapter or folder.name.startswith("checkpoint-")
        if inside and (folder / OPTIMIZER_FILE).is_file():
            return folder / OPTIMIZER_FILE
    return None


def read_moments(adapter: Adapter, file: Path, order: Sequence[str] | None = None) -> dict[str, SecondMoments]:
    """Second moments of the gradient of every weight that a LoRA adapter changes, by the adapter's names.

    Args:
        adapter: Plain LoRA or rsLoRA with nothing trained beside its factors.
        file: Its optimizer.pt, read by torch's restricted unpickler.
        order: The adapter's weights as the model registers its layers, for a file that holds no names of parameters.

    Raises:
        CheckpointError: It is of another optimizer or another adapter, cannot be read safely, or the order of its
            parameters is not known.
    """
    if adapter.peft_method not in ("lora", "rslora") or adapter.whole:
        beside = "what was trained beside its factors" if adapter.whole else f"a method such as {adapter.peft_method}"
        raise CheckpointError(f"{file}: second moments are read of plain LoRA alone, not of {beside}.")
    states, names = _parameters(file)
    if len(states) != 2 * len(adapter.names):
        raise CheckpointError(
            f"{file}: holds the state of {len(states)} parameters, and the adapter {adapter.path} has "
            f"{2 * len(adapter.names)}: they are of different trainings, or more was trained than the adapter holds."
        )
    wanted = _wanted(file, adapter, names, order)
    squares: dict[tuple[str, str], torch.Tensor] = {}
    for (weight, side), state in zip(wanted, states, strict=True):
        own = adapter.own_factors(weight)
        shape = (own.left if side == "B" else own.right).shape
        squares[weight, side] = _second_moment(file, f"lora_{side} of {weight}", state, shape)
    return {name: _of_weight(adapter, name, squares[name, "A"], squares[name, "B"]) for name in adapter.names}


def _parameters(file: Path) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The state of each parameter in the optimizer's order, with AdamW's bias correction, and names where it has any.

    The order is that of the groups, as torch counts them.
    """
    content = _load(file)
    state, groups = content.get("state"), content.get("param_groups")
    if not isinstance(state, dict) or not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        raise CheckpointError(f"{file}: is no state of a torch optimizer: it has no state and param_groups.")
    found: list[Mapping[str, Any]] = []
    names: list[str] = []
    for group in groups:
        betas = group.get("betas")
        for number in group.get("params") or []:
            own = state.get(number)
            if not isinstance(own, dict):
                raise CheckpointError(f"{file}: parameter {number!r} has no state; was it saved before the first step?")
            _refuse_other(file, own)
            if not (isinstance(betas, list | tuple) and len(betas) == 2 and 0 <= float(betas[1]) < 1):
                raise CheckpointError(f"{file}: its betas are {str(betas)[:40]}, which are none of AdamW's.")
            found.append({**own, "beta2": float(betas[1])})
        names += [str(name) for name in group.get("param_names") or []]
    if not found:
        raise CheckpointError(f"{file}: holds the state of no parameter.")
    return found, names if len(names) == len(found) else []


def _refuse_other(file: Path, state: Mapping[str, Any]) -> None:
    if state.keys() <= ADAMW and {"step", "exp_avg_sq"} <= state.keys():
        return
    what = next((said for key, said in _OTHERS if key in state and "exp_avg_sq" not in state), None)
    what = what or f"an optimizer that keeps {', '.join(sorted(map(str, state)))[:80] or 'nothing'}"
    raise CheckpointError(
        f"{file}: is of {what}; AdamW's second moments are read of adamw_torch and its fused variant."
    )


def _wanted(file: Path, adapter: Adapter, names: list[str], order: Sequence[str] | None) -> list[tuple[str, str]]:
    """(weight, 'A' or 'B') of each parameter."""
    if names:
        found = [_FACTOR.match(name) for name in names]
        wanted = [(f"{match['module']}.weight", match["side"]) for match in found if match]
        known = {(name, side) for name in adapter.names for side in "AB"}
        strange = next((n for n, m in zip(names, found, strict=True) if not m), None)
        strange = strange or next((f"{weight}, lora_{side}" for weight, side in wanted if (weight, side) not in known),
                                  None)  # fmt: skip
        if strange is not None or len(set(wanted)) != len(wanted):
            raise CheckpointError(f"{file}: names the parameter {strange or names[0]!r}, which the adapter has not.")
        return wanted
    if order is None:
        raise CheckpointError(
            f"{file}: does not name its parameters, and their order is that of the model's layers: name the base model "
            "too, of an architecture that transformers has."
        )
    return [(name, side) for name in order for side in "AB"]  # PEFT registers A before B


def _second_moment(file: Path, what: str, state: Mapping[str, Any], shape: torch.Size) -> torch.Tensor:
    """Float64 estimate of E[g^2] of one factor, bias corrected (Kingma & Ba 2015)."""
    square, step = state["exp_avg_sq"], state["step"]
    if not isinstance(square, torch.Tensor) or not square.is_floating_point() or square.shape != shape:
        shown = tuple(square.shape) if isinstance(square, torch.Tensor) else type(square).__name__
        raise CheckpointError(f"{file}: the second moment of {what} is {shown}, where the adapter has {tuple(shape)}.")
    count = float(step)
    square = square.double()
    beta2: float = state["beta2"]
    if not (count >= 1 and torch.isfinite(square).all() and (square >= 0).all()):
        raise CheckpointError(f"{file}: the second moment of {what} after {count:g} steps is no mean of squares.")
    corrected: torch.Tensor = square / (1 - beta2**count)
    return corrected


def _of_weight(adapter: Adapter, name: str, of_a: torch.Tensor, of_b: torch.Tensor) -> SecondMoments:
    """From those of A (r, cols) and B (rows, r): dL/dB = s G A^T, dL/dA = s B^T G, with V separable as in Adafactor.

    Shazeer & Stern 2018, Adafactor, section 3, for V; E[(G a)_i^2] = sum_j V_ij a_j^2 for entries that
    do not vary together.
    """
    own = adapter.own_factors(name)
    square = own.right.double().square().mean().clamp(min=1e-30) * own.right.shape[1] * own.scale**2
    columns = of_a.mean(0)
    return SecondMoments(of_b.mean(1) / square, columns / columns.mean().clamp(min=1e-300))


def _load(file: Path) -> Mapping[str, Any]:
    content = load_torch_file(file, "optimizers of torchao, for one, save classes of their own")
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: is no state of an optimizer.")
    return content
