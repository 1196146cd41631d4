"""What the tests of training share: a tiny model, a tokenizer of single characters, data, and the three
files."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.training.run import prepare_run

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ?.问答患者头痛发烧吃药休息多喝水"
VOCABULARY = 64
REPOSITORY = Path(__file__).parents[2]
REPOSITORY_DATA = REPOSITORY / "data"
QUESTIONS = {"头痛": "吃药", "发烧": "休息", "abc": "xyz", "水": "多喝水"}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {character: index for index, character in enumerate(CHARACTERS, 3)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def write_model(folder: Path, family: str = "llama", seed: int = 0, layers: int = 2) -> Path:
    """A random model of 64 channels with the tokenizer above, as a folder."""
    torch.manual_seed(seed)
    if family == "llama":
        config = LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=256, eos_token_id=1, pad_token_id=0,
            bos_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        config = ChatGLMConfig(
            hidden_size=64, ffn_hidden_size=128, num_layers=layers, num_attention_heads=4, kv_channels=16,
            multi_query_group_num=2, padded_vocab_size=VOCABULARY, seq_length=256, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        model = ChatGLMForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct pairs of a question and a rule-like answer, of various lengths."""
    draw = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < count:
        word = draw.choice(list(QUESTIONS))
        context = word + "?" * draw.randint(1, 12) + draw.choice("abcde")
        made[context] = QUESTIONS[word] * draw.randint(1, 4) + "."
    return [{"context": context, "target": target} for context, target in made.items()]


def write_data(folder: Path, train: int = 32, valid: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = rows(train + valid)
    for name, part in (("train", made[:train]), ("valid", made[train:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_args(folder: Path, model: Path, data: Path, finetune=None, lora=None, train=None) -> Path:
    """The three files, with what a test changes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "finetune_args": {
            "dataset_path": str(data), "model_path": str(model), "cache_dir": str(folder.parent / "cache"),
            "template": "plain", "separator": "", "seed": 1, "max_length": 64,
        },
        "lora_args": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "train_args": {
            "output_dir": str(folder.parent / "run"), "per_device_train_batch_size": 4, "max_steps": 10,
            "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 5, "eval_strategy": "no",
        },
    }  # fmt: skip
    for name, changes in (("finetune_args", finetune), ("lora_args", lora), ("train_args", train)):
        values = files[name] | (changes or {})
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def make_run(root: Path, model: Path, data: Path, finetune=None, lora=None, train=None, **options):
    """A prepared run under `root` on the CPU."""
    args = write_args(root / "args", model, data, finetune, lora, train)
    return prepare_run(load_settings(args), device="cpu", quiet=True, **options)


def train_on_two_processes(
    folder: Path, args: Path, device: str, *options: str, program: tuple[str, ...] = ("-m", "glmspectra")
) -> subprocess.CompletedProcess[str]:
    """`glmspectra train` under torchrun, started in `folder`; it must end well. program: what stands for glmspectra."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", *program, "train", "--args", str(args), "--device", device,
        "--no-report", *options,
    ]  # fmt: skip
    places = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


ADALORA = {
    "init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "lora_alpha": 8, "lora_dropout": 0.1
}  # fmt: skip
