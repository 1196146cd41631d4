"""Many LoRA adapters trained at once on one frozen base.

A study of ranks needs hundreds of short runs of one model. Run one by one they leave a GPU mostly idle; here J jobs
share every pass through the frozen weights. Job j owns rows j*b .. (j+1)*b of the batch, its own A_j and B_j in every
adapted layer, its own learning rate and its own gradient clipping, so that nothing but the frozen weights is shared; a
test holds one job of J against the same job run alone and against PEFT. A rank below the common width R is a mask over
directions:

    y = x W^T + scale * f_j * ((x A_j^T) * mask_j) B_j^T    A_j: (R, in), B_j: (out, R), mask_j: (R,)

f_j, 1 unless `factors` names the layer, tells what the job's effective scale there is of the common one.

All adapters of a job lie in one row of one float32 matrix (J, P), so that clipping, AdamW and the copy in the model's
type are a few kernels a step, not a few for each of 210 layers: with small jobs a step is bound by launches.

Notation: J jobs, b rows a job, s positions, R the width of a layer (its largest rank in whole eights), P the
parameters of all directions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn
from torch.nn import functional as F


class ManyLoraLinear(nn.Module):
    """A frozen linear layer with J adapters, one for each block of rows of its input.

    down: masked A, (J, R, in); up: B, (J, out, R); both in the type of the weight, and leaves of the graph.
    """

    def __init__(self, base: nn.Linear, down: torch.Tensor, up: torch.Tensor, scale: float):
        super().__init__()
        self.base, self.down, self.up, self.scale = base, down, up, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (J*b, s, in) -> (J*b, s, out)
        own = x.reshape(self.down.shape[0], -1, x.shape[-1])
        low = torch.bmm(own, self.down.transpose(1, 2))  # (J, b*s, R)
        # In place: a step is bound by memory traffic, and nobody else looks at the plain output.
        total = self.base(own).baddbmm_(low, self.up.transpose(1, 2), alpha=self.scale)
        return total.view(*x.shape[:-1], -1)


def initial_down(name: str, seed: int, width: int, columns: int) -> torch.Tensor:
    """A's start, (width, columns): PEFT's kaiming_uniform(a=sqrt(5)), that is U(-1/sqrt(in), 1/sqrt(in)).

    Direction i does not depend on the width, so that jobs of one seed start alike whatever their ranks.
    """
    generator = torch.Generator().manual_seed(
        seed * 1_000_003 + sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31
    )
    bound = columns**-0.5
    return torch.stack([torch.rand(columns, generator=generator) * 2 * bound - bound for _ in range(width)])


Watch = Callable[["ManyAdapters", torch.Tensor], None]


class SideBySide:
    """Losses of a model whose rows belong to `jobs` in blocks: job j owns rows j*b .. (j+1)*b of every batch."""

    def __init__(self, model: nn.Module, jobs: int, device: torch.device | str):
        self.model, self.jobs, self.device = model, jobs, str(device)

    def token_losses(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross entropy (nats) of every supervised token, its logits (n, vocabulary), and its row of the batch.

        batch: input_ids, labels, and if known learnt, (2, N), rows and positions of what is learnt after the shift by
        one: told by the CPU, no step need wait for the device. Rows are padded on the right, where a causal model's
        real tokens never look, so that attention needs no mask but its own and takes its fastest kernel.
        """
        labels = batch["labels"][:, 1:]
        hidden = self.model.get_decoder()(input_ids=batch["input_ids"], use_cache=False)[0]
        row, position = batch["learnt"] if "learnt" in batch else (labels != -100).nonzero(as_tuple=True)
        logits = self.model.get_output_embeddings()(hidden[row, position])
        return F.cross_entropy(logits.float(), labels[row, position], reduction="none"), logits, row

    def losses(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross entropy (nats) and number of supervised tokens, each (J,), of a batch of J*b rows."""
        each, _, row = self.token_losses(batch)
        job = row // (batch["labels"].shape[0] // self.jobs)
        total = torch.zeros(self.jobs, device=each.device).index_add(0, job, each)
        count = torch.zeros(self.jobs, device=each.device).index_add(0, job, torch.ones_like(each))
        return total, count

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Mean loss a supervised token (nats) of each job over batches that all jobs see alike, (J,) float64."""
        total = torch.zeros(self.jobs, dtype=torch.float64)
        count = torch.zeros(self.jobs, dtype=torch.float64)
        for batch in batches:
            repeated = {key: value.repeat(self.jobs, 1) for key, value in batch.items() if key != "learnt"}
            summed, tokens = self.losses(repeated)
            total += summed.double().cpu()
            count += tokens.double().cpu()
        return total / count


class ManyAdapters(SideBySide):
    """Puts J adapters on the named linear layers of a model and trains them.

    `ranks`: for each job a mapping module name -> rank; a module that is absent or 0 for a job adds nothing to it.
    `rates`: a learning rate a job. AdamW (0.9, 0.999, 1e-8, no decay) with linear warm-up and linear decay, as PEFT
    users run it; gradients are clipped to norm 1 job by job. `starts`: module name -> job -> rows that A_j starts from.
    `factors`: for each job a mapping module name -> what its scale there is of `scale`, 1 where absent. `up_rates`: of
    each job, by what B's learning rate is multiplied (LoRA+). `layer_rates`: of each job, module name -> by what the
    rate of its A and B is multiplied, 1 where absent.

    master, first, second: A and B of all layers and AdamW's moments, float32 (J, P). mask: what the model's copy takes
    of them: 1 where a direction is kept, for B times the job's factor, else 0.
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
        factors: list[Mapping[str, float]] | None = None,
        up_rates: list[float] | None = None,
        layer_rates: list[Mapping[str, float]] | None = None,
    ):
        super().__init__(model, len(seeds), next(model.parameters()).device)
        self.scale = scale
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        # Whole eights: matrix units are fast on aligned rows only, and a mask tells what counts.
        widths = {name: -(-max(job.get(name, 0) for job in ranks) // 8) * 8 for name in modules}
        linears = {name: model.get_submodule(name) for name, width in widths.items() if width > 0}
        self.places: dict[str, tuple[slice, slice, int]] = {}  # columns of A, of B, and R
        end = 0
        for name, linear in linears.items():
            width = widths[name]
            down, up = width * linear.in_features, width * linear.out_features
            self.places[name] = (slice(end, end + down), slice(end + down, end + down + up), width)
            end += down + up
        first = next(iter(linears.values())).weight
        self.master = torch.zeros(self.jobs, end, device=first.device)
        self.scale_factors = {
            name: torch.tensor([job.get(name, 1.0) for job in factors or [{}] * self.jobs], device=first.device)
            for name in linears
        }
        self.mask = torch.ones_like(self.master)
        self.work = torch.zeros(self.jobs, end, device=first.device, dtype=first.dtype)
        self.first, self.second = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.layers: dict[str, ManyLoraLinear] = {}
        self.leaves: list[torch.Tensor] = []
        for name, linear in linears.items():
            width = widths[name]
            begin = torch.stack([initial_down(name, seed, width, linear.in_features) for seed in seeds])
            for job, start in (starts or {}).get(name, {}).items():  # (at least the job's rank, in)
                own = ranks[job].get(name, 0)
                begin[job, :own] = start[:own]
            self.of(self.master, name)[0].copy_(begin)
            kept = torch.tensor([job.get(name, 0) for job in ranks])
            self.keep(name, torch.arange(width)[None, :] < kept[:, None])
            leaves = [view.detach().requires_grad_() for view in self.of(self.work, name)]
            self.leaves += leaves
            layer = ManyLoraLinear(linear, *leaves, scale)
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer)
            self.layers[name] = layer
        self.rates = torch.tensor(rates, device=first.device)[:, None]  # (J, 1), or (J, P) where B's are others
        if up_rates is not None and set(up_rates) != {1.0}:
            self.rates = self.rates.repeat(1, end)
            for name in linears:
                self.of(self.rates, name)[1].mul_(torch.tensor(up_rates, device=first.device)[:, None, None])
        if layer_rates is not None and any(layer_rates):
            self.rates = self.rates.expand(-1, end).clone()
            for name in linears:
                factor = torch.tensor([job.get(name, 1.0) for job in layer_rates], device=first.device)[:, None, None]
                for part in self.of(self.rates, name):
                    part.mul_(factor)
        self.steps = torch.zeros(self.jobs, 1, device=first.device)  # of each job: one may begin its moments anew
        self.refresh()

    def of(self, flat: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of a (J, P) matrix that belongs to a layer's A, as (J, R, in), and B, as (J, out, R): views."""
        down, up, width = self.places[name]
        return flat[:, down].view(len(flat), width, -1), flat[:, up].view(len(flat), -1, width)

    def keep(self, name: str, kept: torch.Tensor, jobs: slice | list[int] = slice(None)) -> None:
        """Keep those directions of a layer, bool (jobs, R), and no others; from the next step on."""
        down, up = self.of(self.mask, name)
        kept = kept.to(down)
        down[jobs] = kept[:, :, None].expand_as(down[jobs])
        up[jobs] = (kept * self.scale_factors[name][jobs, None])[:, None, :].expand_as(up[jobs])

    def kept(self, name: str) -> torch.Tensor:
        """Which directions of a layer are kept, bool (J, R)."""
        return self.of(self.mask, name)[0][:, :, 0] > 0

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copy that the model computes with up to date."""
        self.work.copy_(self.master * self.mask)

    @torch.no_grad()
    def restart(self, job: int, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Go on from other factors, module -> B (out, R) without the scale, A (R, in), with fresh moments."""
        for name, (up, down) in factors.items():
            mine = self.of(self.master, name)
            mine[0][job], mine[1][job] = down.to(mine[0]), up.to(mine[1])
        for moment in (self.first, self.second, self.steps):
            moment[job] = 0
        self.refresh()

    def remove(self) -> None:
        """Put the plain layers back."""
        for name, layer in self.layers.items():
            setattr(self.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer.base)

    def step(
        self,
        batch: Mapping[str, torch.Tensor],
        progress: float,
        warmup: float = 0.05,
        watch: Watch | None = None,
    ) -> torch.Tensor:
        """One optimizer step of all jobs, `progress` in [0, 1) of the way through the schedule; losses, (J,).

        watch: shown the gradient (J, P) of this step, before it is clipped and used.
        """
        total, count = self.losses(batch)
        loss = total / count.clamp(min=1)
        grads = torch.autograd.grad(loss.sum(), self.leaves)  # jobs share no parameter: the sum mixes nothing
        with torch.no_grad():
            grad = torch.cat([g.reshape(self.jobs, -1) for g in grads], dim=1).float() * self.mask
            if watch is not None:
                watch(self, grad)
            norm = grad.square().sum(1, keepdim=True).sqrt()
            grad *= (1.0 / (norm + 1e-6)).clamp(max=1.0)
            self.steps += 1
            now = self.rates * min(progress / warmup if warmup else 1.0, (1 - progress) / (1 - warmup), 1.0)
            self.first.lerp_(grad, 1 - 0.9)
            self.second.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
            size = (self.second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
            self.master -= (self.first / (1 - 0.9**self.steps)).div_(size).mul_(now)
            self.refresh()
        return loss.detach()

    def factors(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Module name, B (J, out, R) with scale and masks in it, A (J, R, in): delta-W of job j is B[j] @ A[j]."""
        for name in self.layers:
            down, up = self.of(self.master, name)
            yield name, self.scale * up * self.of(self.mask, name)[1], down.clone()
