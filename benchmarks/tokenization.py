"""Reading, checking and tokenizing rows: rows a second, and whether memory grows with their number.

    python benchmarks/tokenization.py --rows 10000 100000 1000000

Each number of rows is written as JSON Lines and prepared in a process of its own, as `glmspectra train` does before it
loads the model, with the tokenizer of nano. Printed: seconds of the first time and of the second (from the cache), rows
and tokens a second, on the clock and by the time that the core was busy with it, and the largest resident memory above
that of an empty process with the same imports.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "头晕",
    "发烧",
    "咳嗽",
    "怎么办",
    "多久",
    "能好",
    "医生",
    "孩子",
    "最近",
    "总是",
    "晚上",
    "睡不着",
    "肚子",
    "检查",
]


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Distinct rows of context and target, of some 40 and 80 characters."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            context = f"问题{number}：" + "".join(draw.choices(WORDS, k=draw.randint(5, 20))) + "？\n回答："
            target = "".join(draw.choices(WORDS, k=draw.randint(10, 40))) + "。"
            file.write(json.dumps({"context": context, "target": target}, ensure_ascii=False) + "\n")


def measure(folder: Path, packing: bool) -> dict[str, float]:
    """Prepare the rows of `folder` twice, in this process."""
    import datasets  # noqa: F401 (its import is not to be timed)
    import pyarrow.compute  # noqa: F401

    from glmspectra.embedded import locate_model
    from glmspectra.tuning.data import prepare_data
    from glmspectra.tuning.model.families import family_of
    from glmspectra.tuning.model.loading import load_config, load_tokenizer
    from glmspectra.tuning.settings.load import Settings
    from glmspectra.tuning.settings.models import FinetuneArgs, LoraArgs
    from glmspectra.tuning.settings.train_args import TrainArgs

    model = locate_model("nano")
    tokenizer, family = load_tokenizer(model), family_of(load_config(model))
    finetune = FinetuneArgs(
        dataset_path=str(folder / "train.jsonl"), cache_dir=str(folder / "cache"), max_length=512, packing=packing
    )
    settings = Settings(finetune=finetune, lora=LoraArgs(), train=TrainArgs())
    before = peak()
    seconds, busy = [], []
    for _ in range(2):
        start, start_busy = time.perf_counter(), time.process_time()
        data = prepare_data(settings, tokenizer, family)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    counts = data.report.splits["train"]
    return {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "first": seconds[0],
        "second": seconds[1],
        "busy": busy[0],
        "peak_above_start": peak() - before,
    }


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--packing", action="store_true", help="pack the rows too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the folder of a measurement in its own process
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.packing)))
        return
    for count in options.rows:
        with tempfile.TemporaryDirectory(prefix="glmspectra-tokenization-", dir=Path.cwd()) as folder:
            write_rows(Path(folder) / "train.jsonl", count)
            more = ["--packing"] if options.packing else []
            command = [sys.executable, __file__, "--one", folder, *more]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(
            f"{found['rows']:>9,} rows, {found['tokens']:>11,} tokens: first {found['first']:7.1f} s "
            f"({found['rows'] / found['first']:,.0f} rows/s, {found['tokens'] / found['first']:,.0f} tokens/s; "
            f"{found['busy']:.1f} s of one core, {found['rows'] / found['busy']:,.0f} rows/s of it), again "
            f"{found['second']:6.1f} s; memory {found['peak_above_start'] / 2**20:,.0f} MiB above the start",
            flush=True,
        )


if __name__ == "__main__":
    main()
