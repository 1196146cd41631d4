"""`--find-lr`: a few steps at each of several learning rates.

All begin from the same start and are judged on rows not trained on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import set_seed

from glmspectra.errors import RequestError, TrainingError
from glmspectra.language import text
from glmspectra.tuning.settings.load import Settings
from glmspectra.tuning.training.callbacks import AdaLoraCallback
from glmspectra.tuning.training.run import prepare_run

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass
class RateSearch:
    """The losses of a search for a learning rate.

    A longer run needs a rate no higher than a short one, since it has more steps in which to diverge.

    Attributes:
        steps: of each short run.
        judged: the rows that the loss is of.
        before: that loss at the start.
        rates: the rates tried.
        losses: for each rate the loss on `judged` rows after `steps` steps (None: it diverged).
        best: the rate with the lowest loss.
        advised: the largest rate not above a third of the first that diverged, at most best.
    """

    steps: int
    judged: str
    before: float
    rates: list[float]
    losses: list[float | None]
    best: float
    advised: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        lines = [text("rate-heading", rows=self.judged, steps=self.steps, loss=f"{self.before:.4f}")]
        for rate, loss in zip(self.rates, self.losses, strict=True):
            mark = f"  {text('rate-lowest')}" if rate == self.best else ""
            lines.append(f"  {rate:.0e}  {text('rate-diverged') if loss is None else f'{loss:.4f}'}{mark}")
        if self.best == max(self.rates):
            lines.append(text("rate-higher"))
        lines.append(text("rate-advised", rate=f"{self.advised:g}"))
        return lines


def find_learning_rate(
    settings: Settings,
    device: str = "auto",
    steps: int = 30,
    quiet: bool = False,
    rates: tuple[float, ...] = RATES,
    judged_rows: int = 64,
) -> RateSearch:
    """Train `steps` steps at each rate, warm-up and decay over them as the settings say, and compare.

    Nothing of the run's folder is touched. AdaLoRA keeps its start ranks meanwhile. Raises RequestError when
    every rate diverges or steps is below 2.
    """
    if steps < 2:
        raise RequestError(f"--lr-steps {steps}: write at least 2.")
    losses: list[float | None] = []
    before = math.nan
    with TemporaryDirectory(prefix="glmspectra-rates-") as folder:
        short = _short(settings, Path(folder), steps)
        run = prepare_run(short, device, quiet=True)
        trainer = run.trainer
        trainer.remove_callback(AdaLoraCallback)  # ranks stay as they start
        judged = run.data.valid if run.data.valid is not None else run.data.train
        name = text("rate-judged-valid" if run.data.valid is not None else "rate-judged-train")
        judged = judged.select(range(min(judged_rows, len(judged))))
        start = {n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad}
        for rate in rates:
            with torch.no_grad():
                for parameter_name, parameter in run.model.named_parameters():
                    if parameter_name in start:
                        parameter.copy_(start[parameter_name])
            if math.isnan(before):
                before = trainer.evaluate(judged)["eval_loss"]
            trainer.args.learning_rate = rate
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.watch_anew()
            set_seed(settings.finetune.seed)
            try:
                trainer.train()
                loss = trainer.evaluate(judged)["eval_loss"]
            except TrainingError:
                loss = math.inf
            losses.append(loss if math.isfinite(loss) and loss < 2 * before else None)
    return choose_rate(steps, name, before, list(rates), losses)


def choose_rate(steps: int, judged: str, before: float, rates: list[float], losses: list[float | None]) -> RateSearch:
    """The verdict over measured losses; see `RateSearch`. Raises RequestError when no rate held."""
    held = [(loss, rate) for rate, loss in zip(rates, losses, strict=True) if loss is not None]
    if not held:
        raise RequestError(
            f"every learning rate from {rates[0]:.0e} to {rates[-1]:.0e} diverged; look at the data and the "
            "precision first."
        )
    best = min(held)[1]
    first_bad = next((rate for rate, loss in zip(rates, losses, strict=True) if loss is None), math.inf)
    safe = [rate for _, rate in held if rate <= first_bad / 3 * (1 + 1e-9) and rate <= best]
    return RateSearch(steps, judged, before, rates, losses, best, max(safe, default=best))


def _short(settings: Settings, folder: Path, steps: int) -> Settings:
    """The settings with `steps` steps, nothing saved, evaluated or logged elsewhere."""
    short = settings.model_copy(deep=True)
    values = {
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "logging_steps": float(steps),
    }
    for key, value in values.items():
        setattr(short.train, key, value)
    short.finetune.resume_from_checkpoint = None
    short.finetune.final_model_path = str(folder / "adapter")
    if isinstance(short.lora.tinit, int) or isinstance(short.lora.tfinal, int):
        short.lora.tinit, short.lora.tfinal = 0.1, 0.4
    return short
