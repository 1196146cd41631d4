"""Many LoRA adapters trained at once on one frozen base.

A study of ranks needs hundreds of short runs of one model. Run one by one they leave a GPU mostly idle; here J jobs
share every pass through the frozen weights. Job j owns rows j*b .. (j+1)*b of the batch, its own A_j and B_j in every
adapted layer, its own learning rate and its own gradient clipping, so that nothing but the frozen weights is shared; a
test holds one job of J against the same job run alone and against PEFT. A rank below the common width R is a mask over
directions:

    y = x W^T + scale * ((x A_j^T) * mask_j) B_j^T          A_j: (R, in), B_j: (out, R), mask_j: (R,)

Notation: J jobs, b rows a job, s positions, R the largest rank.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from torch.nn import functional as F


class ManyLoraLinear(nn.Module):
    """A frozen linear layer with J adapters, one for each block of rows of its input."""

    def __init__(
        self,
        base: nn.Linear,
        ranks: torch.Tensor,
        seeds: list[int],
        name: str,
        scale: float,
        starts: dict[int, torch.Tensor] | None = None,
    ):
        super().__init__()
        jobs, width = len(seeds), max(1, int(ranks.max()))
        self.base, self.scale = base, scale
        device = base.weight.device
        down = torch.stack([initial_down(name, seed, width, base.in_features) for seed in seeds])
        for job, start in (starts or {}).items():  # (at least the job's rank, in): its first rows are taken
            down[job, : int(ranks[job])] = start[: int(ranks[job])]
        self.down = nn.Parameter(down.to(device))  # A: (J, R, in)
        self.up = nn.Parameter(torch.zeros(jobs, base.out_features, width, device=device))  # B: (J, out, R)
        mask = (torch.arange(width)[None, :] < ranks[:, None]).float()
        self.register_buffer("mask", mask.to(device), persistent=False)  # (J, R)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (J*b, s, in) -> (J*b, s, out)
        jobs = self.down.shape[0]
        rows = x.reshape(jobs, -1, x.shape[-1])  # (J, b*s, in)
        down = (self.down * self.mask[:, :, None]).to(x.dtype)
        low = torch.bmm(rows, down.transpose(1, 2))  # (J, b*s, R)
        change = torch.bmm(low, self.up.to(x.dtype).transpose(1, 2))  # (J, b*s, out)
        return self.base(x) + self.scale * change.view(*x.shape[:-1], -1)


def initial_down(name: str, seed: int, width: int, columns: int) -> torch.Tensor:
    """A's start, (width, columns): PEFT's kaiming_uniform(a=sqrt(5)), that is U(-1/sqrt(in), 1/sqrt(in)).

    Direction i does not depend on the width, so that jobs of one seed start alike whatever their ranks.
    """
    generator = torch.Generator().manual_seed(
        seed * 1_000_003 + sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31
    )
    bound = columns**-0.5
    return torch.stack([torch.rand(columns, generator=generator) * 2 * bound - bound for _ in range(width)])


class ManyAdapters:
    """Puts J adapters on the named linear layers of a model and trains them.

    `ranks`: for each job a mapping module name -> rank; a module that is absent or 0 for a job adds nothing to it.
    `rates`: a learning rate a job. AdamW (0.9, 0.999, 1e-8, no decay) with linear warm-up and linear decay, as PEFT
    users run it; gradients are clipped to norm 1 job by job. `starts`: module name -> job -> rows that A_j starts from.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Iterable[str],
        ranks: list[Mapping[str, int]],
        rates: list[float],
        seeds: list[int],
        scale: float = 2.0,
        starts: Mapping[str, dict[int, torch.Tensor]] | None = None,
    ):
        self.model, self.jobs = model, len(seeds)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.layers: dict[str, ManyLoraLinear] = {}
        for name in modules:
            of_jobs = torch.tensor([job.get(name, 0) for job in ranks])
            if int(of_jobs.max()) == 0:
                continue
            parent = model.get_submodule(name.rpartition(".")[0])
            layer = ManyLoraLinear(
                getattr(parent, name.rpartition(".")[2]), of_jobs, seeds, name, scale, (starts or {}).get(name)
            )
            setattr(parent, name.rpartition(".")[2], layer)
            self.layers[name] = layer
        self.parameters = [p for layer in self.layers.values() for p in (layer.down, layer.up)]
        self.rates = torch.tensor(rates, device=self.parameters[0].device)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    def remove(self) -> None:
        """Put the plain layers back."""
        for name, layer in self.layers.items():
            setattr(self.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer.base)

    def losses(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross entropy (nats) and number of supervised tokens, each (J,), of a batch of J*b rows."""
        labels = batch["labels"][:, 1:]
        hidden = self.model.get_decoder()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )[0]
        row, position = (labels != -100).nonzero(as_tuple=True)
        logits = self.model.get_output_embeddings()(hidden[row, position])
        each = F.cross_entropy(logits.float(), labels[row, position], reduction="none")
        job = row // (labels.shape[0] // self.jobs)
        total = torch.zeros(self.jobs, device=each.device).index_add(0, job, each)
        count = torch.zeros(self.jobs, device=each.device).index_add(0, job, torch.ones_like(each))
        return total, count

    def step(self, batch: Mapping[str, torch.Tensor], progress: float, warmup: float = 0.05) -> torch.Tensor:
        """One optimizer step of all jobs, `progress` in [0, 1) of the way through the schedule; losses, (J,)."""
        total, count = self.losses(batch)
        loss = total / count.clamp(min=1)
        grads = torch.autograd.grad(loss.sum(), self.parameters)  # jobs share no parameter: the sum mixes nothing
        norm = torch.stack([g.square().sum(dim=(1, 2)) for g in grads]).sum(0).sqrt()  # (J,)
        clip = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        self.steps += 1
        now = self.rates * min(progress / warmup if warmup else 1.0, (1 - progress) / (1 - warmup), 1.0)
        with torch.no_grad():
            clipped = torch._foreach_mul(grads, [clip[:, None, None]] * len(grads))
            torch._foreach_lerp_(self.first, clipped, 1 - 0.9)
            torch._foreach_mul_(self.second, 0.999)
            torch._foreach_addcmul_(self.second, clipped, clipped, 1 - 0.999)
            size = torch._foreach_sqrt(torch._foreach_div(self.second, 1 - 0.999**self.steps))
            torch._foreach_add_(size, 1e-8)
            change = torch._foreach_div(torch._foreach_div(self.first, 1 - 0.9**self.steps), size)
            torch._foreach_mul_(change, [now[:, None, None]] * len(change))
            torch._foreach_sub_(self.parameters, change)
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Mean loss a supervised token (nats) of each job over batches that all jobs see alike, (J,) float64."""
        total = torch.zeros(self.jobs, dtype=torch.float64)
        count = torch.zeros(self.jobs, dtype=torch.float64)
        for batch in batches:
            repeated = {key: value.repeat(self.jobs, 1) for key, value in batch.items()}
            summed, tokens = self.losses(repeated)
            total += summed.double().cpu()
            count += tokens.double().cpu()
        return total / count

    def factors(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Module name, B (J, out, R) with scale and masks in it, A (J, R, in): delta-W of job j is B[j] @ A[j]."""
        for name, layer in self.layers.items():
            yield name, (layer.scale * layer.up * layer.mask[:, None, :]).detach(), layer.down.detach()
