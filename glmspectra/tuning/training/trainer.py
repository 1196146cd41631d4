"""transformers' Trainer with the loss per token and a stop at the first sign of trouble."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from glmspectra.errors import TrainingError
from glmspectra.tuning.data import IGNORED
from glmspectra.tuning.data.batching import REAL_TOKENS
from glmspectra.tuning.model.four_bit import check_layout
from glmspectra.tuning.training.checkpoints import checkpoints
from glmspectra.tuning.training.divergence import ExplosionWatch, StepMeasure
from glmspectra.tuning.training.sampling import EpochSampler
from glmspectra.tuning.training.saving import SavingTrainer
from glmspectra.tuning.training.throughput import Throughput
from glmspectra.tuning.training.token_loss import TokenLoss


class AdapterTrainer(SavingTrainer):
    """Trains the adapter of a PEFT model.

    Losses are sums over supervised tokens divided by their number over all micro-batches and processes of a
    step, so that accumulation and data parallelism change no number. `adapter` is the adapter's name, `base_name`
    what the model card calls the base.
    """

    def __init__(
        self, *, adapter: str, token_loss: TokenLoss, throughput: Throughput, base_name: str, **arguments: Any
    ):
        super().__init__(adapter=adapter, base_name=base_name, **arguments)
        self.token_loss = token_loss
        self.throughput = throughput
        self.watch_anew()
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the number of tokens itself
        self._orthogonality = 0.0
        self._look_later = self.args.device.type == "cuda"
        # A loss that is not finite ends the run, so that none needs to be filtered, and waited for, at every step.
        self.args.logging_nan_inf_filter = False

    def watch_anew(self) -> None:
        """Forget the losses so far, for a training that begins from the start again."""
        self.explosion = ExplosionWatch(self.token_loss.causal_lm.config.vocab_size)
        self._unchecked: list[StepMeasure] = []

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        strategy = str(getattr(self.args.train_sampling_strategy, "value", self.args.train_sampling_strategy))
        self.sampler = EpochSampler(rows["length"], batch * self.args.world_size, self.args.seed, strategy)
        return self.sampler

    # Loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Supervised tokens of a step over all its micro-batches and all processes: int64 scalar."""
        if not batch_samples:
            return None
        count = torch.stack([batch["labels"][:, 1:].ne(IGNORED).sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.reduce(count, reduction="sum")
        return count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        real = inputs.pop(REAL_TOKENS, None)
        if self.model.training:
            self.throughput.count(real, inputs["input_ids"])
        losses = self.token_loss(model, inputs)
        count = losses.nll.numel() if num_items_in_batch is None else num_items_in_batch
        # Data parallelism averages gradients over processes; the factor makes that the sum it should be.
        loss = losses.nll.sum() / count * self.accelerator.num_processes
        if self.allocator is not None and self.model.training:
            weight = self.allocator.peft_config.orth_reg_weight / self.current_gradient_accumulation_steps
            penalty = weight * self.allocator.orthogonality()
            self._orthogonality = penalty.detach()
            loss = loss + penalty
        return (loss, {"nll": losses.nll}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward; the plain loss is returned. Stops at what is not finite.

        On a GPU that is looked at one micro-batch later, when the numbers have arrived by themselves, but always before
        anything is logged, evaluated or saved.
        """
        loss = super().training_step(model, inputs, num_items_in_batch) - self._orthogonality
        complete = self.model if self.accelerator.sync_gradients else None
        self._unchecked.append(StepMeasure(self.state.global_step + 1, loss, complete))
        self._check_steps(waiting=1 if self._look_later and self._loss_scale() is None else 0)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._check_steps()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._check_steps()
        return super()._finalize_training(*args, **kwargs)

    def _check_steps(self, waiting: int = 0) -> None:
        """Stop at the first step that went wrong, of all but the last `waiting` micro-batches."""
        while len(self._unchecked) > waiting:
            self._check_step(self._unchecked.pop(0))

    def _check_step(self, done: StepMeasure) -> None:
        if not math.isfinite(done.loss):
            raise TrainingError(
                f"the loss is {done.loss} at step {done.step}; {self._last_good()} Lower learning_rate, or look at the "
                "batch."
            )
        if not done.complete:
            return
        found = done.first_non_finite()
        scale = self._loss_scale()
        # A gradient above float16's range at this loss scale: the step is skipped and the scale halved.
        overflow = scale is not None and scale >= 1.0
        if found is not None and not overflow:
            name, bad, total = found
            raise TrainingError(
                f"the gradient of {name} is not finite at step {done.step} (so are those of {bad} of {total} adapter "
                f"tensors; backward reached this one first); {self._last_good()}"
            )
        if self.explosion.exploded(done.loss):
            raise TrainingError(
                f"the loss has exploded: {self.explosion.recent:.2f} on average over the last "
                f"{self.explosion.window} steps up to step {done.step}, after {self.explosion.lowest:.2f} before; "
                f"{self._last_good()} Lower learning_rate or raise warmup_steps."
            )

    def _loss_scale(self) -> float | None:
        """float16's loss scale, None without one."""
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler.get_scale() if scaler is not None and scaler.is_enabled() else None

    def _last_good(self) -> str:
        found = checkpoints(Path(self.args.output_dir))
        if found:
            return f"the last good checkpoint is {found[-1]}."
        return "no checkpoint had been saved."

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss, perplexity and token accuracy over all supervised tokens, whatever their batch."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        rows = 0
        for batch in dataloader:
            inputs = dict(self._prepare_inputs(batch))
            inputs.pop(REAL_TOKENS, None)
            with torch.no_grad():
                losses = self.token_loss(model, inputs)
            by_row = torch.zeros(len(inputs["labels"]), 3, device=losses.nll.device)
            values = torch.stack((losses.nll, torch.ones_like(losses.nll), losses.correct.float()), -1)
            by_row.index_add_(0, losses.rows, values)
            # Rows that a sampler repeated to fill the last batch of all processes are left out by this.
            gathered = self.accelerator.gather_for_metrics(by_row)
            sums += gathered.double().sum(0).cpu()
            rows += len(gathered)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.device.type == "cpu" and getattr(self.token_loss.causal_lm, "is_loaded_in_4bit", False):
            check_layout(self.model)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in token_metrics(*sums.tolist()).items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=rows)  # type: ignore[arg-type]

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.throughput.measure(time.perf_counter())
            if self.allocator is not None:
                logs["orthogonality"] = float(self._orthogonality)
                logs["rank_sum"] = sum(self.allocator.ranks().values())
        if "train_loss" in logs:
            # The sum is over all steps of the run, and some versions divide it by those since it was resumed.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    # Optimizer

    def create_optimizer(self, *args: Any, **arguments: Any) -> Any:
        """The Trainer's, with torch's `param_names` in its groups, so that optimizer.pt says whose moments it holds."""
        optimizer = super().create_optimizer(*args, **arguments)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = optimizer.param_groups
        if all(id(parameter) in names for group in groups for parameter in group["params"]):  # not under FSDP
            for group in groups:
                group["param_names"] = [names[id(parameter)] for parameter in group["params"]]
        return optimizer


def token_metrics(nll: float, tokens: float, correct: float) -> dict[str, float]:
    """Mean loss in nats a token, perplexity, accuracy and number of tokens.

    Perplexity is exp of the loss; accuracy the share of tokens that were the most likely one.
    """
    mean = nll / tokens if tokens else math.nan
    return {
        "loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
        "token_accuracy": correct / tokens if tokens else math.nan,
        "tokens": int(tokens),
    }
