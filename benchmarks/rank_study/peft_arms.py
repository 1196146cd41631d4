"""Rivals as PEFT itself runs them, one adapter at a time: LoRA, DoRA, PiSSA, EVA and AdaLoRA.

Rows, their order, schedule, optimizer and clipping are those of `many_adapters`. PEFT keeps adapters in float32 beside
the base in bfloat16, where the adapters side by side compute with a copy in bfloat16. `peft-lora` is uniform, trained
so: what the others are held against. Each has its method's own parameters beside the budget's (magnitudes, Lambda),
which its line counts.
"""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from rank_study.bases import Base
from rank_study.beyond import Beyond, measure
from rank_study.many_adapters import SideBySide
from rank_study.plan import Job, line_of
from rank_study.tasks import Rows

SCALE = 2  # alpha over rank, as the study's
ADALORA_START = 1.5  # times the target rank
ADALORA_FIRST, ADALORA_LAST = 0.1, 0.5  # of the steps: before the first, and after the last, ranks stay
EVA_BATCHES = 32  # of training rows, which EVA goes through until its directions stay

_eva: dict[tuple[str, int], dict] = {}  # directions by base's digest and rank: EVA takes them once, then trains


def config_of(arm: str, base: Base, rank: int, steps: int) -> Any:
    from peft import AdaLoraConfig, EvaConfig, LoraConfig

    if arm == "peft-adalora":
        start = round(ADALORA_START * rank)
        return AdaLoraConfig(
            target_r=rank, init_r=start, lora_alpha=SCALE * start, target_modules=base.modules, total_step=steps,
            tinit=round(ADALORA_FIRST * steps), tfinal=round((1 - ADALORA_LAST) * steps), deltaT=5,
        )  # fmt: skip
    more: dict[str, Any] = {
        "peft-lora": {},
        "peft-dora": {"use_dora": True},
        "peft-pissa": {"init_lora_weights": "pissa"},
        "peft-eva": {"init_lora_weights": "eva", "eva_config": EvaConfig()},
    }[arm]
    return LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=base.modules, **more)


def adapted(arm: str, base: Base, rows: Rows, rank: int, steps: int, batch: int) -> Any:
    """PEFT's model around the base, with whatever start its method has."""
    from peft import get_peft_model
    from peft.tuners.lora.eva import get_eva_state_dict, initialize_lora_eva_weights

    model = get_peft_model(base.model, config_of(arm, base, rank, steps))
    if arm == "peft-eva":
        key, device = (base.digest, rank), str(next(base.model.parameters()).device)
        if key not in _eva:
            index = torch.arange(EVA_BATCHES * batch) % len(rows)
            batches = [rows.take(own, device) for own in index.split(batch)]
            known = [{name: one[name] for name in ("input_ids", "attention_mask", "labels")} for one in batches]
            _eva[key] = get_eva_state_dict(model, known, show_progress_bar=False)
        initialize_lora_eva_weights(model, eva_state_dict=_eva[key])
    return model


def train(model: Any, rows: Rows, seed: int, rate: float, steps: int, batch: int, device: str, adalora: bool) -> None:
    """`many_adapters.ManyAdapters.step` over `facts.train_further`'s rows, with torch's own optimizer."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=rate, weight_decay=0.0, fused=device.startswith("cuda"))
    warmup = 0.05
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / steps / warmup, (1 - step / steps) / (1 - warmup), 1.0)
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    while len(order) < steps * batch:
        order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
    for step in range(steps):
        taken = rows.take(order[step * batch : (step + 1) * batch], device)
        loss = model(input_ids=taken["input_ids"], labels=taken["labels"], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        schedule.step()
        if adalora:
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad(set_to_none=True)


def ranks_and_parameters(model: Any, base: Base, arm: str) -> tuple[dict[str, int], int]:
    """Module -> rank at the end, and how many numbers were trained of what is left."""
    layers = {name: base.model.get_submodule(name) for name in base.modules}
    if arm == "peft-adalora":
        ranks = {name: int((layer.lora_E["default"] != 0).sum()) for name, layer in layers.items()}
        sides = {name: layer.in_features + layer.out_features + 1 for name, layer in layers.items()}
        return ranks, sum(rank * sides[name] for name, rank in ranks.items())
    ranks = {name: layer.r["default"] if hasattr(layer, "r") else 0 for name, layer in layers.items()}
    return ranks, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def run_peft(
    base: Base, rows: dict[str, Rows], jobs: Sequence[Job], steps: int, batch: int, beyond: Beyond | None = None
) -> str:
    """Train and measure one job after the other; a line for each."""
    device = str(next(base.model.parameters()).device)
    card = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    results = []
    for job in jobs:
        started = time.perf_counter()
        before = {name: base.model.get_submodule(name).weight.detach().clone() for name in base.modules}
        torch.manual_seed(job.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = adapted(job.arm, base, rows["train"], job.budget, steps, batch)
            try:
                model.train()
                train(model, rows["train"], job.seed, job.rate, steps, batch, device, job.arm == "peft-adalora")
                model.eval()
                one = SideBySide(base.model, 1, device)
                part = rows[job.part]
                loss = float(one.evaluate(part.batches(4 * batch, device))[0])
                answered = beyond is not None and job.part == "test"
                more = measure(one, base, beyond, part, 4 * batch)[0] if answered else {}
                ranks, parameters = ranks_and_parameters(model, base, job.arm)
            finally:
                model.unload()
                base.model.eval()
                for name, weight in before.items():  # PiSSA takes its start off the base
                    base.model.get_submodule(name).weight.data.copy_(weight)
        results.append(
            line_of(
                job, loss=loss, parameters=parameters, adapted=sum(rank > 0 for rank in ranks.values()),
                largest_rank=max(ranks.values()), weights=base.digest, steps=steps,
                seconds_of_group=round(time.perf_counter() - started, 2), jobs_in_group=1, device=card, **more,
            )
        )  # fmt: skip
    return "".join(results)
