"""The fused kernels against the torch code they stand for: on a CPU under Triton's interpreter, on a GPU for real."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.layers import RMSNorm, RotaryEmbedding, rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
needs_kernels = pytest.mark.skipif(not KERNELS, reason="needs a CUDA device or TRITON_INTERPRET=1")
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # relative, Frobenius
# The interpreter cuts bfloat16 off where a GPU rounds it.
DTYPES = [torch.float32, torch.float16] if DEVICE == "cpu" else list(LIMITS)


def assert_near(found, due, dtype):
    error = (found.double() - due.double()).norm() / due.double().norm()
    assert error < LIMITS[dtype], float(error)


def drawn(*shape, dtype=torch.float32, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_(requires_grad)


def exact_swiglu(gate_and_up):
    gate, up = gate_and_up.double().chunk(2, -1)
    return F.silu(gate) * up


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 26), (1, 1, 2100), (5, 2048)])
def test_swiglu_and_its_gradient(dtype, shape):
    from glmspectra.chatglm2 import layer_kernels

    x, given = drawn(*shape, dtype=dtype, requires_grad=True), drawn(*shape[:-1], shape[-1] // 2, dtype=dtype, seed=1)
    found = layer_kernels.swiglu(x)
    (of_x,) = torch.autograd.grad(found, x, given)
    twin = x.detach().double().requires_grad_()
    due = exact_swiglu(twin)
    (of_twin,) = torch.autograd.grad(due, twin, given.double())
    assert found.dtype == of_x.dtype == dtype
    assert_near(found, due, dtype)
    assert_near(of_x, of_twin, dtype)


def exact_split(mixed, cos, sin, heads, groups):
    turned = rotate(mixed[:, :, : heads + groups], cos, sin)
    parts = (*turned.split([heads, groups], 2), mixed[:, :, heads + groups :])
    return tuple(part.transpose(1, 2) for part in parts)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (16, 1)])
def test_rotary_split_and_its_gradient(dtype, rows, heads, groups):
    from glmspectra.chatglm2 import layer_kernels

    length, size = 5, 16
    embedding = RotaryEmbedding(ChatGLMConfig(kv_channels=size))
    positions = torch.arange(length)[None] + 7 * torch.arange(rows)[:, None]
    cos, sin = (part.to(DEVICE) for part in embedding(positions, dtype))
    mixed = drawn(2, length, heads + 2 * groups, size, dtype=dtype, requires_grad=True)
    found = layer_kernels.split_rotated(mixed, cos, sin, heads, groups)
    # Gradients as attention gives them: contiguous in one case, transposed in the other, of another stride for values.
    given = [drawn(*found[0].shape, dtype=dtype, seed=1)]
    given.append(drawn(2, length, groups, size, dtype=dtype, seed=2).transpose(1, 2))
    given.append(drawn(2, groups, size, length, dtype=dtype, seed=3).transpose(2, 3))
    (of_mixed,) = torch.autograd.grad(found, mixed, given)
    twin = mixed.detach().double().requires_grad_()
    due = exact_split(twin, cos.double(), sin.double(), heads, groups)
    (of_twin,) = torch.autograd.grad(due, twin, [part.double() for part in given])
    for part, due_part in zip(found, due, strict=True):
        assert_near(part, due_part, dtype)
    assert_near(of_mixed, of_twin, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 4096])
def test_adding_before_a_norm(dtype, size):
    from glmspectra.chatglm2 import decode_kernels

    norm = RMSNorm(size, 1e-5).to(DEVICE, dtype)
    norm.weight.data.uniform_(0.5, 2.0)
    x, y = drawn(3, 1, size, dtype=dtype), drawn(3, 1, size, dtype=dtype, seed=1)
    total, normed = decode_kernels.add_and_norm(x, y, norm.weight, norm.eps)
    assert torch.equal(total, x + y)
    due = F.rms_norm((x + y).double(), (size,), norm.weight.double(), norm.eps)
    assert_near(normed, due, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 300])
def test_the_gradient_of_adding_and_the_norm_of_the_sum(dtype, size):
    from glmspectra.chatglm2 import layer_kernels

    x, y = (drawn(3, 2, size, dtype=dtype, seed=seed, requires_grad=True) for seed in (0, 1))
    weight = drawn(size, dtype=dtype, seed=2)
    given = [drawn(3, 2, size, dtype=dtype, seed=seed) for seed in (3, 4)]
    total, normed = layer_kernels.add_and_norm(x, y, weight, 1e-5)
    assert torch.equal(total, x + y)
    found = torch.autograd.grad([total, normed], [x, y], given)
    twin = total.detach().double().requires_grad_()
    due = F.rms_norm(twin, (size,), weight.double(), 1e-5)
    assert_near(normed, due, dtype)
    (of_due,) = torch.autograd.grad([twin * 1, due], twin, [part.double() for part in given])
    for gradient in found:
        assert_near(gradient, of_due, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (40, 2)])
@pytest.mark.parametrize(("cached", "count"), [(9, 0), (70, 69), (300, 130)])
def test_attention_of_one_token_over_a_static_cache(dtype, heads, groups, cached, count):
    from glmspectra.chatglm2 import decode_kernels

    size, batch = 32, 2
    embedding = RotaryEmbedding(ChatGLMConfig(kv_channels=size))
    cos, sin = (part.to(DEVICE) for part in embedding(torch.tensor([[count], [max(0, count - 3)]]), dtype))
    mixed = drawn(batch, 1, heads + 2 * groups, size, dtype=dtype)
    keys, values = (drawn(batch, groups, cached, size, dtype=dtype, seed=seed) for seed in (1, 2))
    seen = torch.zeros(batch, 1, 1, cached, dtype=torch.bool, device=DEVICE)
    seen[..., : count + 1] = True
    seen[1, ..., : min(3, count)] = False  # padding on the left
    query, key, value = exact_split(mixed.double(), cos.double(), sin.double(), heads, groups)
    due_keys, due_values = keys.double(), values.double()
    due_keys[:, :, count], due_values[:, :, count] = key[:, :, 0], value[:, :, 0]
    repeats = heads // groups
    due = F.scaled_dot_product_attention(
        query, due_keys.repeat_interleave(repeats, 1), due_values.repeat_interleave(repeats, 1), seen
    )
    counted = torch.tensor(count, device=DEVICE)
    found = decode_kernels.attend_to_cache(mixed, cos, sin, keys, values, counted, seen, size**-0.5)
    assert found.shape == (batch, 1, heads, size)
    assert int(counted) == count + 1
    assert_near(keys, due_keys, dtype)
    assert torch.equal(values, due_values.to(dtype))
    assert_near(found, due.transpose(1, 2), torch.bfloat16 if DEVICE == "cuda" else dtype)  # tensor cores round weights


HALVES = [dtype for dtype in DTYPES if dtype != torch.float32]


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "columns"), [(5, 24), (37, 2080), (300, 4096)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_of_one_token(dtype, rows, columns, bias):
    from glmspectra.chatglm2 import vector_kernels

    x, weight = drawn(1, 1, columns, dtype=dtype), drawn(rows, columns, dtype=dtype, seed=1)
    offset = drawn(rows, dtype=dtype, seed=2) if bias else None
    found = vector_kernels.plain_product(x, weight, offset)
    assert found.shape == (1, 1, rows)
    assert_near(found, F.linear(x.double(), weight.double(), offset.double() if bias else None), dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_gated_product_of_one_token(dtype, bias):
    from glmspectra.chatglm2 import vector_kernels

    x, weight = drawn(1, 1, 136, dtype=dtype), drawn(2 * 37, 136, dtype=dtype, seed=1)
    offset = drawn(2 * 37, dtype=dtype, seed=2) if bias else None
    found = vector_kernels.gated_product(x, weight, offset)
    assert found.shape == (1, 1, 37)
    assert_near(found, exact_swiglu(F.linear(x.double(), weight.double(), offset.double() if bias else None)), dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(5, 24), (37, 2080)])
def test_the_product_of_one_token_with_whole_numbers(dtype, bits, rows, columns):
    from glmspectra.chatglm2 import vector_kernels
    from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows, quantize_rows

    x, offset = drawn(1, columns, dtype=dtype), drawn(rows, dtype=dtype, seed=2)
    packed, scale = quantize_rows(drawn(rows, columns, dtype=dtype, seed=1), bits)
    found = vector_kernels.integer_product(x, packed, scale, bits, offset)
    assert_near(found, F.linear(x.double(), dequantize_rows(packed, scale, bits).double(), offset.double()), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "columns"), [(37, 64), (300, 4096), (64, 13696)])
def test_the_product_of_one_token_with_nf4_is_bitsandbytes(rows, columns):
    functional = pytest.importorskip("bitsandbytes.functional")
    from glmspectra.chatglm2 import nf4_cuda, vector_kernels

    x, weight = (drawn(count, columns, dtype=torch.bfloat16, seed=count) for count in (1, rows))
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    found = vector_kernels.nf4_product(x, packed, state.absmax, rows)
    # The codes are rounded to bfloat16, as in bitsandbytes' own product.
    due = F.linear(x.double(), functional.dequantize_4bit(packed, state).double())
    assert_near(found, due, torch.bfloat16)
    kernels = nf4_cuda.nf4_kernels(x.device)
    if kernels is not None:  # cuda.core is there
        assert_near(kernels.product(x, packed, state.absmax, rows), due, torch.bfloat16)
        bias = drawn(rows, dtype=torch.bfloat16, seed=7)
        due = due + bias.double()
        assert_near(kernels.product(x, packed, state.absmax, rows, bias), due, torch.bfloat16)
        if rows % 2 == 0:
            found = kernels.product(x, packed, state.absmax, rows, bias, gated=True)
            assert_near(found, exact_swiglu(due), torch.bfloat16)
        due = functional.dequantize_4bit(packed, state)
        assert torch.equal(kernels.widened(packed, state.absmax, (rows, columns)), due)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_scales_are_those_that_bitsandbytes_widens_by(nested):
    bnb = pytest.importorskip("bitsandbytes")
    from glmspectra.chatglm2.one_token import nf4_scales

    layer = bnb.nn.Linear4bit(128, 48, quant_type="nf4", compress_statistics=nested, compute_dtype=torch.bfloat16)
    layer.load_state_dict({"weight": drawn(48, 128).cpu()}, strict=False)
    layer = layer.to(DEVICE)
    scales = nf4_scales(layer)
    assert (scales.dtype, scales.numel()) == (torch.float32, 48 * 128 // 64)
    packed, state = layer.weight.data, layer.weight.quant_state
    codes = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], -1).long().view(-1, 64)
    due = bnb.functional.dequantize_4bit(packed, state)
    torch.testing.assert_close((state.code[codes] * scales[:, None]).view(48, 128), due.float(), rtol=1e-6, atol=1e-7)
    other = bnb.nn.Linear4bit(128, 48, quant_type="fp4")
    other.load_state_dict({"weight": drawn(48, 128).cpu()}, strict=False)
    assert nf4_scales(other.to(DEVICE)) is None
    assert nf4_scales(torch.nn.Linear(128, 48)) is None


def test_a_block_leaves_the_norm_of_its_sum_to_the_next(tmp_path):
    """As a step of decoding is recorded: the same numbers, and no trace afterwards."""
    from glmspectra.chatglm2.modeling import ChatGLMForConditionalGeneration
    from glmspectra.chatglm2.one_token import OneTokenProducts

    config = ChatGLMConfig(
        num_layers=3, hidden_size=64, ffn_hidden_size=96, kv_channels=16, num_attention_heads=4, padded_vocab_size=50
    )
    model = ChatGLMForConditionalGeneration(config).eval()
    ids = torch.arange(5)[None]
    parts = [name for name, _ in model.named_modules()]
    with torch.no_grad():
        due = model(ids).logits
        products = OneTokenProducts(model)
        with products.used():
            norms = [block.following for block in model.transformer.encoder.layers]
            found = model(ids).logits
            assert [name for name, _ in model.named_modules()] == parts
    assert norms[-1] is model.transformer.encoder.final_layernorm
    assert torch.equal(found, due)
    assert all(block.following is None for block in model.transformer.encoder.layers)
    assert all(norm.made is None for norm in norms)


@pytest.mark.slow
@pytest.mark.skipif(KERNELS, reason="these tests run the kernels themselves")
def test_all_of_these_under_tritons_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
