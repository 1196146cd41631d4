"""ChatGLM2's int4/int8 linear layers: the stored form, the product, its gradient, and whole models."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from glmspectra.chatglm2 import quantization
from glmspectra.chatglm2.quantization import (
    FUSED_TOKENS,
    QuantizedLinear,
    prepare_quantized_modules,
    quantize_model,
)
from glmspectra.checkpoint import open_checkpoint
from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows, quantize_rows, unpack_int4
from glmspectra.errors import RequestError

BITS = [4, 8]
CONFIG = {
    "num_layers": 2,
    "padded_vocab_size": 96,
    "hidden_size": 32,
    "ffn_hidden_size": 44,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "seq_length": 64,
}


def quantized_linear(bits, rows=24, columns=40, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    return linear, QuantizedLinear.from_linear(linear, bits)


def tiny_model(**changes):
    from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration

    torch.manual_seed(0)
    return ChatGLMForConditionalGeneration(ChatGLMConfig(**CONFIG | changes)).eval()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_widened_weight(bits, bias):
    linear, layer = quantized_linear(bits, bias=bias)
    x = torch.randn(2, 5, 40)
    weight = dequantize_rows(*quantize_rows(linear.weight.detach(), bits), bits)
    assert torch.equal(layer.dequantized_weight(), weight)
    expected = functional.linear(x, weight, linear.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    many = torch.randn(FUSED_TOKENS + 1, 40)  # widened for the call, then multiplied as any other weight
    assert torch.allclose(layer(many), functional.linear(many, weight, linear.bias), rtol=1e-5, atol=1e-5)
    assert layer(torch.zeros(0, 40)).shape == (0, 24)
    error = (weight - linear.weight).norm() / linear.weight.norm()
    assert (0.03 < error < 0.12) if bits == 4 else (0.001 < error < 0.01)


def test_shapes_and_dtypes_are_those_of_the_published_form():
    _, layer = quantized_linear(4, dtype=torch.float16)
    state = layer.state_dict()
    assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == {
        "weight": ((24, 20), torch.int8),
        "weight_scale": ((24,), torch.float16),
        "bias": ((24,), torch.float16),
    }
    assert layer.to(torch.float32).weight.dtype == torch.int8  # a change of precision leaves the whole numbers
    assert layer.weight_scale.dtype == torch.float32
    assert "bits=4" in repr(layer)


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_goes_to_the_input_alone(bits):
    _, layer = quantized_linear(bits)
    x = torch.randn(3, 40, requires_grad=True)
    direction = torch.randn(3, 24)
    (layer(x) * direction).sum().backward()
    assert torch.allclose(x.grad, direction @ layer.dequantized_weight(), atol=1e-6)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in layer.parameters())


def test_what_is_kept_for_the_way_back_is_packed():
    _, layer = quantized_linear(4, rows=512, columns=512)
    kept = []
    x = torch.randn(2, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x).sum()
    assert sum(tensor.nbytes for tensor in kept) < 512 * 512  # the widened weight would be four times that


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_not_in_half_precision(bits, dtype, monkeypatch):
    """Whole numbers times inputs pass the largest fp16 long before the scale brings them back; blocks join exactly."""
    monkeypatch.setattr(quantization, "BLOCK", 1000)  # several blocks of rows
    torch.manual_seed(0)
    weight = torch.rand(60, 512).to(dtype) * 0.01
    layer = QuantizedLinear.from_linear(linear_of(weight), bits)
    x = torch.rand(2, 512).to(dtype) * 30 + 30  # 512 x 127 x 45 is near three millions
    exact = x.double() @ dequantize_rows(layer.weight, layer.weight_scale, bits, torch.float64).t()
    limit = {torch.float16: 1e-3, torch.bfloat16: 5e-3, torch.float64: 1e-12}[dtype]
    y = layer(x)
    assert y.dtype == dtype
    assert ((y.double() - exact) / exact).abs().max() < limit


def linear_of(weight):
    linear = nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
    linear.weight.data = weight
    return linear


def test_autocast_takes_the_product_in_its_dtype():
    _, layer = quantized_linear(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 40)).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", BITS)
def test_a_model_is_quantized_saved_and_loaded(bits, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model()
    plain = {name: p.detach().clone() for name, p in model.state_dict().items()}
    ids = torch.randint(3, 90, (2, 7))
    before = model(ids).logits
    assert model.quantize(bits) is model
    found = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(found) == 2 * 4
    assert not any("output_layer" in name or "embedding" in name for name in found)
    assert model.config.quantization_bit == bits
    after = model(ids).logits
    distance = (after - before).norm() / before.norm()
    assert (1e-4 < distance < 0.05) if bits == 8 else (0.01 < distance < 0.6)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, after)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_bit"] == bits
    with open_checkpoint(tmp_path) as checkpoint:
        for name, module in model.named_modules():
            if isinstance(module, QuantizedLinear):
                weight = checkpoint.read(name + ".weight")
                assert checkpoint.tensors[name + ".weight"].quantization == f"int{bits}"
                assert torch.equal(weight, module.dequantized_weight(torch.float32))
                assert weight.shape == plain[name + ".weight"].shape


@pytest.mark.parametrize("bits", BITS)
def test_a_published_packed_checkpoint_in_bin_shards_loads(bits, tmp_path):
    """fp16 scales, two .bin shards, as the published int4 folder: the model computes with exactly those numbers."""
    from transformers import AutoModelForCausalLM

    model = tiny_model().half()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in list(state.items()):
        if ".layers." in name and tensor.dim() == 2:
            state[name], state[name + "_scale"] = quantize_rows(tensor, bits)
            module = model.get_submodule(name.removesuffix(".weight"))
            module.weight.data = dequantize_rows(state[name], state[name + "_scale"], bits, torch.float16)
    names = sorted(state)
    weight_map = {}
    for shard in (0, 1):
        file = f"pytorch_model-{shard + 1:05d}-of-00002.bin"
        torch.save({name: state[name] for name in names[shard::2]}, tmp_path / file)
        weight_map |= dict.fromkeys(names[shard::2], file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "chatglm", "quantization_bit": bits}))
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(3, 90, (1, 6))
    found, expected = loaded.eval()(ids).logits.float(), model(ids).logits.float()
    assert (found - expected).norm() / expected.norm() < 5e-3  # sums in half precision, in another order


@pytest.mark.parametrize("bits", BITS)
def test_lora_trains_on_a_packed_base(bits):
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    model.quantize(bits)
    packed = {name: p.clone() for name, p in model.named_parameters() if p.dtype == torch.int8}
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["query_key_value", "dense_4h_to_h"], lora_alpha=8))
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * 2
    optimizer = torch.optim.AdamW(trainable, lr=2e-2)
    ids = torch.randint(3, 90, (2, 12))
    losses = []
    for _ in range(12):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, losses
    after = dict(model.base_model.model.named_parameters())
    after = {name.replace(".base_layer", ""): p for name, p in after.items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in packed.items())


def test_requests_that_cannot_be():
    model = tiny_model()
    with pytest.raises(RequestError, match="4 or 8 bits, not 3"):
        quantize_model(model, 3)
    quantize_model(model, 8)
    with pytest.raises(RequestError, match="quantized already"):
        quantize_model(model, 4)
    with pytest.raises(RequestError, match="nothing was quantized"):
        quantize_model(nn.Sequential(nn.Linear(4, 4)), 8)
    with pytest.raises(RequestError, match="does not fit it"):
        prepare_quantized_modules(nn.Sequential(nn.Linear(4, 4)), 8)
    with torch.device("meta"):
        empty = tiny_model()
    with pytest.raises(RequestError, match="no weights yet"):
        quantize_model(empty, 8)
    with pytest.raises(RequestError, match="does not pair up"):
        QuantizedLinear(3, 4, 4)
    broken = tiny_model()
    with torch.no_grad():
        broken.transformer.encoder.layers[1].mlp.dense_4h_to_h.weight[0, 0] = float("nan")
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.dense_4h_to_h\.weight holds NaN or Inf"):
        quantize_model(broken, 4)
    assert not any(isinstance(module, QuantizedLinear) for module in broken.modules())  # nothing was changed


def test_a_model_with_adapters_is_not_quantized():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["query_key_value"]))
    model.base_model.model.transformer.encoder.layers[
        0
    ].mlp.dense_4h_to_h = nn.modules.linear.NonDynamicallyQuantizableLinear(44, 32)
    with pytest.raises(RequestError, match="carries an adapter or another quantization"):
        quantize_model(model, 4)


INTERPRETED = """
import torch
from glmspectra.chatglm2 import quantization_kernels as kernels
from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows, quantize_rows
torch.manual_seed(0)
for bits in (4, 8):
    for dtype in (torch.float32, torch.float16):
        for rows, columns in ((37, 130), (64, 1100)):
            packed, scale = quantize_rows(torch.randn(rows, columns).to(dtype), bits)
            widened = kernels.dequantize(packed, scale, bits, dtype)
            assert torch.equal(widened, dequantize_rows(packed, scale, bits, dtype))
print("agreed")
"""


@pytest.mark.slow
def test_the_kernels_under_tritons_interpreter():
    """The kernels' own code, run by Triton on a CPU, against exact arithmetic."""
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "agreed", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 2, 16, FUSED_TOKENS, FUSED_TOKENS + 1])
def test_kernels_on_a_gpu_agree_with_the_torch_path(bits, dtype, tokens):
    kernels = pytest.importorskip("glmspectra.chatglm2.quantization_kernels")
    torch.manual_seed(0)
    for rows, columns in ((4608, 4096), (100, 1234)):
        packed, scale = quantize_rows(torch.randn(rows, columns, device="cuda").to(dtype), bits)
        reference = dequantize_rows(packed, scale, bits, dtype)
        widened = kernels.dequantize(packed, scale, bits, dtype)
        assert torch.equal(widened, reference)
        x = torch.randn(tokens, columns, device="cuda", dtype=dtype, requires_grad=True)
        layer = QuantizedLinear(columns, rows, bits, device="cuda", dtype=dtype)
        layer.weight.data, layer.weight_scale.data = packed, scale
        y = layer(x)
        exact = x.double() @ dequantize_rows(packed, scale, bits, torch.float64).t()
        limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-3}[dtype]
        assert (y.double() - exact).norm() / exact.norm() < limit
        y.sum().backward()
        assert torch.allclose(x.grad.float(), reference.float().sum(0).expand_as(x), rtol=2e-2, atol=2.0)


def test_the_left_column_is_in_the_high_half():
    _, layer = quantized_linear(4)
    values = unpack_int4(layer.weight)
    assert torch.equal(values[:, 0], layer.weight[:, 0] >> 4)
