"""AdaLoRA with a start rank for each matrix, exact budgets, a plain loss, and a state that training resumes from.

The layers and the file format are PEFT's; what it saves loads in plain PEFT. Of PEFT's allocator four things
are changed, each because it does not do what it says (Zhang et al. 2023, "Adaptive budget allocation for
parameter-efficient fine-tuning", https://arxiv.org/abs/2303.10512; equations 5 to 9 and algorithm 1):

- Every matrix starts at `init_r` there. Here a mask holds the triplets beyond a matrix's own start rank at
  zero. PEFT divides by `ranknum`, which it sets to `init_r` everywhere when it loads, so `init_r` stays the
  largest start rank.
- It prunes every triplet at or below a threshold, so ties empty the adapter. Here exactly `budget` triplets
  are kept.
- Its importance averages live in memory only, and its files hold pruned matrices, so a run cannot go on from
  them.
- It adds the orthogonality term to every loss that the model computes, evaluation's as well. Here the trainer
  computes the loss, and adds `orthogonality()` in training alone.

PEFT's AdaLoraModel has its allocator as an attribute: ours takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora import AdaLoraModel, RankAllocator
from peft.tuners.adalora.layer import AdaLoraLayer
from transformers import PreTrainedModel

from glmspectra.errors import ConfigError, TrainingError

STATE_FILE = "adalora_state.pt"
HISTORY_FILE = "rank_history.jsonl"  # lines {"step": N, "ranks": {module: rank}}


class MaskedRankAllocator(RankAllocator):
    """PEFT's allocator (schedule and importance) with start masks and an exact budget.

    start_ranks: matrix name (`layers.0.attention.query_key_value` as `named_modules` of the bare model says
    it) -> the number of triplets it may ever have, 0 to init_r.
    """

    def __init__(
        self, model: torch.nn.Module, peft_config: AdaLoraConfig, adapter: str, start_ranks: Mapping[str, int]
    ):
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, AdaLoraLayer) and adapter in module.lora_E
        }
        self.start = {
            name: _first(module.lora_E[adapter].shape[0], start_ranks.get(name)) for name, module in self.layers.items()
        }
        self.kept = {name: mask.clone() for name, mask in self.start.items()}
        super().__init__(model, peft_config, adapter)
        self.model = model
        self.init_bgt = sum(int(mask.sum()) for mask in self.start.values())
        self.target_bgt = min(self.target_bgt, self.init_bgt)
        assert peft_config.total_step is not None  # AdaLoraConfig refuses None
        self.final_mask_step = peft_config.total_step - peft_config.tfinal

    def ranks(self) -> dict[str, int]:
        """Triplets that each matrix may use now."""
        return {name: int(mask.sum()) for name, mask in self.kept.items()}

    def triplets(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(A [r, in], E [r, 1], B [out, r]) of a matrix."""
        layer = self.layers[name]
        adapter = self.adapter_name
        factors: tuple[Any, Any, Any] = layer.lora_A[adapter], layer.lora_E[adapter], layer.lora_B[adapter]
        return factors

    def scores(self) -> dict[str, torch.Tensor]:
        """Importance of each triplet.

        Equation 6: that of E plus the means of those of its row of A and column of B.
        """
        scores = {}
        for name in self.layers:
            a, e, b = (self._element_score(f"{name}.lora_{part}.{self.adapter_name}") for part in "AEB")
            scores[name] = e.view(-1) + a.mean(dim=1) + b.mean(dim=0)
        return scores

    def mask_to_budget(self, model: torch.nn.Module, budget: int) -> dict[str, list[bool]]:
        """Keep the `budget` most important triplets of those that a matrix started with; ties go to the earlier one."""
        scores = self.scores()
        flat = torch.cat([scores[name].double() for name in self.layers]).cpu()
        allowed = torch.cat([self.start[name] for name in self.layers])
        flat = torch.where(allowed, flat, torch.full_like(flat, -1.0))  # a score is never negative
        order = torch.argsort(flat, descending=True, stable=True)
        keep = torch.zeros_like(allowed)
        keep[order[:budget]] = True
        sizes = [len(self.start[name]) for name in self.layers]
        self.kept = dict(zip(self.layers, keep.split(sizes), strict=True))
        self._zero_outside(self.kept)
        return {f"{name}.lora_E.{self.adapter_name}": mask.tolist() for name, mask in self.kept.items()}

    def allocate(self, step: int) -> bool:
        """Update the importance and set E of pruned triplets to zero; returns whether an allocation took place.

        To be called after the optimizer's step number `step` (from 1), before gradients are cleared.
        """
        config = self.peft_config
        if step > self.final_mask_step:
            self._zero_outside(self.kept)
            return False
        gradients = [parameter.grad for name in self.layers for parameter in self.triplets(name)]
        if any(gradient is None for gradient in gradients):
            raise TrainingError(
                "AdaLoRA's allocation found matrices without a gradient: it must run after backward and before "
                "gradients are cleared, and every adapted matrix must take part in the loss."
            )
        # Under fp16 a step whose gradients overflowed is skipped by the scaler; it says nothing about
        # importance.
        if all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
            self.update_ipt(self.model)
        budget, due = self.budget_schedule(step)
        due = due or step == self.final_mask_step
        if step == self.final_mask_step:
            budget = self.target_bgt
        if not due or budget >= self.init_bgt:
            self._zero_outside(self.start)
            return False
        if not self.exp_avg_ipt:
            raise TrainingError(f"AdaLoRA has to prune at step {step}, and no step before had finite gradients.")
        config.rank_pattern = self.mask_to_budget(self.model, budget)
        self._check_pruned(step, budget)
        return True

    def _check_pruned(self, step: int, budget: int) -> None:
        left = sum(int(torch.count_nonzero(self.triplets(name)[1])) for name in self.layers)
        kept = sum(self.ranks().values())
        if left > budget or kept != budget:
            raise TrainingError(
                f"AdaLoRA should have pruned to {budget} triplets at step {step} and did not: {kept} are allowed and "
                f"{left} are not zero of {self.init_bgt} at the start."
            )

    def _zero_outside(self, masks: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                e = self.triplets(name)[1]
                e.masked_fill_(~mask.to(e.device)[:, None], 0.0)

    def orthogonality(self) -> torch.Tensor:
        """Mean over all A and B of |A A^T - I|_F and |B^T B - I|_F (equation 4).

        Over the triplets a matrix may have.
        """
        terms = []
        for name, mask in self.start.items():
            a, _, b = self.triplets(name)
            rank = int(mask.sum())
            for covariance in (a[:rank] @ a[:rank].T, b[:, :rank].T @ b[:, :rank]):
                terms.append(torch.linalg.matrix_norm(covariance - torch.eye(rank, device=a.device, dtype=a.dtype)))
        return torch.stack(terms).mean()

    def describe_for_saving(self) -> None:
        """Make the configuration say which triplets are not zero now.

        So what PEFT saves gives equal logits at any step (between two allocations pruned triplets may have grown
        again).
        """
        self.peft_config.rank_pattern = {
            f"{name}.lora_E.{self.adapter_name}": (self.triplets(name)[1].detach() != 0).view(-1).tolist()
            for name in self.layers
        }

    # What a resumed run needs beside the optimizer: the unpruned triplets and the importance averages.

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU: {"triplets": {name: (A, E, B)}, "kept", "start": masks, "exp_avg_ipt", "exp_avg_unc"}."""
        return {
            "triplets": {name: tuple(p.detach().cpu().clone() for p in self.triplets(name)) for name in self.layers},
            "kept": self.kept,
            "start": self.start,
            "exp_avg_ipt": {name: value.cpu() for name, value in self.exp_avg_ipt.items()},
            "exp_avg_unc": {name: value.cpu() for name, value in self.exp_avg_unc.items()},
            "total_step": self.peft_config.total_step,
        }

    def load_state_dict(self, state: Mapping[str, Any], where: Path) -> None:
        """Go on from `state_dict()`.

        Raises TrainingError when it is of other matrices or another schedule.
        """
        same = state["triplets"].keys() == self.layers.keys() and all(
            torch.equal(mask, self.start[name]) for name, mask in state["start"].items()
        )
        if not same or state["total_step"] != self.peft_config.total_step:
            raise TrainingError(
                f"{where}: this checkpoint was trained with other target modules, start ranks or number of steps "
                "than the settings ask for; resume with the settings saved beside it (resolved_args/)."
            )
        with torch.no_grad():
            for name, saved in state["triplets"].items():
                for parameter, value in zip(self.triplets(name), saved, strict=True):
                    parameter.copy_(value)
        self.kept = dict(state["kept"])
        devices = {
            n: self.layers[n.rpartition(".lora_")[0]].lora_E[self.adapter_name].device for n in state["exp_avg_ipt"]
        }
        self.ipt = {}
        self.exp_avg_ipt = {name: value.to(devices[name]) for name, value in state["exp_avg_ipt"].items()}
        self.exp_avg_unc = {name: value.to(devices[name]) for name, value in state["exp_avg_unc"].items()}
        self.ipt = {name: torch.zeros_like(value) for name, value in self.exp_avg_ipt.items()}


def add_adalora(
    model: PreTrainedModel,
    config: AdaLoraConfig,
    adapter: str = "default",
    start_ranks: Mapping[str, int] | None = None,
) -> PeftModel:
    """Wrap a causal language model with AdaLoRA.

    start_ranks: module name of `model` -> start rank; matrices not named start at `config.init_r`. Raises
    ConfigError when a name is no adapted matrix, a rank lies outside 0..init_r, or the target is above what
    there is to prune.
    """
    start_ranks = dict(start_ranks or {})
    wrapped = get_peft_model(model, config, adapter_name=adapter, autocast_adapter_dtype=True)
    tuner: AdaLoraModel = wrapped.base_model  # type: ignore[assignment]
    adapted = {name for name, module in tuner.model.named_modules() if isinstance(module, AdaLoraLayer)}
    for name, rank in start_ranks.items():
        if name not in adapted:
            raise ConfigError(
                f"start_ranks names {name}, which AdaLoRA does not adapt; it adapts {len(adapted)} matrices, "
                f"{min(adapted)} to {max(adapted)}."
            )
        if not 0 <= rank <= config.init_r:
            raise ConfigError(
                f"start_ranks gives {name} rank {rank}; init_r must be the largest start rank, and is {config.init_r}."
            )
    allocator = MaskedRankAllocator(tuner.model, config, adapter, start_ranks)
    if config.target_r * len(adapted) > allocator.init_bgt:
        raise ConfigError(
            f"target_r {config.target_r} on {len(adapted)} matrices asks for "
            f"{config.target_r * len(adapted)} triplets at the "
            f"end, and the start ranks give only {allocator.init_bgt}; lower target_r or raise the start "
            "ranks."
        )
    tuner.rankallocator = allocator
    return wrapped


def allocator_of(model: PeftModel) -> MaskedRankAllocator | None:
    """The allocator of a model that `add_adalora` wrapped, or None for every other one."""
    allocator = getattr(model.base_model, "rankallocator", None)
    return allocator if isinstance(allocator, MaskedRankAllocator) else None


def _first(length: int, rank: int | None) -> torch.Tensor:
    """Mask [length] of bool, true in the first `rank` entries (all of them for None)."""
    return torch.arange(length) < (length if rank is None else rank)
