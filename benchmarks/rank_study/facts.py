"""What the arms may look at, measured when an arm asks: pilots, effective ranks of the base, variance of the inputs."""

import hashlib
import json
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from glmspectra.files import write_atomically
from glmspectra.ranks.evidence import Target
from rank_study.bases import Base
from rank_study.cutting import singular_directions
from rank_study.many_adapters import ManyAdapters, Watch
from rank_study.tasks import Rows

PILOT = 80  # steps
PILOT_SEEDS = (900, 901, 902)
PILOTS = len(PILOT_SEEDS)  # that are averaged
OWN_TOGETHER = 5  # seeds whose own pilots are run side by side

BySigma = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Pilot:
    """What a short uniform run found, by module. plain: singular values of delta-W; preconditioned, fisher, tempered:
    the same in the metrics of `delta_metrics`; loss_change: nats by which the layer's adapter made the loss fall;
    output, second_order: of `output_sizes` and `second_order_sizes`, empty where no inputs were given."""

    plain: BySigma
    preconditioned: BySigma
    fisher: BySigma
    tempered: BySigma
    loss_change: Mapping[str, float]
    output: BySigma = field(default_factory=dict)
    second_order: BySigma = field(default_factory=dict)


@dataclass(frozen=True)
class Moments:
    """Of a layer's inputs x over some training tokens. second: mean of x x^T, (in, in), on the CPU. norm: PLoP's
    normalized feature norm (arXiv 2506.20629), |W x| over what a random x of that length would give, here from the
    means of both squares: sqrt(in tr(W C W^T) / (|W|_F^2 tr(C)))."""

    second: torch.Tensor
    norm: float


@dataclass(frozen=True)
class Inputs:
    """variance: explained-variance ratios of each layer's inputs, descending; directions: theirs, (count, in)."""

    variance: BySigma
    directions: Mapping[str, torch.Tensor]


def pilot_seeds_of(seed: int) -> tuple[int, ...]:
    """Pilots of a job's own, apart from those of every other seed and from the training itself."""
    return tuple(1000 * seed + number for number in range(1, PILOTS + 1))


def targets_of(shapes: Mapping[str, tuple[int, int]]) -> list[Target]:
    """Targets from module names like `...layers.3.mlp.up_proj` and their (rows, cols)."""
    targets = []
    for module, (rows, cols) in shapes.items():
        words = module.split(".")
        targets.append(Target(f"{module}.weight", int(words[words.index("layers") + 1]), words[-1], rows, cols))
    return targets


def mean_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over pilots, module by module and index by index."""
    return {name: np.mean([one[name] for one in seeds], axis=0) for name in seeds[0]}


@dataclass
class Facts:
    """Measured on demand and kept in `folder`, where other processes of the study find it too.

    rate, rank, batch: of the pilots. own_pilots: seeds of jobs whose pilots are their own, so that what is said of many
    seeds holds for other pilots too; all others share those of PILOT_SEEDS.
    """

    base: Base
    rows: Rows
    task: str
    folder: Path
    rate: float
    rank: int
    batch: int
    own_pilots: Container[int] = ()
    _found: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def targets(self) -> list[Target]:
        return targets_of(self.base.shapes())

    @cached_property
    def _mark(self) -> str:
        """Stands in the names of files: other weights, rows or pilots never find what belongs to these."""
        results = f"{self.base.digest} {self.rate} {self.rank} {self.batch}".encode()
        return hashlib.sha256(results + self.rows.input_ids.numpy().tobytes()).hexdigest()[:8]

    @cached_property
    def effective_rank(self) -> dict[str, float]:
        return self._kept(f"effective-ranks-{self.base.name}", lambda: effective_ranks(self.base))

    @cached_property
    def largest(self) -> dict[str, float]:
        """Largest singular value of each base weight."""
        return self._kept(f"largest-{self.base.name}", lambda: largest_values(self.base))

    @cached_property
    def moments(self) -> dict[str, Moments]:
        return input_moments(self.base, self.rows)

    @cached_property
    def inputs(self) -> Inputs:
        return input_variances(self.moments, most=self.rank)

    def pilots(self, seed: int, steps: int = PILOT) -> list[Pilot]:
        """Those of a seed. Pilots of a few seeds that follow each other are run together: alone they are slow."""
        own = seed in self.own_pilots
        first = seed - seed % OWN_TOGETHER
        asked = [other for other in range(first, first + OWN_TOGETHER) if other in self.own_pilots] if own else []
        seeds = [one for other in asked for one in pilot_seeds_of(other)] or list(PILOT_SEEDS)

        def run() -> list[dict]:
            found = run_pilots(self.base, self.rows, self.rank, self.rate, steps, self.batch, seeds, self.moments)
            return [asdict(pilot) for pilot in found]

        kept = self._kept(f"pilots-{self.base.name}-{self.task}-{steps}{f'-of-{first}' if own else ''}", run)
        start = PILOTS * asked.index(seed) if own else 0
        return [
            Pilot(**{field: {name: np.array(value) for name, value in of.items()} for field, of in pilot.items()})
            for pilot in kept[start : start + PILOTS]
        ]

    def consensus(self, seed: int) -> BySigma:
        """Singular values of the mean delta-W of a seed's pilots, run once more from one start of A for all of them;
        those of a few seeds together, as `pilots`."""
        first = seed - seed % OWN_TOGETHER
        asked = [other for other in range(first, first + OWN_TOGETHER) if other in self.own_pilots] or [seed]

        def run() -> list[dict]:
            seeds = [pilot_seeds_of(other) for other in asked]
            return consensus_of(self.base, self.rows, self.rank, self.rate, PILOT, self.batch, seeds)

        kept = self._kept(f"consensus-{self.base.name}-{self.task}-{PILOT}-of-{asked[0]}", run)
        return {name: np.array(value) for name, value in kept[asked.index(seed)].items()}

    def _kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, from its file if there; two processes never measure the same thing side by side."""
        if name not in self._found:
            self.folder.mkdir(parents=True, exist_ok=True)
            cache = self.folder / f"{name}-{self._mark}.json"
            with FileLock(cache.with_suffix(".lock")):
                if not cache.is_file():
                    text = json.dumps(measure(), default=lambda array: [float(f"{v:.6g}") for v in array])
                    write_atomically(cache, lambda file: file.write(text.encode()))
            self._found[name] = json.loads(cache.read_text())
        return self._found[name]


def train_jobs(
    base: Base,
    rows: Rows,
    ranks: list,
    rates: list[float],
    seeds: list[int],
    steps: int,
    batch: int,
    starts=None,
    watchers: Sequence[Watch] = (),
    factors: list[Mapping[str, float]] | None = None,
    up_rates: list[float] | None = None,
    layer_rates: list[Mapping[str, float]] | None = None,
) -> ManyAdapters:
    """Train jobs side by side; job j draws its rows by its own seed, so that paired arms see the same data."""
    adapters = ManyAdapters(
        base.model, base.modules, ranks, rates, seeds,
        starts=starts, factors=factors, up_rates=up_rates, layer_rates=layer_rates,
    )  # fmt: skip
    train_further(adapters, rows, seeds, steps, batch, watchers)
    return adapters


def train_further(
    adapters: ManyAdapters,
    rows: Rows,
    seeds: Sequence[int],
    steps: int,
    batch: int,
    watchers: Sequence[Watch] = (),
) -> None:
    """One schedule of `steps` for adapters that are there; takes them off the model where it fails."""
    device = str(adapters.master.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    orders = [torch.randperm(len(rows), generator=generator) for generator in generators]
    while len(orders[0]) < steps * batch:
        orders = [
            torch.cat([o, torch.randperm(len(rows), generator=g)]) for o, g in zip(orders, generators, strict=True)
        ]

    def watch(adapters: ManyAdapters, grad: torch.Tensor) -> None:
        for watcher in watchers:
            watcher(adapters, grad)

    try:
        for step in range(steps):
            index = torch.cat([order[step * batch : (step + 1) * batch] for order in orders])
            adapters.step(rows.take(index, device), step / steps, watch=watch if watchers else None)
    except BaseException:
        adapters.remove()
        raise


class LossChange:
    """Loss change allocation (Lan et al. 2019, eq. 2): each parameter's part in what the loss fell, sum of -g * change.

    The gradient is taken after each change, on the next step's rows, so that a step that only fits its own rows counts
    for nothing. total: (J, P), nats.
    """

    def __init__(self) -> None:
        self.before: torch.Tensor | None = None
        self.total: torch.Tensor | None = None

    def __call__(self, adapters: ManyAdapters, grad: torch.Tensor) -> None:
        if self.before is None or self.total is None:
            self.before, self.total = adapters.master.clone(), torch.zeros_like(adapters.master)
            return
        self.total -= grad * (adapters.master - self.before)
        self.before.copy_(adapters.master)

    def of_layer(self, adapters: ManyAdapters, name: str) -> torch.Tensor:
        """Nats of each job, (J,)."""
        down, up = adapters.of(self.total, name)
        return down.sum(dim=(1, 2)) + up.sum(dim=(1, 2))


def run_pilots(
    base: Base,
    rows: Rows,
    rank: int,
    rate: float,
    steps: int,
    batch: int,
    seeds: Sequence[int],
    inputs: Mapping[str, Moments] | None = None,
) -> list[Pilot]:
    """Short uniform runs side by side, one a seed. Singular values by QR of B and A^T, then an R x R SVD, float64.

    inputs: of the base's layers, which `Pilot.output` needs; without them it and `second_order` are left out.
    """
    ranks = [dict.fromkeys(base.modules, rank)] * len(seeds)
    change = LossChange()
    adapters = train_jobs(base, rows, ranks, [rate] * len(seeds), list(seeds), steps, batch, watchers=[change])
    try:
        metrics = pilot_metrics(adapters)
        nats = {name: change.of_layer(adapters, name).tolist() for name in adapters.layers}
        if inputs is not None:
            output, second_order = output_sizes(adapters, inputs), second_order_sizes(adapters, rows)
            metrics = [
                own | {"output": output[number], "second_order": second_order[number]}
                for number, own in enumerate(metrics)
            ]
    finally:
        adapters.remove()
    return [
        Pilot(**own, loss_change={name: values[number] for name, values in nats.items()})
        for number, own in enumerate(metrics)
    ]


def output_sizes(adapters: ManyAdapters, inputs: Mapping[str, Moments]) -> list[dict[str, np.ndarray]]:
    """Of each job: module -> singular values of delta-W C^(1/2) over sqrt(tr(W C W^T)): how much of the layer's output
    a direction changes, C the second moment of its inputs."""
    found: list[dict[str, np.ndarray]] = [{} for _ in range(adapters.jobs)]
    for name, up, down in adapters.factors():
        weight = adapters.layers[name].base.weight.double()
        second = inputs[name].second.to(weight.device, torch.float64)
        whole = float(torch.sum((weight @ second) * weight)) ** 0.5
        inner = down.double() @ second @ down.double().transpose(1, 2)  # A C A^T, (J, R, R): its root is enough
        values, vectors = torch.linalg.eigh(inner)
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]
        sigmas = torch.linalg.svdvals(torch.linalg.qr(up.double(), mode="r").R @ root).cpu().numpy() / max(whole, 1e-30)
        for own, sigma in zip(found, sigmas, strict=True):
            own[name] = sigma
    return found


SECOND_ORDER_ROWS = 64


def second_order_sizes(adapters: ManyAdapters, rows: Rows) -> list[dict[str, np.ndarray]]:
    """Of each job: module -> roots of sigma_i^2 E[(u_i^T G v_i)^2] / 2, descending: what dropping a direction costs by
    the empirical Fisher of a gate on it, G = dL/dW of one row, over SECOND_ORDER_ROWS training rows.

    Puts the singular directions of delta-W in the factors' place, where d loss / d gate_i = <B_i, dL/dB_i>.
    """
    device = str(adapters.master.device)
    _, factors = singular_directions(adapters, range(adapters.jobs))
    for job, own in enumerate(factors):
        adapters.restart(job, own)
    index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:SECOND_ORDER_ROWS]
    totals = {name: torch.zeros(adapters.jobs, width, device=device) for name, (_, _, width) in adapters.places.items()}
    for row in index:
        total, count = adapters.losses(rows.take(row.repeat(adapters.jobs), device))
        grads = torch.autograd.grad((total / count.clamp(min=1)).sum(), adapters.leaves)
        for name, grad in zip(adapters.layers, grads[1::2], strict=True):  # of A and B in turn, (J, out, R)
            up = adapters.of(adapters.work, name)[1]
            totals[name] += (grad.float() * up.float()).sum(1).square()
    found: list[dict[str, np.ndarray]] = [{} for _ in range(adapters.jobs)]
    for name, total in totals.items():
        sizes = (total / len(index) / 2).sqrt().sort(dim=1, descending=True).values.cpu().numpy()
        for own, size in zip(found, sizes, strict=True):
            own[name] = size
    return found


def consensus_of(
    base: Base, rows: Rows, rank: int, rate: float, steps: int, batch: int, groups: Sequence[Sequence[int]]
) -> list[dict[str, np.ndarray]]:
    """Of each group of seeds: module -> singular values of the mean delta-W of its pilots, which share the start of A
    and have rows of their own each.

    Without that the mean of delta-W, not of its singular values, would only tell how far the starts are apart."""
    starts = [seeds[0] for seeds in groups for _ in seeds]
    ranks = [dict.fromkeys(base.modules, rank)] * len(starts)
    adapters = ManyAdapters(base.model, base.modules, ranks, [rate] * len(starts), starts)
    train_further(adapters, rows, [seed for seeds in groups for seed in seeds], steps, batch)
    found: list[dict[str, np.ndarray]] = [{} for _ in groups]
    try:
        for name, up, down in adapters.factors():
            ends = np.cumsum([len(seeds) for seeds in groups])
            for own, end, seeds in zip(found, ends, groups, strict=True):
                jobs = slice(int(end) - len(seeds), int(end))
                left = torch.linalg.qr(torch.cat(list(up[jobs].double() / len(seeds)), dim=1), mode="r").R
                right = torch.linalg.qr(torch.cat(list(down[jobs].double()), dim=0).T, mode="r").R
                own[name] = torch.linalg.svdvals(left @ right.T).cpu().numpy()
    finally:
        adapters.remove()
    return found


def pilot_metrics(adapters: ManyAdapters) -> list[dict[str, dict[str, np.ndarray]]]:
    """Of each job: metric of `delta_metrics` -> module -> singular values of delta-W in it, float64."""
    found: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in range(adapters.jobs)]
    levels = gradient_levels(adapters)
    for name, up, down in adapters.factors():
        up, down = up.double(), down.double()
        second_a, second_b = (part.double() for part in adapters.of(adapters.second, name))
        for metric, (high, low) in delta_metrics(second_a, second_b, down, levels[name]).items():
            left = torch.linalg.qr(up * high[:, :, None], mode="r").R
            right = torch.linalg.qr((down * low[:, None, :]).transpose(1, 2), mode="r").R
            sigmas = torch.linalg.svdvals(left @ right.transpose(1, 2)).cpu().numpy()
            for own, sigma in zip(found, sigmas, strict=True):
                own.setdefault(metric, {})[name] = sigma
    return found


def row_moments(second_b: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Second moment of dL/dW by row, (J, out): dL/dB = G A^T, so B's moments (J, out, R) over the mean of A^2."""
    return second_b.mean(2) / down.square().mean(dim=(1, 2)).clamp(min=1e-30)[:, None] / down.shape[2]


def column_moments(second_a: torch.Tensor) -> torch.Tensor:
    """Second moment of dL/dW by column, (J, in), of mean 1: the shape of A's moments (J, R, in), dL/dA = B^T G."""
    columns = second_a.mean(1)
    return columns / columns.mean(1, keepdim=True).clamp(min=1e-30)


def gradient_levels(adapters: ManyAdapters) -> dict[str, torch.Tensor]:
    """Layer -> the mean second moment of its dL/dW, (J,), clipped to the 10 and 90 % quantiles over the layers."""
    own = {
        name: row_moments(adapters.of(adapters.second, name)[1].double(), down.double()).mean(1)
        for name, _, down in adapters.factors()
    }
    table = torch.stack(list(own.values()))  # (layers, J)
    low, high = torch.quantile(table, 0.1, dim=0), torch.quantile(table, 0.9, dim=0)
    return dict(zip(own, table.clamp(min=low, max=high), strict=True))


def delta_metrics(
    second_a: torch.Tensor, second_b: torch.Tensor, down: torch.Tensor, level: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights of delta-W's rows and columns, (J, out) and (J, in), by metric: diag(rows) delta-W diag(columns).

    preconditioned: ||D||^2 = sum_ij sqrt(V_ij) D_ij^2, a direction counts as AdamW on W itself would weigh it.
    fisher: ||D||^2 = sum_ij V_ij D_ij^2, twice the loss that dropping D costs by the empirical Fisher's diagonal, as in
    Optimal Brain Damage (LeCun et al. 1990).

    tempered: the eighth root of V on either side, with the mean of V clipped to `level` (J,), so that a few matrices
    with huge gradients do not decide alone.

    V, the second moment of dL/dW, is taken for separable as in Adafactor (Shazeer & Stern 2018): `row_moments` gives
    its rows, `column_moments` the shape of its columns.
    """
    rows = row_moments(second_b, down).clamp(min=0)
    columns = column_moments(second_a)
    powers = {"plain": 0.0, "preconditioned": 0.25, "fisher": 0.5}
    metrics = {metric: (rows**power, columns.clamp(min=0) ** power) for metric, power in powers.items()}
    leveled = rows / rows.mean(1, keepdim=True).clamp(min=1e-30) * level[:, None]
    return metrics | {"tempered": (leveled**0.125, columns.clamp(min=0) ** 0.125)}


def largest_values(base: Base) -> dict[str, float]:
    """Spectral norm of each base weight."""
    weights = {name: base.model.get_submodule(name).weight.detach().float() for name in base.modules}
    return {name: float(torch.linalg.matrix_norm(weight, ord=2)) for name, weight in weights.items()}


def effective_ranks(base: Base) -> dict[str, float]:
    """exp of the entropy of sigma / sum(sigma) (Roy & Vetterli 2007) of each base weight, in float64."""
    found = {}
    for name in base.modules:
        weight = base.model.get_submodule(name).weight.detach().double()
        small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        sigma = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()
        share = sigma / sigma.sum()
        found[name] = float(torch.exp(-(share * torch.log(share.clamp(min=1e-300))).sum()))
    return found


@torch.no_grad()
def input_moments(base: Base, rows: Rows, batches: int = 8, batch: int = 16) -> dict[str, Moments]:
    """Uncentred second moments of each adapted layer's inputs over the tokens of a few training batches."""
    device = str(next(base.model.parameters()).device)
    sums: dict[str, torch.Tensor] = {}
    keep: dict[str, torch.Tensor] = {}
    tokens = 0

    def hook(name):
        def add(module, inputs):
            x = inputs[0][keep["mask"]].float()
            sums[name] = sums.get(name, 0) + x.T @ x

        return add

    with ExitStack() as hooks:
        for name in base.modules:
            handle = base.model.get_submodule(name).register_forward_pre_hook(hook(name))
            hooks.callback(handle.remove)
        for number in range(batches):
            index = torch.arange(number * batch, (number + 1) * batch) % len(rows)
            taken = rows.take(index, device)
            keep["mask"] = taken["attention_mask"].bool()
            tokens += int(keep["mask"].sum())
            base.model.get_decoder()(input_ids=taken["input_ids"], use_cache=False)
    found = {}
    for name, total in sums.items():
        weight, second = base.model.get_submodule(name).weight.float(), total / tokens
        results = float(((weight @ second) * weight).sum()) * weight.shape[1]
        norm = results / float(weight.square().sum()) / float(second.trace())
        found[name] = Moments(second.cpu(), max(norm, 0.0) ** 0.5)
    return found


def input_variances(moments: Mapping[str, Moments], most: int) -> Inputs:
    """Explained-variance ratios and directions of each adapted layer's inputs, as EVA's incremental SVD of activations
    has them, from the eigenvectors of their second moments."""
    ratios, directions = {}, {}
    for name, of in moments.items():
        values, vectors = torch.linalg.eigh(of.second.double())
        ratios[name] = (values.flip(0)[:most].clamp(min=0) / values.clamp(min=0).sum()).numpy()
        directions[name] = vectors.flip(1)[:, :most].T.float()
    return Inputs(ratios, directions)
