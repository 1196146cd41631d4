"""Train nano, the checkpoint that glmspectra carries: tokenizer and model, from the text under `data/`.

    python scripts/nano/write_corpus.py     # once; the text is committed
    python scripts/nano/train.py            # a minute on a GPU, some fifteen on two cores

Nano has ChatGLM2's form with small sizes, all multiples of 64 so that NF4 takes every matrix: 8 layers, hidden 128,
ffn 320, 4 heads of 32 in 2 key-value groups, 1728 tokens. In float32 throughout. On one machine and one torch build the
script gives the same bytes each time; elsewhere the same first losses to about three digits, since sums are rounded in
another order. The committed weights are from two cores of a CPU.

New weights want new ranks in the preset that carries them, `args_file/qlora_spectra/ranks.json` (there and in the
package): `glmspectra svd --layers all`, then `glmspectra suggest-rank --ranks FILE`.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import sentencepiece
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "data" / "corpus"
TARGET = ROOT / "glmspectra" / "nano"
SEED = 20261125

SENTENCEPIECE_TOKENS = 1723  # with ChatGLM2's five special tokens behind them 1728, a multiple of 64
CONFIG = ChatGLMConfig(
    num_layers=8,
    hidden_size=128,
    ffn_hidden_size=320,
    kv_channels=32,
    num_attention_heads=4,
    multi_query_attention=True,
    multi_query_group_num=2,
    padded_vocab_size=SENTENCEPIECE_TOKENS + 5,
    seq_length=2048,
    add_qkv_bias=True,
    add_bias_linear=False,
    rmsnorm=True,
    torch_dtype="float16",
)


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def train_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """A byte-fallback sentencepiece model in the published tokenizer's form: no normalization, unk 0, bos 1, eos 2."""
    sentences = [line for text in texts(CORPUS / "train.jsonl") for line in text.splitlines() if line]
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=SENTENCEPIECE_TOKENS,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            num_threads=1,
            minloglevel=1,
        )
    return ChatGLMTokenizer(vocab_file=str(folder / "tokenizer.model"))


def encode(tokenizer: ChatGLMTokenizer, documents: list[str], longest: int = 320) -> list[dict]:
    """`[gMASK] sop text </s>` a document."""
    rows = [[*tokenizer(document)["input_ids"][: longest - 1], tokenizer.eos_token_id] for document in documents]
    return [{"input_ids": row, "length": len(row)} for row in rows]


class Collator:
    """Right padding: nothing attends to it, and labels of -100 leave it out of the loss."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True, padding_value=0),
            "labels": pad(ids, batch_first=True, padding_value=-100),
        }


class StopAfter(TrainerCallback):
    """Ends the run early on an unchanged schedule, so that its first losses can be compared with the recorded ones."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=TARGET)
    options.add_argument("--work", type=Path, default=ROOT / "runs" / "nano")
    options.add_argument("--epochs", type=float, default=12)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--stop-after", type=int, help="stop after so many steps and write only trainer_state.json")
    chosen = options.parse_args()

    torch.set_num_threads(chosen.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    torch.use_deterministic_algorithms(True)
    set_seed(SEED)
    chosen.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(chosen.work)
    model = ChatGLMForConditionalGeneration(CONFIG).float()
    model.set_attn_implementation("eager")  # the one implementation whose gradients are deterministic everywhere
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(chosen.work),
            num_train_epochs=chosen.epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=4e-3,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.05,
            max_grad_norm=1.0,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            eval_strategy="no" if chosen.stop_after else "epoch",
            logging_steps=10,
            save_strategy="no",
            seed=SEED,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
        train_dataset=encode(tokenizer, texts(CORPUS / "train.jsonl")),
        eval_dataset=encode(tokenizer, texts(CORPUS / "heldout.jsonl")),
        data_collator=Collator(),
        callbacks=[StopAfter(chosen.stop_after)] if chosen.stop_after else None,
    )
    trainer.train()
    trainer.state.save_to_json(str(chosen.work / "trainer_state.json"))
    if chosen.stop_after:
        return
    heldout = trainer.evaluate()["eval_loss"]
    chosen.out.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True  # which the Trainer had turned off
    model.half().save_pretrained(chosen.out)
    tokenizer.save_pretrained(chosen.out)
    shutil.copy(chosen.work / "trainer_state.json", chosen.out / "trainer_state.json")
    print(f"{chosen.out}: held-out loss {heldout:.4f} nats a token")


if __name__ == "__main__":
    main()
