"""Spectra of the loss gradient of a few batches: rows of quantity 'gradient' beside those of the base's weights."""

import time
from typing import Any

import torch

from glmspectra.checkpoint import Checkpoint, TensorRecord
from glmspectra.device import choose_device
from glmspectra.spectra import spectra_of, summarize_spectrum
from glmspectra.store import Measurement, Request, RunStore
from glmspectra.sweep.delta_rows import known
from glmspectra.tuning.data import TrainingData, prepare_data
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.model.loading import load_config, load_for_settings, load_tokenizer, positions_of
from glmspectra.tuning.model.precision import choose_precision
from glmspectra.tuning.settings.load import Settings
from glmspectra.tuning.training.gradients import weight_gradients

TOP_K = 64  # singular values of a gradient that are kept: more than any sensible rank


def measure_gradients(
    settings: Settings,
    checkpoint: Checkpoint,
    records: list[TensorRecord],
    batches: int,
    store: RunStore,
    device: str = "auto",
) -> dict[str, Any]:
    """Gradients of `records`' weights over some batches of the settings' training data into `store`; its manifest.

    checkpoint: the settings' base model. Each row has the spectrum's columns of dL/dW (its TOP_K largest singular
    values) and gradient_importance, the mean of |W * dL/dW| (GoRA, He et al. 2025). Finished matrices are not measured
    again for the same data, batches and seed. Raises what loading model and data raises.
    """
    names = tuple(record.name for record in records)
    asked = {
        "batches": batches,
        "rows": settings.train.per_device_train_batch_size,
        "seed": settings.finetune.seed,
        "data": str(settings.finetune.dataset_path),
        "quantized": bool(settings.quantized),
        "top_k": TOP_K,
    }
    request = Request("spectrum", names, asked, "gradient")
    chosen = choose_device(device)
    todo = set(store.begin([request], lambda: str(chosen))[request.key])
    work = [record for record in records if record.name in todo]
    if work:
        tokenizer = load_tokenizer(settings.finetune.model_path)
        config = load_config(settings.finetune.model_path)
        limit = positions_of(config)
        data = prepare_data(settings, tokenizer, family_of(config), limit=limit, vocabulary=config.vocab_size)
        drawn = _batches(data, batches, settings.train.per_device_train_batch_size, settings.finetune.seed)
        model = load_for_settings(settings, choose_precision(settings, chosen), chosen)
        by_module = {record.name.removesuffix(".weight"): record for record in work}
        positions = {name: position for position, name in enumerate(checkpoint.tensors)}
        start = time.perf_counter()
        for module, gradient in weight_gradients(model, drawn, list(by_module)):
            record = by_module[module]
            store.write(request, _measurement(checkpoint, record, gradient, positions[record.name], start))
            checkpoint.release(record.name)
            start = time.perf_counter()
    return store.merge()


def _batches(data: TrainingData, count: int, size: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """`count` batches of `size` training rows, drawn by the seed without putting back."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = []
    for start in range(0, min(len(order), count * size), size):
        batch = data.collator([data.train[row] for row in order[start : start + size]])
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        drawn.append(batch)
    return drawn


def _measurement(
    checkpoint: Checkpoint, record: TensorRecord, gradient: torch.Tensor, position: int, start: float
) -> Measurement:
    rows, cols = record.rows, record.columns
    spectrum = spectra_of(gradient, method="topk", k=min(TOP_K, rows, cols), device=gradient.device)["whole"]
    weight = checkpoint.read(record.name).to(gradient.device, torch.float32)
    row = {
        "checkpoint": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "quantity": "gradient",
        "step": None,
        "name": record.name,
        "layer": record.layer,
        "matrix": record.matrix,
        "part": "whole",
        "rows": rows,
        "cols": cols,
        "dtype": "float32",
        "method": spectrum.method,
        "seconds": time.perf_counter() - start,
        "status": spectrum.status,
        "gradient_importance": float((weight * gradient).abs().mean()),
        **known(dict(summarize_spectrum(spectrum))),
    }
    sigma = {"whole": (spectrum.sigma, spectrum.error_bound)}
    return Measurement("spectrum", "gradient", None, record.name, position, [row], sigma)
