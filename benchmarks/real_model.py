"""For people who have the real weights: does this package find on them what was published, and do they work?

    python benchmarks/real_model.py chatglm2-6b
    python benchmarks/real_model.py chatglm2-6b --valid ../shared/data/med/valid.jsonl --device cuda
    python benchmarks/real_model.py chatglm2-6b --only spectra --layers 0,27

Three parts, each leaving its lines on stdout (`--json` gives one object at the end instead):

- spectra: the 20 largest singular values of every matrix, and the share of the 12 largest in the sum of all, against
  the reference file (read off published figures, to +-0.001; by default that of chatglm2-6b). The tables stay under
  --out, so that a second call compares at once and `glmspectra report` can draw them. The exit status is 1 where a
  value is further off than --tolerance (singular values, absolute) or --share-tolerance (shares, absolute).
- chat: a few questions, answered greedily; to be read by a person.
- loss: nats a token over the rows of --valid (JSON Lines with context and target), as `glmspectra evaluate` has it.

Singular values need two CPU cores and an hour, or a GPU and a minute; chat and loss load the model in half precision
(13 GB) on a GPU, or in float32 (25 GB) on a CPU; --four-bit takes NF4 instead.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "chatglm2_6b_spectra.json"
PARTS = ("spectra", "chat", "loss")
SHARE = "top12_share_of_singular_value_sum"
QUESTIONS = ("你好", "晚上睡不着应该怎么办", "What is a singular value, in one sentence?")


def reference_of(path: Path) -> tuple[dict[tuple[int, str], np.ndarray], dict[tuple[int, str], float]]:
    """(layer, matrix) -> the largest singular values, descending, and (layer, matrix) -> share of the 12 largest.

    matrix: the last word of the reference's names ('query_key_value', ...).
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    sigma = {
        (int(layer["layer"]), name.rpartition(".")[2]): np.asarray(values, dtype=float)
        for layer in kept["top20_singular_values"]
        for name, values in layer.items()
        if name != "layer"
    }
    shares = {
        (layer, name.rpartition(".")[2]): float(value)
        for name, values in kept.get(SHARE, {}).items()
        for layer, value in enumerate(values)
    }
    return sigma, shares


def measure(folder: Path, out: Path, layers: str, device: str) -> Any:
    """The run of this checkpoint's spectra under out/param_matrix; what is finished is not measured again."""
    from glmspectra.checkpoint import open_checkpoint, select
    from glmspectra.store import RunStore, read_run
    from glmspectra.sweep import SweepOptions, source_of, sweep

    with open_checkpoint(folder) as checkpoint:
        store = RunStore.of(out / "param_matrix", source_of(checkpoint))
        sweep(checkpoint, select(checkpoint, layers), SweepOptions(values=False, device=device), store)
    return read_run(store.folder)


def compare(run: Any, reference: Path) -> dict[str, Any]:
    """How far this run's spectra are from the reference, over the matrices that both have.

    sigma, share: largest absolute difference; each with the (layer, matrix) of it. Raises SystemExit where they have
    no matrix in common.
    """
    sigma, shares = reference_of(reference)
    rows = run.matrices[(run.matrices["quantity"] == "weight") & (run.matrices["part"] == "whole")]
    values = run.singular_values[
        (run.singular_values["quantity"] == "weight") & (run.singular_values["part"] == "whole")
    ]
    found = {name: group.sort_values("index")["sigma"].to_numpy() for name, group in values.groupby("name")}
    worst: dict[str, Any] = {"matrices": 0, "values": 0, "sigma": 0.0, "share": 0.0, "sigma_at": None, "share_at": None}
    for row in rows.itertuples():
        key = (int(row.layer), str(row.matrix))
        if key not in sigma or row.name not in found:
            continue
        worst["matrices"] += 1
        mine, theirs = found[row.name][: len(sigma[key])], sigma[key]
        if len(mine) < len(theirs):
            raise SystemExit(
                f"{row.name} has {len(mine)} singular values and the reference {len(theirs)}: they are of different "
                "models."
            )
        worst["values"] += len(theirs)
        gaps = {"sigma": float(np.abs(mine - theirs).max())}
        if key in shares:
            gaps["share"] = abs(float(getattr(row, SHARE)) - shares[key])
        for what, gap in gaps.items():
            if not gap <= worst[what]:  # a NaN counts as the worst
                worst[what], worst[f"{what}_at"] = gap, f"layer {key[0]} {key[1]}"
    if not worst["matrices"]:
        raise SystemExit(f"{reference} and {run.folder} have no matrix of the same layer and type in common.")
    return worst


def chat(folder: Path, questions: list[str], device: str, four_bit: bool, tokens: int) -> list[dict[str, Any]]:
    """One greedy answer to each question, each a conversation of its own, and its time."""
    from glmspectra.tuning.data.template import has_chat_template
    from glmspectra.tuning.inference.batch import load_for_inference
    from glmspectra.tuning.inference.conversation import Conversation
    from glmspectra.tuning.model.loading import positions_of

    loaded = load_for_inference(folder, None, device, four_bit=four_bit)
    form = "chat" if has_chat_template(loaded.tokenizer) else "plain"
    answers = []
    for question in questions:
        talk = Conversation(loaded.model, loaded.tokenizer, form, tokens, positions_of(loaded.model.config))
        started = time.perf_counter()
        for _ in talk.ask(question):
            pass
        seconds = time.perf_counter() - started
        answers.append(
            {
                "question": question,
                "answer": talk.rounds[-1][1],
                "tokens": talk.new_tokens,
                "seconds": round(seconds, 2),
            }
        )
    return answers


def loss(folder: Path, valid: Path, device: str, four_bit: bool, limit: int | None) -> dict[str, float]:
    """Loss (nats a token), perplexity, token accuracy and tokens over the rows of a JSON Lines file."""
    from glmspectra.tuning.inference.evaluation import evaluate
    from glmspectra.tuning.settings.load import load_settings
    from glmspectra.tuning.settings.presets import write_presets

    asked: Mapping[str, Any] = {
        "finetune.model_path": str(folder),
        "finetune.dataset_path": str(valid),
        "finetune.method": "qlora" if four_bit else "lora",
        "finetune.load_in_4bit": four_bit,
        "finetune.valid_path": None,
        "finetune.valid_fraction": None,
        "finetune.packing": False,
        "train.eval_strategy": "no",
    }
    with tempfile.TemporaryDirectory() as place:
        write_presets(Path(place))
        settings = load_settings(Path(place) / "args_file", [f"{k}={json.dumps(v)}" for k, v in asked.items()])
        found = evaluate(settings, None, device, split="train", limit=limit)
    return {**(found.base or {}), "rows": found.rows}


def release() -> None:
    """Give the memory of the last model back before the next is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the checkpoint's folder")
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    parser.add_argument("--valid", type=Path, help="JSON Lines with context and target; absent: no loss is taken")
    parser.add_argument("--limit", type=int, help="rows of --valid at most")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--layers", default="all")
    parser.add_argument("--tolerance", type=float, default=0.0015, help="of singular values, absolute")
    parser.add_argument("--share-tolerance", type=float, default=2e-5, help="of shares, absolute")
    parser.add_argument("--question", action="append", help="asked in place of the three of the script")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--four-bit", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    asked = tuple(options.only or PARTS)
    if "spectra" in asked and not options.reference.is_file():
        parser.error(f"there is no reference {options.reference}: name one with --reference, or --only chat.")
    if options.only and "loss" in asked and options.valid is None:
        parser.error("the loss needs rows: --valid FILE.jsonl.")
    say = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    facts: dict[str, Any] = {"folder": str(options.folder)}
    status = 0
    if "spectra" in asked:
        found = compare(measure(options.folder, options.out, options.layers, options.device), options.reference)
        near = found["sigma"] <= options.tolerance and found["share"] <= options.share_tolerance
        facts["spectra"] = found | {"within_tolerance": near}
        say(
            f"spectra: {found['values']:,} singular values of {found['matrices']} matrices, at most "
            f"{found['sigma']:.5f} from the reference ({found['sigma_at']}); shares of the 12 largest at most "
            f"{found['share']:.6f} ({found['share_at']}): {'as published' if near else 'NOT as published'}."
        )
        status = 0 if near else 1
    if "chat" in asked:
        facts["chat"] = chat(
            options.folder,
            options.question or list(QUESTIONS),
            options.device,
            options.four_bit,
            options.max_new_tokens,
        )
        for one in facts["chat"]:
            say(f"\n> {one['question']}\n{one['answer']}\n({one['tokens']} tokens in {one['seconds']} s)")
        release()
    if "loss" in asked and options.valid is not None:
        facts["loss"] = loss(options.folder, options.valid, options.device, options.four_bit, options.limit)
        one = facts["loss"]
        say(
            f"\nloss: {one['loss']:.4f} nats a token, perplexity {one['perplexity']:.3f}, token accuracy "
            f"{one['token_accuracy']:.3f} over {one['tokens']:,} tokens of {one['rows']} rows."
        )
        release()
    elif "loss" in asked:
        say("\nloss: not taken; name rows with --valid FILE.jsonl.")
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
    return status


if __name__ == "__main__":
    sys.exit(main())
