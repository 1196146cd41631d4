"""Files changed at random: every reader answers with its value or with an error of our own, never with another.

The draws are hypothesis', with a fixed seed (`derandomize`), so a failure is the same on every machine; seeds that once
found a fault stand as `@example`.
"""

import json
import math
import random
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.run_folder import tuned_checkpoints
from glmspectra.errors import GlmspectraError
from glmspectra.figures.training_log import read_training
from glmspectra.store import read_manifest
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.settings.presets import write_presets
from tests.sweep.small_checkpoint import CONFIG

HOSTILE = [
    *(None, True, False, 0, -1, 1, 1.5, 10**30, 10**400, 1e308, -(2**63), "", "x", "1", "[/]", "\\x1b[2J", "../x"),
    *("(a+)+$", "\ud800", [], {}, [[]], [None], ["x"], {"": None}, {"x": {"x": 1}}, ["(" * 40], "9" * 50),
]
NAME = "transformer.encoder.layers.0.self_attention.query_key_value"


def mutate(value, draw):
    """The JSON `value` with one or two places changed, dropped or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice([1, 1, 2])):
        holder, key = None, None
        at = value
        while isinstance(at, dict | list) and at and (holder is None or draw.random() < 0.7):
            holder = at
            key = draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
            at = holder[key]
        if holder is None:
            return draw.choice(HOSTILE)
        what = draw.random()
        if what < 0.6:
            holder[key] = draw.choice(HOSTILE)
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw.choice(["", "x", "²", "a" * 300, "\x00", "r"])] = holder[key]
    return value


def damaged(value, draw) -> bytes:
    """A mutated value as text, sometimes cut or with a byte changed."""
    text = bytearray(json.dumps(mutate(value, draw), ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass"))
    what = draw.random()
    if what < 0.1:
        del text[draw.randrange(len(text) + 1) :]
    elif what < 0.2 and text:
        text[draw.randrange(len(text))] = draw.randrange(256)
    elif what < 0.25:
        text += draw.choice([b"NaN", b"[" * 3000, b"\xff", b"9" * 5000])
    return bytes(text)


def tensors():
    return {f"{NAME}.weight": torch.ones(8, 4), "lm_head.weight": torch.zeros(4, 4)}


class Safetensors:
    def __init__(self, folder):
        self.path = folder / "model.safetensors"
        whole = save(tensors())
        length = struct.unpack("<Q", whole[:8])[0]
        self.value, self.data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
        self.path.write_bytes(whole)

    def write(self, draw):
        header = self.other(draw) if draw.random() < 0.3 else damaged(self.value, draw)
        self.path.write_bytes(struct.pack("<Q", len(header)) + header + self.data)

    def other(self, draw) -> bytes:
        """A header that is sound and says something else of the same bytes: a shape, a type, a name."""
        value = json.loads(json.dumps(self.value))
        name = draw.choice([name for name in value if name != "__metadata__"])
        entry = value.pop(name)
        count = math.prod(entry["shape"])
        entry["shape"] = draw.choice(
            [entry["shape"], [count], [2, count // 2], [2, 2, count // 4], [count, 1], [1] * 9 + [count]]
        )
        entry["dtype"] = draw.choice([entry["dtype"], "I32", "U32", "F32"])
        value[draw.choice([name, "x", "²", "a" * 300, "\x00", f"{name}.weight", f"{NAME}.scale", "optimizer.x"])] = (
            entry
        )
        return json.dumps(value).encode()

    def read(self):
        read_all(self.path)


class Json:
    """One JSON file of a folder, and what reads it."""

    def __init__(self, path, value, read):
        self.path, self.value, self.read = path, value, read
        path.write_text(json.dumps(value))

    def write(self, draw):
        self.path.write_bytes(damaged(self.value, draw))


def read_all(path):
    with open_checkpoint(path) as checkpoint:
        for record in select(checkpoint, matrices="all"):
            checkpoint.read(record.name)
            record.parts("heads")


def in_checkpoint(folder, name):
    save_file(tensors(), folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors(), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    value = (
        index if "index" in name else CONFIG | {"quantization_bit": 8, "quantization_config": {"quant_method": "fp8"}}
    )
    return Json(folder / name, value, lambda: read_all(folder))


def adapter(folder):
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(8, 2)}
    save_file(
        {f"base_model.model.{NAME}.{key}.weight": value for key, value in factors.items()},
        folder / "adapter_model.safetensors",
    )
    value = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"], "use_dora": False}
    value |= {"rank_pattern": {"query_key_value": 2}, "alpha_pattern": {"x": 3}, "use_rslora": False}
    value |= {"init_lora_weights": True, "fan_in_fan_out": False, "base_model_name_or_path": "x"}

    def read():
        opened = open_adapter(folder)
        for name in opened.names:
            opened.change(name).product()

    return Json(folder / "adapter_config.json", value, read)


def state(folder):
    log = [{"step": 5, "loss": 2.0, "epoch": 0.5}, {"step": 10, "eval_loss": 1.9, "eval_perplexity": 6.7}]
    value = {"epoch": 1.0, "global_step": 10, "max_steps": 10, "log_history": log}
    return Json(folder / "trainer_state.json", value, lambda: read_training(folder))


def step(folder):
    adapter(folder)
    value = {"global_step": 10, "log_history": [], "epoch": 1.0}
    return Json(folder / "trainer_state.json", value, lambda: tuned_checkpoints(folder))


def manifest(folder):
    request = {"kind": "values", "quantity": "weight", "step": None, "options": {}, "vectors": 0, "stamp": "0" * 12}
    request |= {"names": ["a"], "done": ["a"], "left_out": [], "complete": True}
    from glmspectra.store.schema import SCHEMA_VERSION

    value = {"schema": SCHEMA_VERSION, "checkpoint": {"name": "x", "fingerprint": "0" * 16, "path": "x", "files": []}}
    value |= {"requests": {"weight/values": request}, "complete": True, "nonfinite": []}
    return Json(folder / "manifest.json", value, lambda: read_manifest(folder))


def arguments(folder):
    write_presets(folder, force=True)
    path = folder / "args_file" / "lora_args.json"
    return Json(path, json.loads(path.read_text()), lambda: load_settings(folder / "args_file"))


READERS = {
    "safetensors": Safetensors,
    "index": lambda folder: in_checkpoint(folder, "model.safetensors.index.json"),
    "config": lambda folder: in_checkpoint(folder, "config.json"),
    "adapter": adapter,
    "state": state,
    "step": step,
    "manifest": manifest,
    "arguments": arguments,
}


@pytest.fixture(params=READERS, scope="module")
def reader(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    yield READERS[request.param](folder)
    shutil.rmtree(folder)


def test_a_share_of_the_draws_is_accepted(reader):
    """A reader that refused every draw would be tried by its refusals alone."""
    answered = 0
    for seed in range(60):
        reader.write(random.Random(seed))
        try:
            reader.read()
        except GlmspectraError:
            continue
        answered += 1
    assert 6 <= answered < 60


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.integers(0, 2**32))
@example(0)
@example(20261127)
def test_a_reader_answers_or_refuses(reader, seed):
    reader.write(random.Random(seed))
    try:
        reader.read()
    except GlmspectraError as error:
        said = str(error)
    else:
        return
    assert 0 < len(said) < 20_000
