"""A trained adapter cut to a smaller budget: the leading singular directions of its change, exactly from its factors.

The rule is PARA's (arXiv 2604.27796): one threshold over the singular values of all matrices. In our study a cut
adapter was worse than one trained at the same cost (docs/ranks.md), so this is for who has an adapter and cannot
train again.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from glmspectra.checkpoint.adapter.adapter import Adapter, open_adapter
from glmspectra.checkpoint.adapter.config import CONFIG_FILE
from glmspectra.errors import RequestError
from glmspectra.files import atomic_folder, write_atomically
from glmspectra.json_files import json_text
from glmspectra.language import both, text
from glmspectra.peft_rules import module_pattern
from glmspectra.ranks.allocation import Limits, allocate_by_threshold
from glmspectra.ranks.budget import parse_budget
from glmspectra.ranks.evidence import Evidence, Target
from glmspectra.ranks.peft_patterns import target_modules, verify
from glmspectra.spectra import Spectrum
from glmspectra.spectra.lowrank import factor_spectrum

KEPT_SETTINGS = ("base_model_name_or_path", "task_type", "lora_dropout", "revision")


@dataclass(frozen=True)
class Squeezed:
    """What a cut kept.

    Attributes:
        adapter: The folder written.
        parameters, parameters_before: Trainable numbers of all factors.
        ranks: Module to rank, 0 included.
        kept_energy: Share of the sum of all sigma^2 that is kept.
        relative_error: Frobenius norm of what is cut off over the whole change's, the root of 1 - kept_energy.
        threshold: Size of the largest direction that the budget did not admit.
        max_lora_rank: The largest rank, what servers such as vLLM must be started with at least.
    """

    adapter: str
    parameters: int
    parameters_before: int
    ranks: dict[str, int]
    kept_energy: float
    relative_error: float
    threshold: float
    max_lora_rank: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        gone = sum(rank == 0 for rank in self.ranks.values())
        matrices = both("terminal-matrices", count=len(self.ranks))
        ranks: dict[str, Any] = {
            "least": str(min(self.ranks.values())),
            "rank": str(self.max_lora_rank),
            "matrices": matrices,
        }
        return [
            text(
                "squeeze-kept",
                parameters=self.parameters,
                before=self.parameters_before,
                energy=f"{self.kept_energy:.2%}",
                error=f"{self.relative_error:.3g}",
            ),
            text("squeeze-ranks-some", **ranks, gone=gone) if gone else text("squeeze-ranks", **ranks),
            text("squeeze-better"),
            text("squeeze-adapter", path=self.adapter),
        ]


def squeeze_adapter(
    path: Path | str, out: Path | str, budget: str, limits: Limits | None = None, initial: Path | str | None = None
) -> Squeezed:
    """Cut an adapter to a budget and write it as a plain LoRA adapter of the same base.

    Args:
        path: A PEFT adapter folder: LoRA, rsLoRA, AdaLoRA, or one whose first factors came out of the base and lie
            beside it; of the last the result is what training changed of the published base.
        out: The folder to write; it must not hold an adapter yet.
        budget: As of `suggest-rank`: like:r=4, params:1M, bytes:4MiB, share:0.1%.
        limits: Of the ranks.
        initial: The adapter as it was before the first step, where it is not found by itself.

    Raises:
        RequestError: DoRA and LoftQ, whose change is no product of small factors; trained whole tensors; layers that
            store their weight transposed, such as embeddings; a budget that buys nothing.
    """
    out = Path(out)
    if (out / CONFIG_FILE).exists():
        raise RequestError(f"{out} holds an adapter already: name another folder with --out.")
    adapter = open_adapter(path, initial)
    spectra, scales = _spectra(adapter)
    targets = [_target(name, spectrum) for name, spectrum in spectra.items()]
    sizes = {name: spectrum.sigma for name, spectrum in spectra.items()}
    evidence = Evidence(str(adapter.base_model or ""), "", tuple(targets), tuple(targets), {"delta": sizes}, {}, 1)
    allocation = allocate_by_threshold(targets, sizes, parse_budget(budget, evidence).parameters, limits or Limits())
    ranks = {target.module: allocation.ranks[target.name] for target in targets}
    if not any(ranks.values()):
        raise RequestError(
            f"{path}: every rank is 0: the adapter changes nothing, or the budget {budget} is too small."
        )
    with atomic_folder(out) as folder:
        _write(folder, adapter, spectra, scales, ranks)
    whole = sum(float(np.sum(sigma**2)) for sigma in sizes.values())
    held = sum(float(np.sum(sizes[t.name][: allocation.ranks[t.name]] ** 2)) for t in targets)
    return Squeezed(
        str(out),
        allocation.parameters,
        adapter.parameters,
        ranks,
        held / whole,
        max(0.0, 1 - held / whole) ** 0.5,
        float(allocation.threshold or 0.0),
        max(ranks.values()),
    )


def _spectra(adapter: Adapter) -> tuple[dict[str, Spectrum], dict[str, float]]:
    """Weight name to the change's singular values and vectors, and to the effective scale it was trained at."""
    if adapter.whole:
        raise RequestError(
            f"{adapter.path}: it also trained {', '.join(adapter.whole[:3])} as a whole, which a cut would lose; "
            "`glmspectra merge` keeps them."
        )
    if adapter.beyond_matrices:
        raise RequestError(
            f"{adapter.path}: {adapter.beyond_matrices[0]} is a convolution or a stack of experts; only linear layers "
            "are cut."
        )
    spectra, scales = {}, {}
    for name in adapter.names:
        factors = adapter.change(name)
        if factors.needs_base:
            raise RequestError(
                f"{adapter.path}: the change of a {adapter.peft_method} adapter is no product of its factors alone, so "
                "that it cannot be cut exactly; LoRA, rsLoRA, AdaLoRA and PiSSA adapters can."
            )
        if factors.transposed:
            raise RequestError(f"{adapter.path}: {name} stores its weight transposed; only linear layers are cut.")
        spectra[name] = factor_spectrum(factors.left, factors.right, factors.scale, vectors=True)
        scales[name] = factors.scale if factors.scale > 0 else 1.0
    return spectra, scales


def _target(name: str, spectrum: Spectrum) -> Target:
    numbers = re.findall(r"\.(\d+)\.", name)
    matrix = name.removesuffix(".weight").rpartition(".")[2]
    return Target(name, int(numbers[0]) if numbers else None, matrix, spectrum.rows, spectrum.cols)


def _write(
    folder: Path,
    adapter: Adapter,
    spectra: Mapping[str, Spectrum],
    scales: Mapping[str, float],
    ranks: Mapping[str, int],
) -> None:
    """The adapter's two files: s B A = U_r sigma_r V_r^T, with the roots of sigma in B and in A."""
    tensors = {}
    for name, spectrum in spectra.items():
        module = name.removesuffix(".weight")
        rank = ranks[module]
        if rank and spectrum.vectors is not None:
            root = np.sqrt(spectrum.sigma[:rank] / scales[name])
            up, down = spectrum.vectors.left[:, :rank] * root, (spectrum.vectors.right[:, :rank] * root).T
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.from_numpy(up).float().contiguous()
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.from_numpy(down).float().contiguous()
    content = save(tensors, metadata={"format": "pt"})
    write_atomically(folder / "adapter_model.safetensors", lambda file: file.write(content))
    config = json_text(_config(adapter, scales, ranks)) + "\n"
    write_atomically(folder / CONFIG_FILE, lambda file: file.write(config.encode()))


def _config(adapter: Adapter, scales: Mapping[str, float], ranks: Mapping[str, int]) -> dict[str, Any]:
    kept = {module: rank for module, rank in ranks.items() if rank}
    values = list(kept.values())
    common = max(sorted(set(values)), key=values.count)
    patterns = {module_pattern(module): rank for module, rank in kept.items()}
    verify(patterns, kept, list(ranks))
    alphas = {module_pattern(module): scales[f"{module}.weight"] * rank for module, rank in kept.items()}
    return {
        "peft_type": "LORA",
        "bias": "none",
        "inference_mode": True,
        "use_rslora": False,
        **{key: value for key in KEPT_SETTINGS if (value := getattr(adapter.config, key)) is not None},
        "r": common,
        "lora_alpha": common,
        "target_modules": target_modules(list(kept), list(ranks)),
        "rank_pattern": patterns,
        "alpha_pattern": alphas,
    }
