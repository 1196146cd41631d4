"""Base and adapter into one checkpoint, in the base's original precision, one tensor in memory at a time.

Never into a 4-bit base: quantising the sum again throws away about as much as the adapter holds. A base that
is stored quantised is dequantised first, and the merged checkpoint is in half precision.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glmspectra.checkpoint import Checkpoint, open_checkpoint
from glmspectra.checkpoint.adapter.adapter import INITIAL_FOLDER, Adapter, open_adapter
from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.embedded import locate_model
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import atomic_folder, check_target

SHARD_BYTES = 2 << 30
NOT_COPIED = (".safetensors", ".bin", ".gguf", ".index.json", ".pt", ".pth", ".h5", ".msgpack")


@dataclass
class Merged:
    """What a merge did.

    changed: weights that the adapter changed. whole: tensors that it replaced. dtype: of the changed weights
    as written. dequantized: weights of the base that were stored quantised. lost: name and share of the
    weight whose change lost most to rounding in dtype, |stored - exact|_F / |change|_F.
    """

    out: str
    base: str
    adapter: str
    kind: str
    changed: int = 0
    whole: int = 0
    dtype: str = ""
    dequantized: int = 0
    lost: tuple[str, float] = ("", 0.0)
    nbytes: int = 0
    files: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        base = (
            "the base was stored quantised and was dequantised first, then the adapter added"
            if self.dequantized
            else ("the adapter was added to the base's original weights, not to a quantised copy")
        )
        return [
            f"{self.kind} adapter of {self.changed} matrices merged into {self.base}: {base}.",
            f"Written to {self.out}: {self.nbytes / 2**20:,.1f} MiB of {self.dtype} in {len(self.files)} file"
            f"{'s' if len(self.files) > 1 else ''}.",
            f"Rounding to {self.dtype} took at most {self.lost[1]:.2%} of a matrix's change"
            f"{f' ({self.lost[0]})' if self.lost[0] else ''}.",
        ]


def merge(
    base: str | Path,
    adapter: str | Path,
    out: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write base + adapter to the folder `out`, whole or not at all.

    dtype: of the floating-point tensors that are written; None keeps each as it is stored (quantised ones
    become the configuration's type, float16 without one). LoRA with patterns, rsLoRA, DoRA, PiSSA, OLoRA,
    LoftQ and AdaLoRA (pruned or not) merge alike. progress(done, all) is called after each tensor.

    Raises:
        RequestError: base or adapter is not there, or `out` is.
        CheckpointError: the adapter is of another base, or either cannot be read.
    """
    place = locate_model(base)
    folder = place if place.is_dir() else place.parent
    if out.resolve() == folder.resolve():
        raise RequestError(f"--out {out} is the base model's own folder; name another.")
    check_target(out, "--out")
    opened = open_adapter(Path(adapter))
    start = _start(opened)
    with open_checkpoint(place) as checkpoint:
        if checkpoint.form == "gguf":
            raise RequestError(
                f"{place}: a GGUF file holds quantised weights under other names; merge into the folder it was made "
                "from, or load and save it by transformers first."
            )
        report = Merged(str(out), str(place), str(adapter), opened.kind)
        names = opened.base_names(list(checkpoint.tensors))
        changes = {base_name: name for name, base_name in names.items()}
        whole = _whole_tensors(opened, checkpoint)
        tensors = _tensors(checkpoint, opened, start, changes, whole, dtype, report, progress)
        with atomic_folder(out) as staging:
            _write_shards(staging, tensors, shard_bytes, report)
            _copy_rest(folder, staging, checkpoint, report)
    return report


def _start(adapter: Adapter) -> Adapter | None:
    """The factors that a LoftQ-like start gave: they make up for a 4-bit base, and the original precision has
    no such error, so only what training changed since is merged. None for other starts."""
    folder = adapter.path / INITIAL_FOLDER
    if adapter.kind in ("lora", "rslora") and (folder / "adapter_config.json").is_file():
        return open_adapter(folder)
    return None


def _tensors(
    checkpoint: Checkpoint,
    adapter: Adapter,
    start: Adapter | None,
    changes: dict[str, str],
    whole: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
    report: Merged,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    fallback = getattr(torch, str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float16"))
    for done, (name, record) in enumerate(checkpoint.tensors.items(), 1):
        stored = checkpoint.read(name)
        target = fallback if record.quantization else stored.dtype
        target = dtype if dtype is not None and stored.is_floating_point() else target
        report.dequantized += record.quantization is not None
        if name in whole:
            result = whole[name].to(target)
            report.whole += 1
        elif name in changes:
            factors = adapter.factors(changes[name])
            result = _changed(stored, factors, start, changes[name], target, report)
        else:
            result = stored.to(target, copy=True)
        yield name, result.contiguous()
        checkpoint.release(name)
        if progress is not None:
            progress(done, len(checkpoint.tensors))


def _changed(
    stored: torch.Tensor, factors: Factors, start: Adapter | None, name: str, target: torch.dtype, report: Merged
) -> torch.Tensor:
    exact = factors.merged(stored)
    if start is not None:
        exact -= start.factors(name).product()
    if not torch.isfinite(exact).all():
        raise CheckpointError(
            f"{name}: base and adapter together give values that are not finite; the adapter is broken."
        )
    result = exact.to(target)
    change = torch.linalg.matrix_norm(exact - stored.float())
    lost = float(torch.linalg.matrix_norm(result.float() - exact) / change) if change > 0 else 0.0
    report.lost = max(report.lost, (factors.name, lost), key=lambda item: item[1])
    report.changed += 1
    report.dtype = str(target).removeprefix("torch.")
    return result


def _whole_tensors(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Tensors that the adapter holds in full (modules_to_save, biases), by the base's names."""
    if not adapter.whole:
        return {}
    file = adapter.path / "adapter_model.safetensors"
    stored = load_file(file) if file.is_file() else torch.load(adapter.path / "adapter_model.bin", weights_only=True)
    found = {}
    for name in adapter.whole:
        value = next((tensor for key, tensor in stored.items() if _plain(key) == name), None)
        fits = [base for base in checkpoint.tensors if base == name or base.endswith(f".{name}")]
        if value is None or len(fits) != 1:
            raise CheckpointError(f"{adapter.path}: holds {name} in full, which the base does not have under one name.")
        found[fits[0]] = value
    return found


def _plain(key: str) -> str:
    return key.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".base_layer", "")


def _write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], shard_bytes: int, report: Merged) -> None:
    """Write tensors as they come into shards of at most `shard_bytes` (one larger tensor has a shard of its
    own)."""
    shards: list[dict[str, int]] = []
    pending: dict[str, torch.Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal pending, size
        if pending:
            save_file(pending, folder / f"part-{len(shards)}", metadata={"format": "pt"})
            shards.append({name: tensor.nbytes for name, tensor in pending.items()})
            pending, size = {}, 0

    for name, tensor in tensors:
        if size + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor
        size += tensor.nbytes
    flush()
    report.nbytes = sum(sum(shard.values()) for shard in shards)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": report.nbytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    report.files = names


def _copy_rest(source: Path, target: Path, checkpoint: Checkpoint, report: Merged) -> None:
    """Configuration (without what says that the base was quantised), tokenizer and the like."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "config.json" and not path.name.endswith(NOT_COPIED):
            if path.suffix == ".py" or path.name == "trainer_state.json":
                continue  # code of the original model, the native one needs none; steps of the base's own training
            shutil.copyfile(path, target / path.name)
    of_storage = ("quantization_config", "compression_config", "auto_map")
    config = {key: value for key, value in checkpoint.config.items() if key not in of_storage}
    if "quantization_bit" in config:
        config["quantization_bit"] = 0
    if report.dtype:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = report.dtype
    (target / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
