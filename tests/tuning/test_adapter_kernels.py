"""LoRA's product with A by kernels that draw dropout, against the same in float64 with what they drew."""

import os

import pytest
import torch
from torch import nn

from glmspectra.tuning.model.adapter_products import _DownProduct, _SumWithUp, branch_kernels, follow_input_dtype

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
needs_kernels = pytest.mark.skipif(not KERNELS, reason="needs a CUDA device or TRITON_INTERPRET=1")


def kept_by_forward(tokens, columns, dropout, seed):
    """What dropout keeps, bool: x of ones through A = 1, column block by column block."""
    from glmspectra.tuning.model import adapter_kernels

    x = torch.ones(tokens, columns, dtype=torch.float16, device=DEVICE)
    found = []
    for first in range(0, columns, 100):
        down = torch.zeros(min(100, columns - first), columns, dtype=torch.float16, device=DEVICE)
        down[torch.arange(len(down)), first + torch.arange(len(down))] = 1
        found.append(adapter_kernels.down_product(x, down, dropout, seed) > 0)
    return torch.cat(found, 1)


@needs_kernels
def test_dropout_keeps_its_share_and_draws_anew_from_another_seed():
    kept = kept_by_forward(64, 300, 0.25, 5)
    assert abs(float(kept.float().mean()) - 0.75) < 0.02  # six standard deviations of 19,200 draws
    assert kept.any(0).all()
    assert kept.any(1).all()
    by_place = kept.view(64, 300)[:, :296].reshape(64, 37, 8).float().mean((0, 1))  # the eight of one call of Philox
    assert (by_place - 0.75).abs().max() < 0.06
    other = kept_by_forward(64, 300, 0.25, 6)
    assert abs(float((kept & other).float().mean()) - 0.75**2) < 0.02  # independent of each other
    assert torch.equal(kept, kept_by_forward(64, 300, 0.25, 5))
    assert kept_by_forward(64, 300, 0.0, 5).all()


@needs_kernels
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("tokens", "columns", "rank"), [(70, 300, 12), (33, 64, 1), (600, 129, 20)])
def test_the_product_and_its_gradients_are_those_of_float64(tokens, columns, rank, dropout):
    from glmspectra.tuning.model import adapter_kernels

    generator = torch.Generator().manual_seed(tokens)
    x, down, of_x, of_inner = (
        torch.randn(shape, generator=generator).half().to(DEVICE)
        for shape in ((tokens, columns), (rank, columns), (tokens, columns), (tokens, rank))
    )
    kept = kept_by_forward(tokens, columns, dropout, 9)
    gain = kept.double() / (1 - dropout)
    found = (
        adapter_kernels.down_product(x, down, dropout, 9),
        adapter_kernels.gradient_of_down(x, of_inner, dropout, 9),
        adapter_kernels.gradient_of_x(of_x, of_inner, down, dropout, 9),
        adapter_kernels.sum_with_up(of_x, of_inner, down.t().contiguous(), 1.5),
    )
    due = (
        (x.double() * gain) @ down.double().T,
        of_inner.double().T @ (x.double() * gain),
        of_x.double() + (of_inner.double() @ down.double()) * gain,
        of_x.double() + 1.5 * (of_inner.double() @ down.double()),
    )
    for one, exact in zip(found, due, strict=True):
        assert (one.double() - exact).norm() <= 1e-3 * exact.norm()
    assert torch.equal(found[1], adapter_kernels.gradient_of_down(x, of_inner, dropout, 9))


@needs_kernels
def test_the_estimate_of_memory_counts_what_the_kernels_allocate():
    from glmspectra.tuning.memory.kernels import AdapterShapes
    from glmspectra.tuning.model import adapter_kernels

    x, down, of_inner = (torch.ones(size, dtype=torch.float16, device=DEVICE) for size in ((70, 64), (3, 64), (70, 3)))
    for name, arguments, more in (
        ("down_product", (x, down), (0.1, 3)),
        ("gradient_of_down", (x, of_inner), (0.1, 3)),
        ("gradient_of_x", (x, of_inner, down), (0.1, 3)),
        ("sum_with_up", (x, of_inner, down.t().contiguous()), (2.0,)),
    ):
        made, counted = (getattr(kernels, name)(*arguments, *more) for kernels in (adapter_kernels, AdapterShapes()))
        assert (made.shape, made.dtype) == (counted.shape, counted.dtype)


class InTorch:
    """The kernels' part played by torch, for a CPU; dropout keeps every other number."""

    def kept(self, x, dropout):
        return torch.arange(x.shape[-1]) % 2 / (1 - dropout) if dropout else torch.ones(x.shape[-1])

    def drawn_seed(self):
        return int(torch.randint(2**31, ()))

    def down_product(self, x, down, dropout, seed):
        self.seed = seed
        return (x * self.kept(x, dropout)) @ down.T

    def gradient_of_down(self, x, of_inner, dropout, seed):
        assert seed == self.seed
        return of_inner.T @ (x * self.kept(x, dropout))

    def gradient_of_x(self, of_x, of_inner, down, dropout, seed):
        assert seed == self.seed
        return of_x + (of_inner @ down) * self.kept(of_x, dropout)

    def sum_with_up(self, y, inner, up, scale):
        return y + scale * inner @ up.T


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_autograd_finds_the_gradients_of_both_products_of_an_input(dropout):
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    down = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    frozen = torch.randn(5, 6, dtype=torch.float64)

    def both(x, down):
        torch.manual_seed(0)
        passed, inner = _DownProduct.apply(x, down, dropout, InTorch())
        return passed @ frozen.T, inner

    assert torch.autograd.gradcheck(both, (x, down))
    assert torch.autograd.gradcheck(lambda down: both(x.detach(), down), (down,))
    y, inner, up = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((6, 5), (6, 2), (5, 2)))
    assert torch.autograd.gradcheck(lambda y, inner, up: _SumWithUp.apply(y, inner, up, 1.5, InTorch()), (y, inner, up))


def test_a_layer_of_peft_computes_by_the_kernels_what_it_computes_without():
    from peft import LoraConfig, get_peft_model

    asked = []

    def kernels(x, rank):
        asked.append(rank)
        return InTorch()

    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4))
    config = LoraConfig(r=3, target_modules=["0", "1"], init_lora_weights=False)
    wrapped = get_peft_model(net, config)
    x = torch.randn(7, 6)

    def answer():
        wrapped.zero_grad()
        found = wrapped(x)
        found.square().mean().backward()
        return [found.detach(), *(p.grad.clone() for p in wrapped.parameters() if p.requires_grad)]

    due = answer()
    assert follow_input_dtype(wrapped, "default", kernels) == 2
    for one, expected in zip(answer(), due, strict=True):
        torch.testing.assert_close(one, expected)
    assert asked == [3, 3]
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), due[0])
    assert asked == [3, 3]  # nothing is kept for a way back


class Drawn(InTorch):
    """Dropout keeps what the seed says, as the kernels have it."""

    def down_product(self, x, down, dropout, seed):
        return (x * self.drawn(x, dropout, seed)) @ down.T

    def gradient_of_down(self, x, of_inner, dropout, seed):
        return of_inner.T @ (x * self.drawn(x, dropout, seed))

    def gradient_of_x(self, of_x, of_inner, down, dropout, seed):
        return of_x + (of_inner @ down) * self.drawn(of_x, dropout, seed)

    def drawn(self, x, dropout, seed):
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(x.shape, generator=generator, dtype=x.dtype) >= dropout) / (1 - dropout)


def test_what_is_computed_again_in_backward_drops_the_same_numbers():
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    down = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)

    def inner(x):
        return _DownProduct.apply(x.tanh(), down, 0.5, Drawn())[1].tanh()

    found = []
    for compute in (inner, lambda x: checkpoint(inner, x, use_reentrant=False)):
        torch.manual_seed(3)
        y = compute(x)
        torch.rand(7)  # whatever else draws before the way back
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, down))))
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


def test_a_cpu_has_no_kernels():
    assert branch_kernels(torch.ones(2, 4, dtype=torch.bfloat16), 4) is None
