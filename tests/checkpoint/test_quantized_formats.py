"""Quantized weights come back as the library that wrote them would dequantize them."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows, pack_int4, quantize_rows, unpack_int4
from glmspectra.checkpoint.formats.round_trip import quantized_copy
from glmspectra.errors import CheckpointError, RequestError
from tests.checkpoint.made_checkpoints import CONFIG, chatglm2_tensors, write

QKV = "transformer.encoder.layers.0.self_attention.query_key_value.weight"


def test_int4_packs_the_left_number_into_the_high_half():
    values = torch.tensor([[1, 2, -1, -8], [7, -7, 0, 5]], dtype=torch.int8)
    packed = pack_int4(values)
    assert [[byte % 256 for byte in row] for row in packed.tolist()] == [[0x12, 0xF8], [0x79, 0x05]]
    assert torch.equal(unpack_int4(packed), values)


def test_int4_round_trip_of_every_byte():
    every = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).reshape(16, 16)
    assert torch.equal(pack_int4(unpack_int4(every)), every)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_quantized_to_the_nearest_step(bits, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(40, 64) * torch.logspace(-3, 1, 40)[:, None]).to(dtype)
    packed, scale = quantize_rows(weight, bits)
    assert packed.dtype == torch.int8
    assert packed.shape == (40, 64 * bits // 8)
    assert scale.dtype == dtype
    back = dequantize_rows(packed, scale, bits)
    step = scale.float()[:, None]
    slack = {torch.float16: 2**-8, torch.bfloat16: 2**-5, torch.float32: 1e-5}[dtype] * 2 ** (bits - 1)
    assert ((back - weight.float()).abs() <= step * (0.5 + slack)).all()
    assert ((back - weight.float()).abs() > step * 0.4).any()  # and the bound is no loose one


def test_the_arithmetic_is_that_of_the_original_in_half():
    """s = max|row| / 7 and q = round(w / s), each rounded to fp16, against the same in numpy's fp16."""
    torch.manual_seed(0)
    weight = torch.randn(64, 128).half()
    packed, scale = quantize_rows(weight, 4)
    w = weight.numpy()
    expected_scale = np.abs(w).max(1) / np.float16(7)
    expected = np.round(w / expected_scale[:, None]).astype(np.int8)
    assert np.array_equal(scale.numpy(), expected_scale)
    assert np.array_equal(unpack_int4(packed).numpy(), expected)


def test_rows_of_zeros_and_numbers_that_are_none():
    weight = torch.zeros(2, 4)
    weight[1, 2] = 3
    packed, scale = quantize_rows(weight, 4)
    assert scale[0] == 0
    assert torch.equal(dequantize_rows(packed, scale, 4), weight)
    with pytest.raises(RequestError, match="NaN or Inf"):
        quantize_rows(torch.tensor([[float("nan"), 1.0]]), 8)
    with pytest.raises(RequestError, match="pair up"):
        quantize_rows(torch.ones(2, 3), 4)
    with pytest.raises(RequestError, match="not 3"):
        quantize_rows(torch.ones(2, 4), 3)
    with pytest.raises(CheckpointError, match="do not belong together"):
        dequantize_rows(packed, scale[:1], 4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_error_of_quantizing_is_that_of_what_is_stored(bits, dtype):
    """One rule: the copy whose error is measured is the copy that ChatGLM's own format holds, to the bit."""
    torch.manual_seed(0)
    weight = (torch.randn(24, 65) * 0.02).to(dtype)
    packed, scale = quantize_rows(torch.nn.functional.pad(weight, (0, 1)), bits)
    stored = dequantize_rows(packed, scale.float(), bits)
    assert torch.equal(quantized_copy(weight, f"int{bits}"), stored[:, :65])
    assert quantized_copy(torch.full((2, 2), float("inf")), f"int{bits}").isnan().all()


def packed_checkpoint(folder, bits, config):
    tensors = chatglm2_tensors(layers=2)
    stored, expected = {}, {}
    for name, tensor in tensors.items():
        if ".layers." in name and tensor.dim() == 2:
            stored[name], stored[name + "_scale"] = quantize_rows(tensor, bits)
            expected[name] = dequantize_rows(stored[name], stored[name + "_scale"], bits)
        else:
            stored[name] = expected[name] = tensor
    return write(folder, stored, "bin", shards=2, config=config), stored, expected


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stated", [True, False])
def test_official_packed_form(tmp_path, bits, stated):
    config = CONFIG | ({"quantization_bit": bits} if stated else {})
    folder, stored, expected = packed_checkpoint(tmp_path, bits, config)
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        record = checkpoint.tensors[QKV]
        assert (record.quantization, record.dtype, record.shape) == (f"int{bits}", "int8", (64, 32))
        assert record.nbytes == stored[QKV].nbytes + stored[QKV + "_scale"].nbytes
        assert [part.name for part in record.parts("parts")] == ["whole", "q", "k", "v"]
        assert len(select(checkpoint)) == 8
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.read(name), tensor)
        assert torch.equal(checkpoint.read_stored(QKV), stored[QKV])


def test_packed_form_whose_bits_cannot_be_told(tmp_path):
    folder, *_ = packed_checkpoint(tmp_path, 8, None)
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r'"quantization_bit" in config\.json'),
    ):
        select(checkpoint)


def save_4bit(folder, quant_type, nested, dtype, shape=(70, 128)):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=dtype) * 0.05
    layer = bitsandbytes.nn.Linear4bit(
        shape[1], shape[0], bias=False, quant_type=quant_type, compress_statistics=nested, compute_dtype=dtype
    )
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu")
    state = layer.weight.quant_state
    assert state is not None
    prefix = "model.layers.0.self_attn.q_proj."
    save_file({prefix + k: v.contiguous() for k, v in layer.state_dict().items()}, folder / "model.safetensors")
    return bitsandbytes, layer, prefix + "weight", weight


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4bit(tmp_path, quant_type, nested):
    bitsandbytes, layer, name, weight = save_4bit(tmp_path, quant_type, nested, torch.float16)
    layer.weight.quant_state.dtype = torch.float32  # what is stored, with no rounding to half after it
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with open_checkpoint(tmp_path) as checkpoint:
        (record,) = select(checkpoint)
        assert list(checkpoint.tensors) == [name]
        assert (record.quantization, record.shape, record.matrix) == (quant_type, tuple(weight.shape), "q_proj")
        found = checkpoint.read(name)
        checkpoint.release(name)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert 0.05 < (found - weight).norm() / weight.norm() < 0.2  # it is the quantized weight, not the weight


def test_bitsandbytes_4bit_of_an_odd_count(tmp_path):
    """The last block is not full, and the last byte holds one number."""
    bitsandbytes, layer, name, _ = save_4bit(tmp_path, "nf4", False, torch.float32, shape=(3, 35))
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with open_checkpoint(tmp_path) as checkpoint:
        assert torch.allclose(checkpoint.read(name), expected, rtol=1e-6, atol=1e-9)


def test_bitsandbytes_4bit_of_blocks_across_rows(tmp_path):
    """Rows of 96 in blocks of 64: bitsandbytes 0.50.2 itself gets these wrong on a CPU, so the weight judges."""
    *_, name, weight = save_4bit(tmp_path, "nf4", False, torch.float32, shape=(70, 96))
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.read(name)
    peak = weight.reshape(-1, 64).abs().amax(dim=1, keepdim=True)
    widest = 0.3039 / 2  # the largest gap between neighbours of the NF4 code (-1.0 and -0.6962), halved
    assert ((found - weight).reshape(-1, 64).abs() <= peak * (widest + 1e-4)).all()


def test_bitsandbytes_4bit_with_a_part_missing(tmp_path):
    _, layer, name, _ = save_4bit(tmp_path, "nf4", True, torch.float16)
    parts = {name.removesuffix("weight") + k: v for k, v in layer.state_dict().items()}
    parts.pop(name + ".nested_absmax")
    save_file(parts, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"nested_absmax is missing"):
        checkpoint.read(name)
    for code in (".quant_map", ".nested_quant_map"):
        spoilt = parts | {name + ".nested_absmax": torch.zeros(1), name + code: torch.zeros(3)}
        save_file(spoilt, tmp_path / "model.safetensors")
        with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="do not belong together"):
            checkpoint.read(name)
    state = name + ".quant_state.bitsandbytes__nf4"
    parts[name + ".nested_absmax"] = torch.zeros(1)
    parts[state] = torch.tensor(list(json.dumps({"quant_type": "nf4"}).encode()), dtype=torch.uint8)
    save_file(parts, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="quantization state of"):
        checkpoint.read(name)


def test_bitsandbytes_8bit(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.randn(24, 40).half()
    layer = bitsandbytes.nn.Linear8bitLt(40, 24, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu")
    layer(torch.randn(2, 40).half())  # quantizes
    stored = layer.state_dict()
    assert stored["weight"].dtype == torch.int8
    prefix = "model.layers.0.mlp.up_proj."
    save_file({prefix + k: v.contiguous() for k, v in stored.items()}, tmp_path / "model.safetensors")
    expected = bitsandbytes.functional.int8_vectorwise_dequant(stored["weight"], stored["SCB"])
    with open_checkpoint(tmp_path) as checkpoint:
        (record,) = checkpoint.tensors.values()
        assert (record.name, record.quantization) == (prefix + "weight", "llm_int8")
        found = checkpoint.read(record.name)
    assert torch.allclose(found, expected.float(), rtol=1e-6)
    assert (found - weight.float()).abs().max() <= weight.abs().amax() / 127


@pytest.mark.parametrize("scales", ["block", "row", "tensor"])
def test_fp8_with_scales(tmp_path, scales):
    torch.manual_seed(0)
    weight = torch.randn(130, 200).to(torch.float8_e4m3fn)
    shape = {"block": (2, 2), "row": (130, 1), "tensor": ()}[scales]
    scale = torch.rand(shape) + 0.5
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: weight, name + "_scale_inv": scale}, tmp_path / "model.safetensors")
    blocks = scales == "block"
    full = scale.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :200] if blocks else scale
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors[name].quantization == "fp8"
        assert torch.equal(checkpoint.read(name), weight.float() * full)
    save_file({name: weight, name + "_scale_inv": torch.ones(7, 3)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="do not belong together"):
        checkpoint.read(name)


def test_gguf_written_here(tmp_path):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 64), dtype=np.float32)
    types = {
        "blk.0.attn_q.weight": gguf.GGMLQuantizationType.Q8_0,
        "blk.0.attn_k.weight": gguf.GGMLQuantizationType.Q4_0,
        "blk.0.ffn_up.weight": gguf.GGMLQuantizationType.BF16,
        "blk.0.ffn_gate.weight": gguf.GGMLQuantizationType.F16,
    }
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_head_count(2)
    writer.add_embedding_length(64)
    for name, ggml_type in types.items():
        if ggml_type == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, weight.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, ggml_type), raw_dtype=ggml_type)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.format, checkpoint.name) == ("gguf", tmp_path.name)
        assert checkpoint.config["model_type"] == "llama"
        assert [record.matrix for record in select(checkpoint)] == ["attn_q", "attn_k", "ffn_gate", "ffn_up"]
        records = checkpoint.tensors
        assert records["blk.0.attn_q.weight"].quantization == "gguf:Q8_0"
        assert records["blk.0.ffn_up.weight"].dtype == "bfloat16"
        for name, ggml_type in types.items():
            assert records[name].shape == (6, 64)
            found = checkpoint.read(name).float()
            quantized = (
                weight.astype(np.float16)
                if ggml_type == gguf.GGMLQuantizationType.F16
                else gguf.quants.quantize(weight, ggml_type)
            )
            expected = gguf.quants.dequantize(quantized, ggml_type)
            assert np.array_equal(found.numpy(), expected)
            assert np.abs(found.numpy() - weight).max() < 0.6
            checkpoint.release(name)
        assert checkpoint.read("blk.0.attn_norm.weight").shape == (64,)
    path = tmp_path / "m.gguf"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"truncated|no sound GGUF"):
        open_checkpoint(path)
    path.write_bytes(b"not a gguf file at all")
    with pytest.raises(CheckpointError, match="no sound GGUF"):
        open_checkpoint(path)


def test_gguf_experts_are_taken_one_by_one(tmp_path):
    """`ffn_gate_exps` of shape (experts, rows, columns) in blocks: each expert as gguf itself dequantizes it."""
    gguf = pytest.importorskip("gguf")
    weight = np.random.default_rng(0).standard_normal((3, 8, 64), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    ggml_type = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(weight, ggml_type)
    writer.add_tensor("blk.0.ffn_gate_exps.weight", packed, raw_dtype=ggml_type)
    writer.add_tensor("blk.0.ffn_up_exps.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = torch.from_numpy(gguf.quants.dequantize(packed, ggml_type))
    with open_checkpoint(tmp_path) as checkpoint:
        records = select(checkpoint)
        assert [(record.experts, record.rows, record.columns) for record in records] == [(3, 8, 64)] * 2
        for expert in range(3):
            assert torch.equal(checkpoint.read_matrix(records[0], expert), expected[expert])
            assert torch.equal(checkpoint.read_matrix(records[1], expert), torch.from_numpy(weight[expert]))
        assert torch.equal(checkpoint.read(records[0].name), expected)


def test_gguf_package_missing(tmp_path, monkeypatch):
    import sys

    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RequestError, match=re.escape("pip install gguf.")):
        open_checkpoint(tmp_path)
