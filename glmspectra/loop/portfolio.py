"""Held-out loss chooses the criterion: a pilot cut to what each criterion allocates, forward passes only.

In our study (docs/ranks.md) no criterion won on every model, and this test picked the arm that was best after a whole
training in 23 of 40 cases, no oftener than one criterion taken always; it orders arms better than it picks one. Uniform
ranks are always in the menu, and win where no criterion is surely better than they are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glmspectra.errors import RequestError
from glmspectra.language import listed, text
from glmspectra.ranks.allocation import Allocation
from glmspectra.spectra.lowrank import factor_spectrum

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings

UNIFORM = "uniform"
MENU = (
    UNIFORM,
    "delta-threshold",
    "type:delta-threshold",
    "delta-adamw",
    "delta-tempered",
    "delta-energy",
    "delta-fan",
    "delta-relative",
    "effective-rank",
)
ROWS = 256  # that are held out and looked at, at most


@dataclass(frozen=True)
class Trial:
    """One criterion of the menu.

    Attributes:
        criterion: Its name.
        loss: Nats a token of the pilot cut to its ranks, over held-out rows.
        gap, low, high: Loss of a row less that under uniform ranks: mean over rows and its 95 % interval.
    """

    criterion: str
    loss: float
    gap: float
    low: float
    high: float


@dataclass(frozen=True)
class Portfolio:
    """What the test of a menu found.

    Attributes:
        trials: Of each criterion, the lowest loss first.
        chosen: The lowest loss where it is surely below uniform's, else uniform.
        rows: Held-out rows.
        seconds: Of the test.
        pilot_steps: Training steps that the pilots took, the only training it costs.
    """

    trials: tuple[Trial, ...]
    chosen: str
    rows: int
    seconds: float
    pilot_steps: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        losses = listed(f"{trial.criterion} {trial.loss:.4f}" for trial in self.trials)
        best = self.trials[0]
        interval = {"criterion": best.criterion, "low": f"{best.low:+.4f}", "high": f"{best.high:+.4f}"}
        cost: dict[str, Any] = {"seconds": f"{self.seconds:.1f}", "steps": self.pilot_steps}
        if self.chosen != UNIFORM:
            verdict = text("ranks-menu-won", **interval, **cost, gap=f"{best.gap:+.4f}")
        elif best.criterion != UNIFORM:
            verdict = text("ranks-menu-unsure", **interval, **cost)
        else:
            verdict = text("ranks-menu-uniform", **cost)
        return [text("ranks-menu", rows=self.rows, losses=losses), verdict]


def best_of(losses: Mapping[str, np.ndarray], tokens: np.ndarray) -> tuple[tuple[Trial, ...], str]:
    """Trials and the winner from each criterion's summed loss a row [rows] and the rows' supervised tokens [rows]."""
    from glmspectra.tuning.inference.evaluation import paired_interval

    trials = []
    for name, own in losses.items():
        gap = paired_interval(losses[UNIFORM] / tokens, own / tokens)
        trials.append(Trial(name, float(own.sum() / tokens.sum()), gap["mean"], gap["low"], gap["high"]))
    trials.sort(key=lambda trial: (trial.loss, list(losses).index(trial.criterion)))
    best = trials[0]
    return tuple(trials), best.criterion if best.criterion == UNIFORM or best.high < 0 else UNIFORM


def try_menu(
    settings: "Settings",
    adapter: Path,
    allocations: Mapping[str, Allocation],
    pilot_steps: int,
    device: str = "auto",
    batch_size: int = 8,
) -> Portfolio | None:
    """Cut a pilot's adapter to the ranks of every criterion in MENU and take its loss on held-out rows.

    The model is loaded once; each allocation replaces the adapter's factors by their leading singular directions.

    Args:
        settings: Of the model and the data.
        adapter: The pilot's adapter folder, of one rank on every target.
        allocations: Criterion to ranks, `uniform` among them; all of one budget.
        pilot_steps: Of all pilots, to be told.
        device: As `choose_device` takes it.
        batch_size: Rows at a time.

    Returns:
        None where the settings hold no rows out, so that nothing can be tested.
    """
    from glmspectra.device import choose_device
    from glmspectra.tuning.data.batching import TrainingCollator
    from glmspectra.tuning.inference.evaluation import losses_by_row
    from glmspectra.tuning.model.loading import load_for_settings
    from glmspectra.tuning.model.saved_adapter import load_adapter
    from glmspectra.tuning.training.inputs import load_inputs
    from glmspectra.tuning.training.token_loss import TokenLoss

    inputs = load_inputs(settings, choose_device(device))
    rows = inputs.data.valid
    if rows is None or not len(rows):
        return None
    rows = rows.select(range(min(ROWS, len(rows))))
    started = monotonic()
    model = load_adapter(load_for_settings(settings, inputs.precision, inputs.device), adapter)
    pilot = _Pilot(model)
    token_loss = TokenLoss(model.get_base_model())
    collator = TrainingCollator(inputs.data.collator)
    losses: dict[str, np.ndarray] = {}
    tokens = np.ones(len(rows))
    with inputs.precision.context(inputs.device):
        for name in MENU:
            if name in allocations:
                chosen = allocations[name]
                pilot.cut({target.module: chosen.ranks[target.name] for target in chosen.targets})
                sums = losses_by_row(model, token_loss, rows, collator, batch_size)
                losses[name], tokens = sums[:, 0], np.maximum(sums[:, 1], 1.0)
    trials, winner = best_of(losses, tokens)
    return Portfolio(trials, winner, len(rows), monotonic() - started, pilot_steps)


class _Pilot:
    """The LoRA layers of a loaded pilot with the singular directions of what each changed."""

    def __init__(self, model: Any):
        self.layers: dict[str, Any] = {}
        self.directions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, layer in model.named_modules():
            if "default" in getattr(layer, "lora_A", {}):
                module = name.removeprefix("base_model.model.")
                down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                found = factor_spectrum(up.detach().float().cpu(), down.detach().float().cpu(), vectors=True)
                if found.vectors is not None:
                    root = torch.from_numpy(found.sigma).sqrt()
                    left, right = (torch.from_numpy(side) for side in (found.vectors.left, found.vectors.right))
                    self.layers[module] = layer
                    self.directions[module] = left * root, (right * root).T

    @torch.no_grad()
    def cut(self, ranks: Mapping[str, int]) -> None:
        """Keep the leading directions of each layer, as many as `ranks` (module to rank) says.

        Raises:
            RequestError: The pilot did not train one of the modules.
        """
        if missing := sorted(module for module in ranks if module not in self.layers):
            raise RequestError(f"the pilot did not train {missing[0]}: its ranks cannot be tested on it.")
        for module, layer in self.layers.items():
            up, down = self.directions[module]
            rank = ranks.get(module, 0)
            for parameter in (layer.lora_B["default"].weight, layer.lora_A["default"].weight):
                parameter.zero_()  # a narrow matrix has fewer directions than the pilot's rank
            layer.lora_B["default"].weight[:, :rank] = up[:, :rank].to(layer.lora_B["default"].weight)
            layer.lora_A["default"].weight[:rank] = down[:rank].to(layer.lora_A["default"].weight)
