"""What reading costs, measured in a child process: no anonymous memory, and no page kept after `release`."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint.formats.chatglm_int import quantize_rows

pytestmark = pytest.mark.slow
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
MIB = 1 << 20
CHILD = """
import json, sys
from glmspectra.checkpoint import open_checkpoint

def status():
    lines = (line.split() for line in open("/proc/self/status"))
    found = {line[0]: int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssFile:")}
    return found["RssAnon:"], found["RssFile:"]

release = sys.argv[2] == "release"
with open_checkpoint(sys.argv[1]) as checkpoint:
    checkpoint.read(next(iter(checkpoint.tensors))).sum()  # imports and thread pools
    checkpoint.release(next(iter(checkpoint.tensors)))
    anonymous, mapped = status()
    most_anonymous = most_mapped = 0
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name)
        tensor.view(-1)[::512].sum()  # touches every page
        now = status()
        most_anonymous = max(most_anonymous, now[0] - anonymous)
        most_mapped = max(most_mapped, now[1] - mapped)
        del tensor
        if release:
            checkpoint.release(name)
    print(json.dumps([most_anonymous, most_mapped, status()[1] - mapped]))
"""


def cost(path, release=True):
    """Bytes: most anonymous memory, most mapped pages resident, mapped pages left at the end."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), "release" if release else "keep"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@linux
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_one_shard_is_read_tensor_by_tensor(tmp_path, form):
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(2048, 4096).half() for i in range(8)}  # 16 MiB each
    path = tmp_path / f"model.{form}"
    (save_file if form == "safetensors" else torch.save)(tensors, path)
    anonymous, mapped, left = cost(path)
    assert anonymous < 2 * MIB
    assert 12 * MIB < mapped < 24 * MIB  # one tensor at a time
    assert left < 4 * MIB
    # The control: without `release` all of them stay.
    _, mapped, left = cost(path, release=False)
    assert mapped > 100 * MIB
    assert left > 100 * MIB


@linux
def test_dequantizing_holds_the_result_and_little_else(tmp_path):
    packed, scale = quantize_rows(torch.randn(4096, 4096), 4)
    name = "transformer.encoder.layers.0.self_attention.dense.weight"
    tensors = {"a.bias": torch.zeros(4), name: packed, name + "_scale": scale}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_bit": 4}))
    anonymous, *_ = cost(tmp_path)
    result = 4096 * 4096 * 4
    assert result * 0.9 < anonymous < result + 40 * MIB
