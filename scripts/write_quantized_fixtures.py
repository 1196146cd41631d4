"""Writes tests/checkpoint/written/: small weights as each quantization library stores them, and as it reads them back.

Run once, with the libraries unpacked under LIBRARIES (none of them is needed by the project or its tests):

    python -m pip download --no-deps compressed-tensors==0.20.0 hqq==0.2.8.post1 auto-gptq==0.7.1 autoawq==0.2.9 \
        optimum-quanto==0.2.7        # unpack all into LIBRARIES; loguru and termcolor must be importable too
    python scripts/write_quantized_fixtures.py LIBRARIES
    python -m pip download --no-deps hqq==0.1.8     # its folder is OWN
    python scripts/write_quantized_fixtures.py OWN hqq_own_file

Each file NAME.safetensors holds the tensors as stored under `model.layers.0.mlp.up_proj.`, the library's own
dequantized weight as `expected`, and in its metadata the quantization_config and the library with its version.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[1] / "tests/checkpoint/written"
MODULE = "model.layers.0.mlp.up_proj."
ROWS, COLUMNS = 32, 64


def weight() -> torch.Tensor:
    """(32, 64) with rows of unequal size and one strong direction, so that scales and zero points differ."""
    generator = torch.Generator().manual_seed(20261127)
    plain = torch.randn(ROWS, COLUMNS, generator=generator) * torch.logspace(-2, -1, ROWS)[:, None] + 0.01
    return plain + 0.05 * torch.randn(ROWS, 1, generator=generator) @ torch.randn(1, COLUMNS, generator=generator)


def save(name: str, stored: dict, expected: torch.Tensor, config: dict, library: str) -> None:
    tensors = {MODULE + key: value.detach().contiguous() for key, value in stored.items()}
    metadata = {"format": "pt", "quantization_config": json.dumps(config), "library": library}
    save_file(tensors | {"expected": expected.detach().float().contiguous()}, OUT / f"{name}.safetensors", metadata)
    print(name, {key: (tuple(t.shape), str(t.dtype)) for key, t in stored.items()})


def load(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gptq(libraries: Path) -> None:
    linear = load(libraries / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py", "qlinear_cuda").QuantLinear
    for bits in (2, 3, 4, 8):
        for act_order in (False, True):
            source = torch.nn.Linear(COLUMNS, ROWS, bias=False)
            source.weight.data = weight()
            size, most = 32, 2**bits - 1
            group = torch.arange(COLUMNS) // size
            if act_order:
                group = group[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1))]
            low = torch.stack([source.weight.data[:, group == g].amin(1) for g in (0, 1)], 1).clamp(max=0)
            high = torch.stack([source.weight.data[:, group == g].amax(1) for g in (0, 1)], 1).clamp(min=0)
            scales = (high - low) / most
            zeros = (-low / scales).round().clamp(1, most)
            layer = linear(bits, size, COLUMNS, ROWS, False, weight_dtype=torch.float32)
            quantized = ((source.weight.data / scales[:, group]).round() + zeros[:, group]).clamp(0, most)
            source.weight.data = (quantized - zeros[:, group]) * scales[:, group]  # as GPTQ leaves the linear layer
            layer.pack(source, scales, zeros, group.to(torch.int32))
            expected = layer(torch.eye(COLUMNS)).t()
            stored = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
            config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": act_order, "sym": False}
            name = f"gptq_{bits}bit{'_act_order' if act_order else ''}"
            save(name, stored, expected, config, "auto-gptq 0.7.1")


def awq(libraries: Path) -> None:
    root = libraries / "autoawq-0.2.9/awq"
    for name, path in (
        ("awq", root),
        ("awq.modules", root / "modules"),
        ("awq.modules.linear", root / "modules/linear"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    source = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    grouped = weight().reshape(ROWS, 2, 32)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    quantized = ((grouped / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    source.weight.data = ((quantized - zeros[..., None]) * scales[..., None]).reshape(ROWS, COLUMNS)
    layer = WQLinear_GEMM.from_linear(source, 4, 32, False, scales.t().contiguous(), zeros.t().contiguous())
    expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, 32).t()
    stored = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales")}
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    save("awq_4bit", stored, expected, config, "autoawq 0.2.9")

    # The other versions compute on a GPU only: expected is the weight that was packed, whose numbers are exact.
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.modules.linear.gemv_fast import WQLinear_GEMVFast

    for version, layer_class in (("gemv", WQLinear_GEMV), ("gemv_fast", WQLinear_GEMVFast)):
        layer = layer_class.from_linear(source, 4, 32, False, scales, zeros)
        expected = source.weight.data
        if version == "gemv_fast":  # its -scale * zero is rounded to half precision
            shift = (-scales * zeros).half().float() + scales * zeros
            expected = expected + shift.repeat_interleave(32, dim=1)
        stored = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales")}
        save(f"awq_{version}", stored, expected, config | {"version": version}, "autoawq 0.2.9")


def compressed_tensors() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    cases = {
        "packed_int4_group": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16}),
        "packed_int4_group_zero": (
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
        ),
        "packed_int3_channel": ("pack-quantized", {"num_bits": 3, "strategy": "channel"}),
        "packed_int8_channel": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        "int8_channel": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
        "int8_channel_zero": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        "int8_group": ("int-quantized", {"num_bits": 8, "strategy": "group", "group_size": 16}),
        "fp8_tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        "fp8_channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        "fp8_block": (
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
        ),
        "nvfp4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
        "mxfp8": ("mxfp8-quantized", {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
    }
    for name, (form, words) in cases.items():
        extra = {"scale_dtype": torch.uint8} if form.startswith("mx") else {}
        arguments = QuantizationArgs(**words, **extra)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format=form)
        plain = weight()
        state = {"weight": plain}
        shape = _scale_shape(words)
        blocks = plain.reshape(shape[0], ROWS // shape[0], shape[1], COLUMNS // shape[1])
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        low, high = (low.min(), high.max()) if words["strategy"] == "tensor" else (low, high)
        largest = plain.abs().max()
        if form.startswith("nvfp4"):
            state["weight_global_scale"] = (448 * 6 / largest).reshape(1)
            local = torch.maximum(low.abs(), high.abs()) / 6 * state["weight_global_scale"]
            state["weight_scale"] = local.to(torch.float8_e4m3fn).float()
        elif form.startswith("mx"):
            most = 6.0 if "fp4" in form else 448.0
            state["weight_scale"] = 2.0 ** torch.ceil(torch.log2(torch.maximum(low.abs(), high.abs()) / most))
        else:
            scale, zero = calculate_qparams(low, high, arguments)
            state["weight_scale"] = scale if scale.dim() else scale.reshape(1)
            if words.get("symmetric") is False:
                state["weight_zero_point"] = zero.to(torch.int8)
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(dict(state), scheme)
        expected = compressor.decompress({k: v.clone() for k, v in stored.items()}, scheme)["weight"]
        config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": words, "format": form}},
        }
        save(f"compressed_{name}", stored, expected, config, "compressed-tensors 0.20.0")


def _scale_shape(words: dict) -> tuple[int, int]:
    if words["strategy"] == "block":
        return ROWS // words["block_structure"][0], COLUMNS // words["block_structure"][1]
    return ROWS, COLUMNS // words["group_size"] if "group_size" in words else 1


def hqq(libraries: Path) -> None:
    sys.path.insert(0, str(libraries / "hqq-0.2.8.post1"))
    from hqq.core.quantize import HQQLinear, Quantizer

    for bits in (8, 4, 3, 2, 1):
        for axis in (0, 1):
            source = torch.nn.Linear(COLUMNS, ROWS, bias=False)
            source.weight.data = weight()
            config = {
                "weight_quant_params": {
                    "nbits": bits, "channel_wise": True, "group_size": 32, "optimize": False, "round_zero": bits == 4,
                    "axis": axis, "view_as_float": False,
                },
                "scale_quant_params": None, "zero_quant_params": None, "offload_meta": False,
            }  # fmt: skip
            layer = HQQLinear(source, config, compute_dtype=torch.float32, device="cpu", del_orig=False)
            expected = Quantizer.dequantize(layer.W_q, layer.meta)
            stored = {key: value for key, value in layer.state_dict().items() if value is not None}
            method = {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}
            save(f"hqq_{bits}bit_axis{axis}", stored, expected, method, "hqq 0.2.8.post1")


def hqq_own_file(library: Path) -> None:
    """NAME.pt: `layers` as hqq before 0.2 writes them to qmodel.pt, with quantized scales and zero points."""
    sys.path.insert(0, str(library))
    from hqq.core.quantize import HQQLinear

    torch.Tensor.pin_memory = lambda tensor: tensor  # on a machine without a GPU
    eights = {"nbits": 8, "channel_wise": True, "group_size": 32, "optimize": False}
    whole = {"nbits": 8, "channel_wise": False, "group_size": None, "optimize": False}
    cases = {
        "zero_4bit": (4, 0, None, whole, False, False),
        "both_4bit": (4, 1, eights, whole, False, False),
        "both_3bit": (3, 0, eights, eights, False, False),
        "moved_2bit": (2, 1, eights, eights, True, False),
        "moved_plain_4bit": (4, 1, None, None, True, False),
        "viewed_4bit": (4, 0, eights, whole, False, True),
    }
    for name, (bits, axis, scales, zeros, offload, viewed) in cases.items():
        source = torch.nn.Linear(COLUMNS, ROWS, bias=True)
        source.weight.data = weight()
        numbers = {"nbits": bits, "channel_wise": True, "group_size": 16, "optimize": False, "round_zero": bits == 4}
        numbers |= {"axis": axis, "view_as_float": viewed}
        config = {"weight_quant_params": numbers, "scale_quant_params": scales, "zero_quant_params": zeros}
        layer = HQQLinear(
            source, config | {"offload_meta": offload}, compute_dtype=torch.float32, device="cpu", del_orig=False
        )
        layers = {MODULE[:-1]: layer.state_dict(), "model.norm": {"weight": torch.ones(COLUMNS)}}
        torch.save(
            {"layers": layers, "expected": layer.dequantize(), "library": "hqq 0.1.8"}, OUT / f"hqq_own_{name}.pt"
        )
        print(name, {key: type(value).__name__ for key, value in layer.meta.items()})


def quanto() -> None:
    from optimum.quanto import freeze, qfloat8, qint4, qint8, quantize

    for name, qtype in (("int8", qint8), ("float8", qfloat8), ("int4", qint4)):
        model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS, bias=False))
        model[0].weight.data = weight()
        quantize(model, weights=qtype)
        freeze(model)
        stored = {key.removeprefix("0."): value for key, value in model.state_dict().items()}
        config = {"quant_method": "quanto", "weights": name}
        save(f"quanto_{name}", stored, model[0].weight.dequantize(), config, "optimum-quanto 0.2.7")


def torchao(_: Path) -> None:
    """torchao 0.18, installed, with torch 2.13."""
    import torchao.quantization as ao
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    int4, uneven = torch.int4, ao.MappingType.ASYMMETRIC
    cases = {
        "int8": ao.Int8WeightOnlyConfig(version=2),
        "int8_dynamic": ao.Int8DynamicActivationInt8WeightConfig(version=2),
        "float8_row": ao.Float8WeightOnlyConfig(),
        "intx_4bit_group": ao.IntxWeightOnlyConfig(weight_dtype=int4, granularity=ao.PerGroup(32), mapping_type=uneven),
        "intx_3bit_row": ao.IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=ao.PerAxis(0)),
    }
    for name, config in cases.items():
        model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS, bias=False))
        model[0].weight.data = weight()
        ao.quantize_(model, config)
        expected = model[0].weight.dequantize()
        tensors, stated = flatten_tensor_state_dict({f"{MODULE}weight": model[0].weight})
        metadata = {"quantization_config": json.dumps({"quant_method": "torchao"}), "library": "torchao 0.18.0"}
        path = OUT / f"torchao_{name}.safetensors"
        save_file(tensors | {"expected": expected.float().contiguous()}, path, metadata | stated)
        print(name, {key: (tuple(t.shape), str(t.dtype)) for key, t in tensors.items()}, stated)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    OUT.mkdir(exist_ok=True)
    if len(sys.argv) > 2:
        sys.exit(globals()[sys.argv[2]](Path(sys.argv[1])))
    gptq(Path(sys.argv[1]))
    awq(Path(sys.argv[1]))
    compressed_tensors()
    hqq(Path(sys.argv[1]))
    quanto()
