"""Every command that writes, on a full disk: one sentence, nothing left half-written, and the same command goes on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.embedded import EMBEDDED_MODEL
from tests.faults.commands import Command
from tests.faults.test_full_disk import fill, small_disk, unfinished  # noqa: F401 - the fixture

pytestmark = pytest.mark.slow

SMALL = (
    *("train.max_steps=2", "train.save_steps=1", "train.eval_strategy=no", "train.per_device_train_batch_size=2"),
    *("finetune.max_length=64", "finetune.method=lora", "finetune.load_in_4bit=false"),
)
CPU = ("--device", "cpu")
RANK = ("--budget", "like:r=2")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Settings, three questions, an adapter of the embedded model, and the tables of one layer of it."""
    folder = tmp_path_factory.mktemp("inputs")
    assert run(folder / "log", "init", folder / "args") == 0
    rows = (folder / "args" / "data" / "valid.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    module, (rows_, columns) = "transformer.encoder.layers.0.self_attention.query_key_value", query_key_value()
    generator = torch.Generator().manual_seed(0)
    factors = {
        "lora_A": torch.randn(4, columns, generator=generator),
        "lora_B": torch.randn(rows_, 4, generator=generator),
    }
    (folder / "adapter").mkdir()
    save_file(
        {f"base_model.model.{module}.{name}.weight": value for name, value in factors.items()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    value = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": [module]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(value | {"base_model_name_or_path": "nano"}))
    return folder


def query_key_value():
    config = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["multi_query_group_num"]
    return (heads + 2 * groups) * config["kv_channels"], config["hidden_size"]


def commands(inputs: Path, out: Path) -> dict[str, tuple[int, list]]:
    """Name -> the bytes that are free on the disk, and the command, which writes `out`."""
    args, adapter, rows = inputs / "args" / "args_file", inputs / "adapter", inputs / "rows.jsonl"
    settings = [word for value in (*SMALL, f"finetune.dataset_path={rows}") for word in ("--set", value)]
    final = ["--set", f"finetune.final_model_path={out / 'final'}"]
    room = 24 << 10
    return {
        "init": (room, ["init", out]),
        "values": (room, ["values", "--layers", "0", "--out", out, *CPU]),
        "svd": (room, ["svd", "--layers", "0", "--out", out, *CPU]),
        "svd --svg": (600 << 10, ["svd", "--layers", "0", "--svg", "--out", out, *CPU]),
        "delta": (room, ["delta", adapter, "--out", out, *CPU]),
        "suggest-rank": (room, ["suggest-rank", "--delta", adapter, *RANK, "--args", args, "--out", out, *CPU]),
        "convert": (room, ["convert", "--out", out, "--shard-size", "0.0005"]),
        "convert --to glm": (room, ["convert", "--to", "glm", "--out", out, "--shard-size", "0.0005"]),
        "merge": (room, ["merge", adapter, "--out", out, "--shard-size", "0.0005"]),
        "squeeze": (0, ["squeeze", adapter, *RANK, "--out", out]),
        "train": (room, ["train", "--args", args, "--out", out, *settings, *final, *CPU]),
        "evaluate": (0, ["evaluate", "--args", args, "--adapter", adapter, "--data", rows, "--out", out, *CPU]),
        "infer": (0, ["infer", rows, "--out", out / "answers.jsonl", "--max-new-tokens", "2", *CPU]),
        "loop": (300 << 10, ["loop", "--args", args, "--out", out, "--pilot-steps", "2", "--samples", "1", *RANK,
                             "--no-control", *settings, "--set", "finetune.valid_fraction=0.4", *CPU]),
    }  # fmt: skip


NAMES = list(commands(Path("inputs"), Path("out")))


def run(log: Path, *arguments) -> int | None:
    """The status of a command in a process of its own; what it says goes to `log`."""
    return Command(log, *arguments, "--quiet").wait()


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(small_disk, inputs, tmp_path, name):  # noqa: F811
    free, command = commands(inputs, small_disk / "out")[name]
    filler, log = fill(small_disk, leave=free), tmp_path / "log"
    assert run(log, *command) == 1, log.read_text()
    said = log.read_text()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "the disk is full" in errors[0]
    assert "Traceback" not in said
    assert not unfinished(small_disk)
    filler.unlink()
    assert run(log, *command) == 0, log.read_text()
    assert not unfinished(small_disk)
    assert sorted(path.name for path in small_disk.iterdir()) == ["out"]
