"""`glmspectra inspect`: what is there and what it will cost, from headers."""

import json
import subprocess
import sys

import pytest
import torch

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.inventory import layer_ranges, tensor_groups
from glmspectra.spectra import batched_eigenvalues, blocks, eigenvalues
from glmspectra.sweep import cost
from glmspectra.sweep.cost import selection_cost, spectrum_flops
from tests.checkpoint.made_checkpoints import CONFIG, chatglm2_tensors, run_command, write


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "model", chatglm2_tensors(), "bin", shards=2)


def test_layer_ranges():
    assert layer_ranges([3, 0, 1, 7, 2, 9, 8]) == "0-3,7-9"
    assert layer_ranges([]) == ""
    assert layer_ranges([4]) == "4"


def test_kinds_count_every_tensor_once(model):
    with open_checkpoint(model) as checkpoint:
        found = tensor_groups(checkpoint.tensors.values())
        assert sum(group.count for group in found) == len(checkpoint.tensors)
        assert sum(group.nbytes for group in found) == sum(t.nbytes for t in chatglm2_tensors().values())
    by_name = {group.matrix: group for group in found}
    assert (by_name["query_key_value"].layers, by_name["query_key_value"].shape) == ("0-2", (64, 32))
    assert by_name["output_layer"].layers == ""
    assert by_name["dense_4h_to_h"].sides == 3 * ((32, 48),)
    assert by_name["query_key_value.bias"].sides == ()


def test_operations_of_the_exact_method():
    # 2 m n^2 + 4/3 n^3; the smaller side is n, whichever it is
    assert spectrum_flops([(13696, 4096)]) == 2 * 13696 * 4096**2 + 4 * 4096**3 // 3
    assert spectrum_flops([(4096, 13696)]) == spectrum_flops([(13696, 4096)])


def test_parts_add_to_the_cost(model):
    with open_checkpoint(model) as checkpoint:
        records = select(checkpoint, "0", "query_key_value")
        whole, split, heads = (selection_cost(records, split) for split in ("no", "parts", "heads"))
    assert (whole.matrices, whole.spectra, split.spectra, heads.spectra) == (1, 1, 4, 12)
    assert whole.flops < split.flops < heads.flops
    assert whole.memory < split.memory < heads.memory
    assert split.flops - whole.flops == spectrum_flops((rows, 32) for rows in (32, 16, 16))


def test_two_stages_begin_where_the_estimate_says():
    assert (cost.TWO_STAGE_FROM, cost.BANDWIDTH) == (eigenvalues.TWO_STAGE_FROM, eigenvalues.BANDWIDTH)
    assert cost.ROW_BLOCK == blocks.BLOCK_BYTES
    assert cost.WORKSPACE_CUDA == batched_eigenvalues.WORKSPACE_RATIO


def test_a_device_holds_one_batch_that_is_solved_and_one_that_is_made(model):
    with open_checkpoint(model) as checkpoint:
        records = select(checkpoint, "all", "dense")  # three of 32 x 32, float16
        results = {
            limit: selection_cost(records, "no", "cuda:0", lambda order, nbytes, n=limit: n) for limit in (1, 2, 3)
        }
    gram, weight = 8 * 32 * 32, 2 * 32 * 32
    assert results[3].memory == 3 * (6 * gram + weight)  # one batch: nothing is made beside it
    assert results[2].memory == 2 * 5 * gram + 3 * (gram + weight)  # two are solved; all three are there
    assert results[1].memory == cost.spectrum_memory(records[0], "no", "cuda:0")


def test_json_is_one_object(model, capsys, tmp_path):
    out = tmp_path / "deep" / "listing.json"
    options = ["--layers", "0-1", "--split", "--json", "--device", "cpu", "--out", out]
    assert run_command("inspect", "--model", model, *options) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == json.loads(out.read_text())
    assert (found["checkpoint"], found["form"], found["model_type"]) == ("model", "bin", "chatglm")
    assert len(found["tensors"]) == 3 * 7 + 4
    assert found["parameters"] == sum(tensor.numel() for tensor in chatglm2_tensors().values())
    assert found["svd"]["matrices"] == 8
    assert found["svd"]["spectra"] == 8 + 2 * (3 + 2)
    assert {group["matrix"]: group["layers"] for group in found["svd"]["kinds"]} == dict.fromkeys(
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], "0-1"
    )
    fused = next(tensor for tensor in found["tensors"] if tensor["matrix"] == "query_key_value")
    assert fused["parts"] == ["whole", "q", "k", "v"]


def test_the_table_for_people(model, capsys):
    assert run_command("inspect", "--model", model, "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "model: chatglm, bin, 2 files" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["query_key_value"][1:6] == ["0-2", "64", "x", "32", "float16"]
    assert rows["dense_h_to_4h"][-3:] == ["KiB", "721", "k"]  # 3 x (2 * 96 * 32^2 + 4/3 * 32^3) = 720,896
    assert "svd over this selection: 12 matrices" in text
    assert run_command("inspect", "--model", model, "--tensors", "--quiet", "--device", "cpu") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_wrong_requests_end_with_2(model, capsys):
    for arguments in (["--model", str(model / "absent")], ["--model", str(model), "--layers", "7"]):
        assert run_command("inspect", *arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from VmHWM")
def test_a_large_file_is_inspected_from_its_header(tmp_path):
    """200 GiB, sparse: reading any of it would take minutes, mapping it for real would not fit."""
    rows, columns, count = 65536, 8192, 200
    size = rows * columns * 2
    header = {
        f"model.layers.{i}.mlp.up_proj.weight": {
            "dtype": "F16",
            "shape": [rows, columns],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(count)
    }
    raw = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        try:
            file.truncate(8 + len(raw) + count * size)
        except OSError:
            pytest.skip("the file system keeps no sparse file of this size")
    # Not ru_maxrss: a child begins with its parent's, which is this whole test session's.
    command = "import sys; from glmspectra.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n    "
    command += "print(open('/proc/self/status').read(), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", command, "inspect", "--model", str(path), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["svd"]["nbytes"] == count * size
    peak = int(done.stderr.split("VmHWM:")[1].split()[0])
    assert peak < 1_000_000  # KiB: torch itself, and nothing of the file


def test_command_and_library_agree_on_the_golden_shape(capsys, shared):
    assert run_command("inspect", "--model", shared / "golden/chatglm2_tiny_a", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["svd"]["matrices"] == 12
    assert CONFIG["model_type"] == found["model_type"]
    assert torch.float32.itemsize * found["parameters"] == found["bytes"]
