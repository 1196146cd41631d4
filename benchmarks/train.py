"""Speed and memory of training ChatGLM2, each setting in a process of its own, as one table.

    python benchmarks/train.py                                   # ChatGLM2-6B's shape, random weights, 8 x 512
    python benchmarks/train.py --rows train.jsonl --tokenizer chatglm2-6b    # rows of real lengths beside full ones
    python benchmarks/train.py --tiny --device cpu               # a check of the script itself

Settings: `ours` is what `glmspectra train` runs. `study` is the original study's way: everything computed in
float32, eager attention over a padded batch, logits of all tokens, no grouping by length. `plain` is
transformers' GlmForCausalLM under PEFT as it comes, in bfloat16 with sdpa, LoRA of equal rank on q, k and v
apart. All train LoRA of rank 12 with dropout 0.05 by AdamW. On rows of real lengths all get the same rows:
`plain` in the very batches of `ours`, `study` in the file's order, `packed` more of them, several in one. Rates
are over the steps after the warm-up; `real` tokens are those that are not padding; MFU counts 4 N flops a
(padded) token, without what checkpointing computes again.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RANK, ALPHA, DROPOUT = 12, 24, 0.05
SEED = 42
TOKENS_PER_CHARACTER = 0.65  # ChatGLM2's tokenizer on Chinese medical text, where no tokenizer is given


@dataclass(frozen=True)
class Setting:
    pipeline: str  # ours, plain or study
    batch: int = 8
    length: int = 512
    four_bit: bool = True
    checkpointing: bool = False
    rows: bool = False  # rows of real lengths in place of full ones
    packing: bool = False
    fused: bool = True  # the fused kernels between the products, where there are any


SETTINGS = {
    "study": Setting("study"),
    "plain": Setting("plain"),
    "ours": Setting("ours"),
    "ours-unfused": Setting("ours", fused=False),
    "plain-ckpt": Setting("plain", checkpointing=True),
    "ours-ckpt": Setting("ours", checkpointing=True),
    "plain-1-ckpt": Setting("plain", batch=1, checkpointing=True),
    "ours-1-ckpt": Setting("ours", batch=1, checkpointing=True),
    "plain-lora": Setting("plain", four_bit=False),
    "ours-lora": Setting("ours", four_bit=False),
    "study-rows": Setting("study", rows=True),
    "plain-rows": Setting("plain", rows=True),
    "ours-rows": Setting("ours", rows=True),
    "ours-packed": Setting("ours", rows=True, packing=True),
}
DEFAULT = "study,plain,ours,ours-ckpt,ours-1-ckpt"
DEFAULT_ROWS = "study-rows,plain-rows,ours-rows,ours-packed"

SHAPE = {"layers": 28, "hidden": 4096, "ffn": 13696, "heads": 32, "groups": 2, "vocabulary": 65024}
TINY = {"layers": 2, "hidden": 128, "ffn": 192, "heads": 4, "groups": 2, "vocabulary": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="a model folder, or random")
    parser.add_argument("--rows", type=Path, help="JSONL with context and target")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer of --rows")
    parser.add_argument("--settings", help=f"some of {', '.join(SETTINGS)}")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(SETTINGS[options.child], options)))
        return
    names = (options.settings or DEFAULT + (f",{DEFAULT_ROWS}" if options.rows else "")).split(",")
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        parser.error(f"unknown setting {unknown[0]}; there are {', '.join(SETTINGS)}")
    if any(SETTINGS[name].rows for name in names) and options.rows is None:
        parser.error("settings on rows of real lengths need --rows")
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            results[name] = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError):
            results[name] = {"error": "\n".join(done.stderr.strip().splitlines()[-8:]) or "no output"}
        print(f"{name}: {time.perf_counter() - started:.0f} s {results[name].get('error', '')}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_table(results)


def print_table(results: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    device = next((value["device"] for value in results.values() if "device" in value), "")
    table = Table(title=f"training, {device}")
    for column in ("setting", "batch", "tokens/s", "real tokens/s", "MFU", "peak GiB", "estimate", "loss", "x study"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    console = Console(width=120)
    for name, value in results.items():
        if "error" in value:
            table.add_row(name, "failed")
            console.print(f"{name} failed: {value['error']}", highlight=False, markup=False)
            continue
        study = results.get("study-rows" if SETTINGS[name].rows else "study", {})
        key = "real_tokens_per_second" if SETTINGS[name].rows else "tokens_per_second"
        ratio = f"{value[key] / study[key]:.2f}" if key in study else "-"
        table.add_row(
            name,
            value["batch"],
            f"{value['tokens_per_second']:,.0f}",
            f"{value['real_tokens_per_second']:,.0f}",
            f"{value['mfu']:.3f}" if value["mfu"] else "-",
            f"{value['peak_gib']:.2f}" if value["peak_gib"] else "-",
            f"{value['estimate_gib']:.2f}" if value.get("estimate_gib") else "-",
            f"{value['loss']:.3f}",
            ratio,
        )
    console.print(table)
    for name, value in results.items():
        if "estimate_error" in value:
            console.print(f"{name}: no estimate, {value['estimate_error']}", highlight=False, markup=False)


# Below runs in a child process, with one setting.


def measure(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps by the setting's pipeline and measure."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; give --device cpu with --tiny")
    torch.manual_seed(0)
    data = make_rows(setting, options)
    if not setting.fused:
        from glmspectra.chatglm2 import layers

        layers.layer_kernels = lambda tensor: None
    run = run_ours if setting.pipeline == "ours" else run_plain
    return run(setting, options, data) | {"device": device_name(options.device)}


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def shape_of(options: argparse.Namespace) -> dict[str, int]:
    return TINY if options.tiny else SHAPE


def length_of(setting: Setting, options: argparse.Namespace) -> int:
    return min(setting.length, 64) if options.tiny else setting.length


def make_rows(setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Examples of a run: full ones of random tokens, all supervised, or rows of a file cut to the length."""
    import random

    draw = random.Random(0)
    length, vocabulary = length_of(setting, options), shape_of(options)["vocabulary"]
    count = setting.batch * (options.steps + options.warmup)
    if not setting.rows:
        ids = [[draw.randrange(3, vocabulary) for _ in range(length)] for _ in range(count)]
        return [{"input_ids": row, "labels": [-100, *row[1:]], "length": length} for row in ids]
    lines = options.rows.read_text(encoding="utf-8").splitlines()
    draw.shuffle(lines)
    tokenizer = None
    if options.tokenizer:
        from glmspectra.tuning.model.loading import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
    rows = []
    for line in lines[: count * (8 if setting.packing else 1)]:
        row = json.loads(line)
        if tokenizer is not None:
            parts = [tokenizer.encode(row["context"]), tokenizer.encode(row["target"], add_special_tokens=False)]
            parts = [[token % vocabulary for token in part] for part in parts]
        else:
            sizes = [math.ceil(len(row[key]) * TOKENS_PER_CHARACTER) + 1 for key in ("context", "target")]
            parts = [[draw.randrange(3, vocabulary) for _ in range(size)] for size in sizes]
        ids = (parts[0] + parts[1] + [2])[:length]
        labels = ([-100] * len(parts[0]) + ids[len(parts[0]) :])[:length]
        if any(label != -100 for label in labels):
            rows.append({"input_ids": ids, "labels": labels, "length": len(ids)})
    return rows


class Rows:
    """A list of examples of which a column can be asked for, as of a `datasets.Dataset`."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def random_model(native: bool, options: argparse.Namespace, dtype: Any) -> Any:
    """ChatGLM2's shape with random weights, made on the device: the native model, or transformers' Glm."""
    import torch

    from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration

    shape = shape_of(options)
    if native:
        config = ChatGLMConfig(
            num_layers=shape["layers"],
            hidden_size=shape["hidden"],
            ffn_hidden_size=shape["ffn"],
            num_attention_heads=shape["heads"],
            multi_query_group_num=shape["groups"],
            kv_channels=shape["hidden"] // shape["heads"],
            padded_vocab_size=shape["vocabulary"],
        )
        cls: Any = ChatGLMForConditionalGeneration
    else:
        from transformers import GlmConfig, GlmForCausalLM

        config = GlmConfig(
            num_hidden_layers=shape["layers"],
            hidden_size=shape["hidden"],
            intermediate_size=shape["ffn"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["groups"],
            head_dim=shape["hidden"] // shape["heads"],
            vocab_size=shape["vocabulary"],
            attention_bias=True,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            eos_token_id=2,
        )
        cls = GlmForCausalLM
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(options.device):
            model = cls(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False)


def quantize(model: Any, compute: Any, device: str) -> None:
    """Put every linear layer but the output layer into NF4 in place, as loading in 4 bits does."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from torch import nn

    from glmspectra.tuning.model.four_bit import check_four_bit, keep_layout

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                small = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=compute,
                    compress_statistics=False,
                    quant_type="nf4",
                    device="meta",
                )
                weight = child.weight.data.cpu() if device == "cpu" else child.weight.data
                packed = Params4bit(
                    weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=small
                )
                small.weight = packed.to(device)
                small.bias = child.bias
                setattr(parent, name, small)
                child.weight = None
    model.is_loaded_in_4bit = True
    keep_layout(model)
    check_four_bit(model)
    if device == "cuda":
        torch.cuda.empty_cache()


def load(setting: Setting, options: argparse.Namespace, dtype: Any) -> Any:
    """The base model of a setting, frozen, in 4 bits where it says so."""
    import torch

    native = setting.pipeline != "plain"
    if options.model == "random":
        model = random_model(native, options, torch.bfloat16 if options.device == "cuda" else torch.float32)
        if setting.four_bit:
            quantize(model, dtype, options.device)
        return model.to(dtype) if not setting.four_bit else model
    from glmspectra.tuning.model.loading import load_base
    from glmspectra.tuning.model.precision import Precision

    if not native:
        from glmspectra.chatglm2 import to_glm

        model = to_glm(load_base(options.model, Precision(dtype, dtype, None), torch.device(options.device), None))
        if setting.four_bit:
            quantize(model, dtype, options.device)
        return model.requires_grad_(False)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    precision = Precision(dtype, dtype, None)
    device = torch.device(options.device)
    return load_base(options.model, precision, device, config if setting.four_bit else None)


def half(options: argparse.Namespace) -> Any:
    import torch

    return torch.bfloat16 if options.device == "cuda" else torch.float32


def result(setting: Setting, options: argparse.Namespace, base: Any, **measured: Any) -> dict[str, Any]:
    """Rates, MFU and memory from seconds and token counts."""
    import torch

    from glmspectra.tuning.training.throughput import flops_parameters, peak_flops

    rate = measured["tokens"] / measured["seconds"]
    peak = peak_flops(torch.device(options.device))
    cuda = options.device == "cuda"
    return {
        "batch": f"{setting.batch} x {length_of(setting, options)}",
        "tokens_per_second": rate,
        "real_tokens_per_second": measured["real"] / measured["seconds"],
        "seconds_per_step": measured["seconds"] / options.steps,
        "mfu": 4 * flops_parameters(base) * rate / peak if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "loss": measured["loss"],
    }


def run_ours(setting: Setting, options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The trainer of `glmspectra train`, over a base model and rows that are there already."""
    import torch
    from transformers import TrainerCallback

    from glmspectra.tuning.data import PackedCollator, PaddingCollator, TrainingData
    from glmspectra.tuning.model.precision import choose_precision
    from glmspectra.tuning.settings.load import load_settings
    from glmspectra.tuning.training.inputs import Inputs
    from glmspectra.tuning.training.run import build_run

    with TemporaryDirectory() as folder:
        settings = load_settings(write_args(Path(folder), setting, options))
        device = torch.device(options.device, *([0] if options.device == "cuda" else []))
        base = load(setting, options, half(options))
        train: Any = Rows(rows)
        collator: Any = PaddingCollator(0)
        if setting.packing:
            from datasets import Dataset

            from glmspectra.tuning.data.packing import pack_dataset

            train = pack_dataset(Dataset.from_list(rows), length_of(setting, options))
            collator = PackedCollator(0)
        data = TrainingData(train, None, collator, None, {}, None)  # type: ignore[arg-type]
        inputs = Inputs(settings, device, choose_precision(settings, device), base.config, None, data)  # type: ignore[arg-type]
        run = build_run(inputs, base, quiet=True)
        clock: dict[str, Any] = {}

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == options.warmup:
                    sync(options.device)
                    clock["start"] = time.perf_counter()
                    run.trainer.throughput.start(clock["start"])
                if state.global_step == options.warmup + options.steps:
                    sync(options.device)
                    clock["seconds"] = time.perf_counter() - clock["start"]
                    clock["tokens"] = run.trainer.throughput.all
                    clock["real"] = int(run.trainer.throughput.real)

        run.trainer.add_callback(Clock())
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run.trainer.train()
        loss = next(entry["loss"] for entry in reversed(run.trainer.state.log_history) if "loss" in entry)
        clock.pop("start")
        measured = result(setting, options, base, loss=loss, **clock)
        try:
            return measured | estimate(run, setting, [train[index] for index in range(len(train))])
        except Exception as error:  # a measurement is kept, and what failed beside it is printed under the table
            return measured | {"estimate_error": f"{type(error).__name__}: {error}"}


def estimate(run: Any, setting: Setting, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What `tuning/memory/` says the peak of the longest batch will be, beside the measured one."""
    import torch

    from glmspectra.tuning.memory.estimate import BatchShape, estimate_memory

    longest = sorted(rows, key=lambda row: -row["length"])[: setting.batch]
    supervised = sum(label != -100 for row in longest for label in row["labels"])
    shape = BatchShape(setting.batch, longest[0]["length"], supervised, setting.packing)
    config = run.trainer.token_loss.causal_lm.config
    hopper = run.device.type != "cuda" or torch.cuda.get_device_capability(run.device)[0] >= 9
    found = estimate_memory(run.settings, config, run.precision, shape, hopper, run.trainer.token_loss.in_chunks)
    return {"estimate_gib": found.peak / 2**30}


def write_args(folder: Path, setting: Setting, options: argparse.Namespace) -> Path:
    """The three files of `ours`."""
    steps = options.steps + options.warmup
    files = {
        "finetune_args": {
            "dataset_path": "unused",
            "model_path": "random",
            "seed": SEED,
            "method": "qlora" if setting.four_bit else "lora",
            "max_length": length_of(setting, options),
            "packing": setting.packing,
            "dtype": "bfloat16" if options.device == "cuda" else "float32",
        },
        "lora_args": {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": DROPOUT},
        "train_args": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": setting.batch,
            "max_steps": steps,
            "logging_steps": steps,
            "save_strategy": "no",
            "gradient_checkpointing": setting.checkpointing,
            "learning_rate": 2e-5,
        },
    }
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def run_plain(setting: Setting, options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A plain loop under PEFT: the study's float32 eager way on the native model, or bfloat16 sdpa on Glm."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    study = setting.pipeline == "study"
    base = load(setting, options, torch.float32 if study else half(options))
    targets = ["query_key_value"] if study else ["q_proj", "k_proj", "v_proj"]
    if study:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        base.set_attn_implementation("eager")
    if setting.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets, task_type="CAUSAL_LM")
    ).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5, fused=True)
    autocast = torch.autocast(options.device, dtype=torch.bfloat16, enabled=not study and options.device == "cuda")
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    counted: dict[str, Any] = {"tokens": 0, "real": 0}
    started = 0.0
    if setting.rows and not study:
        from glmspectra.tuning.training.sampling import EpochSampler

        order = EpochSampler([row["length"] for row in rows], setting.batch, SEED, "group_by_length")
        rows = [rows[index] for index in order]
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            sync(options.device)
            started = time.perf_counter()
        batch = left_padded([rows[(step * setting.batch + row) % len(rows)] for row in range(setting.batch)])
        if step >= options.warmup:
            counted["tokens"] += batch["input_ids"].numel()
            counted["real"] += int(batch["attention_mask"].sum())
        batch = {name: value.to(options.device) for name, value in batch.items()}
        with autocast:
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        counted["loss"] = loss.item()
    sync(options.device)
    return result(setting, options, base, seconds=time.perf_counter() - started, **counted)


def left_padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch as the published tokenizer pads it; without padding, no mask for either side to work on."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    padding = [width - len(row["input_ids"]) for row in rows]
    columns = {
        "input_ids": [[0] * left + list(row["input_ids"]) for left, row in zip(padding, rows, strict=True)],
        "labels": [[-100] * left + list(row["labels"]) for left, row in zip(padding, rows, strict=True)],
        "attention_mask": [[0] * left + [1] * (width - left) for left in padding],
        "position_ids": [[0] * left + list(range(width - left)) for left in padding],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def sync(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
