"""Files that quantization libraries wrote (scripts/write_quantized_fixtures.py) are read as those libraries do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.selection import left_out
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.errors import CheckpointError, RequestError

WRITTEN = Path(__file__).parent / "written"
NAME = "model.layers.0.mlp.up_proj.weight"
FILES = sorted(path.stem for path in WRITTEN.glob("*.safetensors"))
REFUSED = {"quanto_int4"}
# Largest relative difference of a singular value to the largest one. The library computes in bfloat16 where it says so.
ROUNDED = {"compressed_nvfp4": 2**-7}
# Singular values to float32's rounding of (q - z) * s, which libraries do in one order or another.
EXACT = 2e-7


def folder_of(written: str, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A model folder that holds what the library stored, and the weight as the library reads it."""
    tensors = load_file(WRITTEN / f"{written}.safetensors")
    with safe_open(WRITTEN / f"{written}.safetensors", "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["quantization_config"])
    expected = tensors.pop("expected")
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    return tmp_path, expected


def sigma_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two matrices' singular values beside the largest of them."""
    ours, theirs = torch.linalg.svdvals(found.double()), torch.linalg.svdvals(expected.double())
    return float((ours - theirs).abs().max() / theirs[0])


@pytest.mark.parametrize("written", [name for name in FILES if name not in REFUSED])
def test_a_weight_is_what_its_library_reads(written, tmp_path):
    folder, expected = folder_of(written, tmp_path)
    with open_checkpoint(folder) as checkpoint:
        matrices = [record.name for record in select(checkpoint, matrices="all")]
        assert matrices == [NAME], "a scale, zero point or packed word is no matrix"
        record = checkpoint.tensors[NAME]
        found = checkpoint.read(NAME)
        assert record.shape == found.shape == expected.shape
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert record.nbytes >= found.numel() // 8  # one bit a number at least; the parts' bytes are counted
        assert sigma_difference(found, expected) <= ROUNDED.get(written, EXACT)
        assert float((found - expected).abs().max() / expected.abs().max()) <= ROUNDED.get(written, EXACT)


@pytest.mark.parametrize("written", sorted(path.stem for path in WRITTEN.glob("hqq_own_*.pt")))
def test_hqqs_own_file_with_quantized_scales_is_what_hqq_reads(written, tmp_path):
    """qmodel.pt: a dictionary a layer; scales quantized in their turn, stacked on zero points, viewed as floats."""
    content = torch.load(WRITTEN / f"{written}.pt", weights_only=True)
    torch.save(content["layers"], tmp_path / "qmodel.pt")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [record.name for record in select(checkpoint, matrices="all")] == [NAME]
        found = checkpoint.read(NAME)
        assert torch.allclose(found, content["expected"], rtol=1e-6, atol=1e-7)
        assert sigma_difference(found, content["expected"]) <= EXACT
        assert {"model.norm.weight", NAME.replace("weight", "bias")} < set(checkpoint.tensors)
    layers = content["layers"]
    meta = layers["model.layers.0.mlp.up_proj"]["meta"]
    for key in [key for key, value in meta.items() if isinstance(value, torch.Tensor | dict)]:
        changed = {inner: value for inner, value in meta.items() if inner != key}
        spoilt = layers | {"model.layers.0.mlp.up_proj": layers["model.layers.0.mlp.up_proj"] | {"meta": changed}}
        torch.save(spoilt, tmp_path / "qmodel.pt")
        with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="missing"):
            checkpoint.read(NAME)


@pytest.mark.parametrize("written", sorted(REFUSED))
def test_what_is_not_read_is_refused_by_its_name(written, tmp_path):
    folder, _ = folder_of(written, tmp_path)
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=r"optimum-quanto"):
        select(checkpoint, matrices="all")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_type": "Int4TilePackedTo4dTensor"}, "an Int4TilePackedTo4dTensor of torchao whose numbers lie as a kernel"),
        ({"_tensor_data_names": ["qdata", "scale", "act_pre_scale"]}, "with act_pre_scale, which changes its inputs"),
        ({"_data": {"block_size": [1, 7]}}, "do not belong together as torchao"),
        ({"_data": {}}, "do not belong together as torchao"),
        ({"more": 1}, "more"),
        (None, "written by torchao, and its header"),
    ],
)
def test_a_class_or_field_of_torchao_that_is_not_read_is_named(change, said, tmp_path):
    folder, _ = folder_of("torchao_int8", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    stated = metadata.pop(NAME)
    metadata |= {} if change is None else {NAME: json.dumps(json.loads(stated) | change)}
    save_file(tensors, folder / "model.safetensors", metadata)
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=said):
        checkpoint.read(NAME)


def test_what_only_its_own_file_holds_whole_is_converted_with_a_type_alone(tmp_path):
    folder, expected = folder_of("torchao_int8", tmp_path)
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(RequestError, match="stored as torchao:int8, which only its own kind of file holds whole"):
            convert(checkpoint, tmp_path / "out")
        convert(checkpoint, tmp_path / "out", "float32")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert torch.equal(checkpoint.read(NAME), expected)
    layers = torch.load(WRITTEN / "hqq_own_zero_4bit.pt", weights_only=True)["layers"]
    torch.save(layers, tmp_path / "qmodel.pt")
    with open_checkpoint(tmp_path / "qmodel.pt") as checkpoint, pytest.raises(RequestError, match="stored as hqq:4bit"):
        convert(checkpoint, tmp_path / "out2")


def test_the_second_format_of_gptq_stores_zero_points_as_they_are(tmp_path):
    """GPTQModel's conversion of the first to the second adds one to every packed zero point, and nothing else."""
    folder, expected = folder_of("gptq_4bit_act_order", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    zeros = NAME.replace("weight", "qzeros")
    assert not any(0xF in bytes([byte & 15, byte >> 4]) for byte in tensors[zeros].numpy().tobytes()), "none overflows"
    save_file(tensors | {zeros: tensors[zeros] + 0x11111111}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    with open_checkpoint(folder) as checkpoint:
        assert torch.allclose(checkpoint.read(NAME), expected, rtol=1e-6, atol=1e-9)


def test_gptq_without_a_configuration_is_refused(tmp_path):
    """First or second format cannot be known: a zero point too high by one would shift the whole matrix."""
    folder, _ = folder_of("gptq_4bit", tmp_path)
    (folder / "config.json").unlink()
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="checkpoint_format"):
        select(checkpoint)


@pytest.mark.parametrize("part", ["qzeros", "scales", "g_idx"])
def test_gptq_with_a_part_missing_is_refused(part, tmp_path):
    folder, _ = folder_of("gptq_4bit_act_order", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(NAME.replace("weight", part))
    save_file(tensors, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=f"{part}.*missing"):
        select(checkpoint)


def test_experts_of_gpt_oss_against_transformers(tmp_path):
    """MXFP4 blocks and scales of two experts, by the function that transformers itself loads them with."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (2, 48, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 130, (2, 48, 2), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    bias = {f"{name}_bias": torch.randn(2, 48)}
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales} | bias, tmp_path / "model.safetensors")
    config = {"model_type": "gpt_oss", "hidden_size": 64, "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    with open_checkpoint(tmp_path) as checkpoint:
        (record,) = select(checkpoint)
        assert (record.name, record.shape, record.experts) == (name, (2, 64, 48), 2)
        assert [part.name for part in record.parts("parts")] == [
            "expert_0",
            "expert_1",
        ]  # gate and up are interleaved here
        assert torch.equal(checkpoint.read(name), expected)
        assert torch.equal(checkpoint.read_expert(name, 1), expected[1])


def test_fp8_under_every_name_of_a_scale(tmp_path):
    """W / s in E4M3 beside s, by each name in use; a block's, a row's and a tensor's scale; powers of two in E8M0."""
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    whole, row = weight.abs().max() / 448, weight.abs().amax(1, keepdim=True) / 448
    power = torch.full((1, 1), 2.0**-6)
    cases = {
        "weight_scale_inv": power,
        "weight_scale": row,
        "scale": whole.reshape(1, 1),
        "scale_weight": whole.reshape(1),
    }
    stored, expected = {}, {}
    for layer, (word, scale) in enumerate(cases.items()):
        module = f"model.layers.{layer}.mlp.up_proj."
        stored[module + "weight"] = (weight / scale).to(torch.float8_e4m3fn)
        stored[module + word] = scale.to(torch.float8_e8m0fnu) if word == "weight_scale_inv" else scale.clone()
        stored[module + "input_scale"] = torch.ones(1, 1)
        expected[module + "weight"] = stored[module + "weight"].float() * scale
    save_file(stored, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [record.name for record in select(checkpoint, matrices="all")] == list(expected)
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "aqlm"}, "quantized by aqlm"),
        ({"quant_method": "torchao", "rotated": {}}, "rotated"),
        ({"quant_method": "tomorrow"}, "'tomorrow', which is unknown"),
        ({"quant_method": "gptq", "bits": 4, "hadamard": True}, "hadamard"),
        ({"quant_method": "gptq", "bits": "4"}, "bits"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "marlin-24"),
        ({"quant_method": "compressed-tensors", "transform_config": {"R1": {}}}, "transform_config"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "expert_dtype"),
        ([], None),
        ("gptq", "no JSON object"),
    ],
)
def test_a_method_or_key_that_is_not_understood_is_named(config, said, tmp_path):
    save_file({NAME: torch.randn(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    if said is None:
        with open_checkpoint(tmp_path) as checkpoint:
            assert len(select(checkpoint)) == 1
        return
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


def test_one_bad_weight_leaves_the_others(tmp_path):
    """A row maximum too few, float8 without a scale: each is refused alone, and named with its form."""
    stored = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(8, 8),
        "model.layers.1.mlp.up_proj.weight": torch.randint(-127, 127, (8, 8), dtype=torch.int8),
        "model.layers.1.mlp.up_proj.SCB": torch.rand(7),
        "model.layers.2.mlp.up_proj.weight": torch.randn(8, 8).to(torch.float8_e4m3fn),
    }
    save_file(stored, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        faults = [record.fault for record in select(checkpoint, matrices="all")]
        assert faults[0] is None
        assert "bitsandbytes' int8" in faults[1]
        assert "no scale" in faults[2]
        with pytest.raises(CheckpointError, match="no scale"):
            checkpoint.read("model.layers.2.mlp.up_proj.weight")


def test_a_folder_of_modelscope_is_read_like_any_other(tmp_path):
    """`configuration.json` beside config.json is ModelScope's own and says nothing of the weights."""
    (tmp_path / "first").mkdir()
    folder, expected = folder_of("compressed_int8_group", tmp_path / "first")
    (folder / "configuration.json").write_text('{"framework": "pytorch", "task": "text-generation"}')
    moved = shutil.move(folder, tmp_path / "model_name___v1")
    with open_checkpoint(moved) as checkpoint:
        assert torch.allclose(checkpoint.read(NAME), expected)


def e2m1(byte_rows):
    """Numbers of packed bytes by their definition: a sign, two bits of exponent with bias 1, one of mantissa."""
    found = []
    for row in byte_rows:
        numbers = []
        for byte in row:
            for nibble in (byte & 15, byte >> 4):
                sign, exponent, mantissa = -1 if nibble & 8 else 1, (nibble >> 1) & 3, nibble & 1
                numbers.append(sign * (mantissa / 2 if exponent == 0 else 2 ** (exponent - 1) * (1 + mantissa / 2)))
        found.append(numbers)
    return torch.tensor(found)


def test_modelopt_against_the_published_rule(tmp_path):
    """NVFP4 with a second scale that multiplies, MXFP4 and fp8 of a tensor, with scales of inputs beside them."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (16, 32), dtype=torch.uint8, generator=generator)
    fine = (torch.rand(16, 4, generator=generator) * 100).to(torch.float8_e4m3fn)
    exponents = torch.randint(110, 130, (16, 2), dtype=torch.uint8, generator=generator)
    eight = torch.randn(16, 64, generator=generator).to(torch.float8_e4m3fn)
    q, k, v = (f"model.layers.0.self_attn.{letter}_proj." for letter in "qkv")
    stored = {
        q + "weight": packed,
        q + "weight_scale": fine,
        q + "weight_scale_2": torch.tensor(0.002),
        q + "input_scale": torch.tensor(0.5),
        k + "weight": packed.clone(),
        k + "weight_scale": exponents,
        v + "weight": eight,
        v + "weight_scale": torch.tensor(0.03),
        "model.layers.0.self_attn.k_scale": torch.ones(3, 3),
    }
    save_file(stored, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    numbers = e2m1(packed.tolist())
    expected = {
        q: numbers * (fine.float() * 0.002).repeat_interleave(16, 1),
        k: numbers * (2.0 ** (exponents.int() - 127)).repeat_interleave(32, 1),
        v: eight.float() * 0.03,
    }
    with open_checkpoint(tmp_path) as checkpoint:
        assert [record.name for record in select(checkpoint, matrices="all")] == [f"{name}weight" for name in expected]
        assert [checkpoint.tensors[f"{name}weight"].quantization for name in expected] == ["nvfp4", "mxfp4", "fp8"]
        for name, tensor in expected.items():
            assert torch.allclose(checkpoint.read(f"{name}weight"), tensor, rtol=1e-6, atol=0)
        assert list(left_out(checkpoint)) == ["model.layers.0.self_attn.k_scale"]


def test_kinds_of_torch(tmp_path):
    """What torch quantized is what torch dequantizes; sparse and nested tensors and further dictionaries are named."""
    torch.manual_seed(0)
    plain = torch.randn(8, 6)
    tensors = {
        "model.layers.0.mlp.up_proj.weight": torch.quantize_per_tensor(plain, 0.05, 3, torch.qint8),
        "model.layers.1.mlp.up_proj.weight": plain.to_sparse(),
        "model.layers.2.mlp.up_proj.weight": plain,
    }
    torch.save({"model": tensors | {"ema": {"up_proj": plain}}, "teacher": {"w": plain}}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        found = checkpoint.read("model.layers.0.mlp.up_proj.weight")
        assert torch.equal(found, tensors["model.layers.0.mlp.up_proj.weight"].dequantize())
        with pytest.raises(CheckpointError, match="sparse_coo tensor"):
            checkpoint.read("model.layers.1.mlp.up_proj.weight")
        assert torch.equal(checkpoint.read("model.layers.2.mlp.up_proj.weight"), plain)
        assert set(left_out(checkpoint)) == {"ema", "teacher"}


def test_a_type_that_torch_has_not_leaves_the_other_tensors(tmp_path):
    entries = {
        "a.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
        "b.weight": {"dtype": "F6_E2M3", "shape": [4, 4], "data_offsets": [64, 76]},
    }
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + torch.eye(4).numpy().tobytes() + bytes(12)
    (tmp_path / "model.safetensors").write_bytes(content)
    with open_checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("a.weight"), torch.eye(4))
        with pytest.raises(CheckpointError, match="F6_E2M3, a type that torch has not"):
            checkpoint.read("b.weight")


@pytest.mark.parametrize("written", [name for name in FILES if name not in REFUSED])
@pytest.mark.parametrize("change", ["drop", "scalar", "empty", "integer"])
def test_a_spoilt_part_is_refused_in_words(written, change, tmp_path):
    """Each part of each format gone, of no dimension, without numbers, or of another type: never a wrong weight."""
    folder, expected = folder_of(written, tmp_path)
    whole = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    for part, value in whole.items():
        spoilt = {
            "drop": None,
            "scalar": torch.tensor(3, dtype=torch.int64),
            "empty": value.reshape(-1)[:0].clone(),
            "integer": value.to(torch.int64) if value.is_floating_point() else value.to(torch.float64),
        }[change]
        tensors = {name: tensor for name, tensor in whole.items() if name != part}
        save_file(tensors | ({} if spoilt is None else {part: spoilt}), folder / "model.safetensors", metadata)
        with open_checkpoint(folder) as checkpoint:
            try:
                matrices = {record.name: checkpoint.read(record.name) for record in select(checkpoint, matrices="all")}
            except (CheckpointError, RequestError):
                continue
        assert list(matrices) == [NAME], part
        assert torch.allclose(matrices[NAME], expected, rtol=2**-7), f"{part} matters, and was not missed"
