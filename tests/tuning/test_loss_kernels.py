"""The loss by one kernel against torch's cross entropy; products with widened 4-bit weights against bitsandbytes'."""

import os

import pytest
import torch
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(not KERNELS, reason="needs a CUDA device or TRITON_INTERPRET=1")
@pytest.mark.parametrize(("rows", "size"), [(3, 50), (5, 9001)])
def test_losses_and_their_gradient_in_the_place_of_the_logits(rows, size):
    from glmspectra.tuning.training.loss_kernels import losses_in_place

    generator = torch.Generator().manual_seed(size)
    logits = (8 * torch.randn(rows, size, generator=generator)).half().to(DEVICE)
    targets = torch.randint(0, size, (rows,), generator=generator).to(DEVICE)
    targets[0] = logits[0].argmax()
    logits[1, targets[1]] = logits[1].max()  # as large as another before or behind it: the first counts
    first = logits.double().argmax(-1)
    wide = logits.double().requires_grad_()
    due = F.cross_entropy(wide, targets, reduction="none")
    (gradient,) = torch.autograd.grad(due.sum(), wide)
    nll, correct = torch.empty(rows, device=DEVICE), torch.empty(rows, dtype=torch.bool, device=DEVICE)
    kept = logits.clone()
    losses_in_place(kept, targets, nll, correct, False)
    assert torch.equal(kept, logits)
    torch.testing.assert_close(nll.double(), due.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, first == targets)
    losses_in_place(logits, targets, nll, correct, True)
    torch.testing.assert_close(logits.double(), gradient, rtol=2e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("nested", [False, True])
def test_widened_by_the_kernel_or_by_bitsandbytes_products_are_the_same(nested):
    bnb = pytest.importorskip("bitsandbytes")
    from glmspectra.tuning.model.four_bit_products import widen_by_kernel

    layer = bnb.nn.Linear4bit(
        256, 384, quant_type="nf4", compress_statistics=nested, compute_dtype=torch.bfloat16, bias=False
    ).to("cuda")
    x, given = (
        torch.randn(2, 300, size, device="cuda", dtype=torch.bfloat16, requires_grad=size == 256) for size in (256, 384)
    )

    def product():
        found = layer(x)
        return found, torch.autograd.grad(found, x, given)[0]

    before = product()
    assert widen_by_kernel(layer) == 1
    for found, due in zip(product(), before, strict=True):
        error = (found.double() - due.double()).norm() / due.double().norm()
        assert error < 4e-3  # the order of sums may be another


def test_on_a_cpu_four_bit_layers_compute_as_bitsandbytes_has_them():
    bnb = pytest.importorskip("bitsandbytes")
    from glmspectra.tuning.model.four_bit_products import widen_by_kernel

    layer = bnb.nn.Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.float32, bias=False)
    layer.load_state_dict({"weight": torch.randn(32, 64)}, strict=False)
    layer = layer.to("cpu")
    x = torch.randn(300, 64)
    before = layer(x)
    assert widen_by_kernel(layer) == 1
    assert torch.equal(layer(x), before)


class WidenedByTable:
    """Stands for the compiled kernels on a CPU."""

    def widened(self, packed, scales, shape):
        from bitsandbytes.functional import get_4bit_type

        codes = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(-1, 64).long()
        return (get_4bit_type("nf4", device="cpu")[codes] * scales[:, None]).view(shape).bfloat16()


@pytest.mark.parametrize("nested", [False, True])
def test_the_product_and_its_gradient_are_bitsandbytes_though_the_weight_was_put_elsewhere(monkeypatch, nested):
    bnb = pytest.importorskip("bitsandbytes")
    from glmspectra.tuning.model import four_bit_products as products

    monkeypatch.setattr(products, "nf4_kernels", lambda device: WidenedByTable())
    layer = bnb.nn.Linear4bit(
        128, 64, quant_type="nf4", compress_statistics=nested, compute_dtype=torch.bfloat16, bias=False
    )
    layer.load_state_dict({"weight": torch.randn(64, 128)}, strict=False)
    layer = layer.to("cpu")
    x = torch.randn(3, 100, 128).bfloat16().requires_grad_()
    given = torch.randn(3, 100, 64).bfloat16()
    due = layer(x)
    found = products._FrozenProduct.apply(x, layer, products.nf4_scales(layer))
    assert torch.equal(found, due)
    (of_due,) = torch.autograd.grad(due, x, given)
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)  # as sharding does
    (of_found,) = torch.autograd.grad(found, x, given)
    assert torch.equal(of_found, of_due)
