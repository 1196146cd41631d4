"""The peak memory of a training step, by its parts, before anything is loaded.

The step is run, on tensors that have shapes and types but no data: the model's own code, PEFT's own layers, the loss
of training, forward and backward, checkpointing. What is alive is added up operation by operation (`tracking.py`),
with the operations whose CUDA kernels keep other things than the CPU's replaced (`kernels.py`). Nothing is fitted.
It says what `torch.cuda.max_memory_allocated` will say; the CUDA context (some 0.5 GiB) and what the caching
allocator keeps in reserve come on top.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glmspectra.checkpoint.foreign import read_by_library
from glmspectra.language import text
from glmspectra.tuning.data import IGNORED
from glmspectra.tuning.memory.kernels import AdapterShapes, CudaKernels, mark_four_bit
from glmspectra.tuning.memory.tracking import Tracker, rounded
from glmspectra.tuning.settings.load import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from glmspectra.tuning.model.precision import Precision

GIB = 2**30
# cuBLAS gets a workspace a thread (forward runs in one, backward in another) of 32 MiB on Hopper and later, and
# 8.125 MiB before: getChosenWorkspaceSize in PyTorch's CUDABlas.cpp.
CUBLAS_WORKSPACES = {True: 2 * 32 * 2**20, False: 2 * 8_519_680}
BLOCK = 64  # weights of a 4-bit block that share one scale

# Bytes of optimizer state a trainable parameter. Pages of a paged optimizer are managed memory, which is not counted
# as allocated.
OPTIMIZER_BYTES = {"sgd": 0, "adafactor": 0.02, "lion_8bit": 1, "lion_32bit": 4, "lion": 4, "8bit": 2, "adagrad": 4}


@dataclass(frozen=True)
class BatchShape:
    """The batch of a step.

    Attributes:
        rows: how many.
        tokens: of each row.
        supervised: tokens in all that are learnt.
        packed: several examples in a row, kept apart by a mask.
    """

    rows: int
    tokens: int
    supervised: int
    packed: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step, by part; `peak` is their sum.

    `kept`: what the forward pass leaves for backward, all of which need not be alive at the peak.
    """

    parts: dict[str, int]
    batch: BatchShape
    kept: int

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "peak_bytes": self.peak,
            "parts_bytes": self.parts,
            "rows": self.batch.rows,
            "tokens": self.batch.tokens,
        }

    def lines(self) -> list[str]:
        """The estimate as lines to print."""
        shape = {"rows": str(self.batch.rows), "tokens": str(self.batch.tokens)}
        heading = text("memory-heading", **shape, peak=f"{self.peak / GIB:.2f}")
        return [heading, *(f"  {size / GIB:8.3f} GiB  {_shown(name)}" for name, size in self.parts.items() if size)]


def _shown(part: str) -> str:
    """A part's name in the language in use."""
    return text(f"memory-{part.lower().replace(',', '').replace(' ', '-')}")


def estimate_memory(
    settings: Settings,
    config: PreTrainedConfig,
    precision: Precision,
    batch: BatchShape,
    hopper: bool = True,
    loss_in_chunks: bool = True,
) -> MemoryEstimate:
    """The peak of one step of the model of `config` with the adapter of the settings, on CUDA.

    Args:
        settings: of the run.
        config: a `PreTrainedConfig`.
        precision: of the run: types of weights and products, autocast.
        batch: the batch of the step.
        hopper: whether the GPU is of compute capability 9 or more.
        loss_in_chunks: whether `TokenLoss` can work chunk by chunk on this model (`TokenLoss.in_chunks`).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    base = _skeleton(settings, config, precision.weights)
    marked: dict[str, nn.Linear] = {}
    if settings.quantized:
        marked = mark_four_bit(base, precision.compute, settings.finetune.bnb_4bit_quant_type)
    model = _with_adapter(base, settings, precision)
    with FakeTensorMode():
        _without_data(model)
        parts = _resident(model, marked, settings)
        parts["cuBLAS workspaces"] = CUBLAS_WORKSPACES[hopper]
        four_bit = {id(layer.weight) for layer in marked.values()}
        recompute = bool(settings.train.gradient_checkpointing)
        passing, kept = _step(model, base, four_bit, precision, batch, recompute, loss_in_chunks)
    return MemoryEstimate(parts | passing, batch, kept)


def _skeleton(settings: Settings, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """The base model on the meta device, frozen."""
    from transformers import AutoModelForCausalLM

    # Flash attention keeps what PyTorch's own kernel keeps, and its package need not be here for an estimate.
    attention = "eager" if settings.finetune.attn_implementation == "eager" else "sdpa"
    folder = Path(settings.finetune.model_path)  # for the message: the configuration need not come from a folder
    with read_by_library(folder, "no model can be made of its configuration"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.requires_grad_(False)


def _without_data(model: nn.Module) -> None:
    """Put fake tensors in the place of a model's meta tensors; tied weights stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = made.get(id(parameter))
                if fake is None:
                    fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = made[id(parameter)] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _with_adapter(base: Any, settings: Settings, precision: Precision) -> Any:
    from glmspectra.tuning.model.adapter import add_adapter
    from glmspectra.tuning.model.adapter_products import follow_input_dtype, taken_by_kernels

    # How factors start changes no size, and some starts look at the data of the weights.
    plain = settings.model_copy(update={"lora": settings.lora.model_copy(update={"init_lora_weights": True})})
    model = add_adapter(base, plain, total_steps=1000)
    if precision.autocast is None and precision.weights is not torch.float32:
        shapes = AdapterShapes()
        follow_input_dtype(
            model, settings.lora.adapter_name, lambda x, rank: shapes if taken_by_kernels(x, rank) else None
        )
    return model.train()


def _resident(model: nn.Module, marked: dict[str, nn.Linear], settings: Settings) -> dict[str, int]:
    """Bytes of what is there in every step: weights, adapter, its gradients and its optimizer's state."""
    four_bit = {id(layer.weight) for layer in marked.values()}
    nested = settings.finetune.bnb_4bit_use_double_quant
    sizes = {"4-bit weights": 0, "scales of 4-bit blocks": 0, "other base weights": 0}
    trainable = 0
    adapter = 0
    for tensor in {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values():
        if id(tensor) in four_bit:
            sizes["4-bit weights"] += rounded(-(-tensor.numel() // 2))
            sizes["scales of 4-bit blocks"] += _scale_bytes(tensor.numel(), nested)
        elif tensor.requires_grad:
            trainable += tensor.numel()
            adapter += rounded(tensor.nbytes)
        else:
            sizes["other base weights"] += rounded(tensor.nbytes)
    return {
        **sizes,
        "adapter": adapter,
        "gradients": adapter,
        "optimizer state": round(trainable * optimizer_bytes(str(settings.train.optim))),
    }


def _scale_bytes(weights: int, nested: bool) -> int:
    """Bytes of the scales of 4-bit weights: one float32 for 64 weights, and the 16 values of the grid.

    Nested: one byte for 64 weights, one float32 for 256 of those, and the 256 values of their own grid (Dettmers et al.
    2023, arXiv:2305.14314, section 3).
    """
    blocks = -(-weights // BLOCK)
    if not nested:
        return rounded(4 * blocks) + rounded(4 * 16)
    return rounded(blocks) + rounded(4 * -(-blocks // 256)) + rounded(4 * 256) + 2 * rounded(4 * 16)


def optimizer_bytes(name: str) -> float:
    """Bytes of state that an optimizer of this name (`optim` of train_args) keeps on the device a parameter."""
    if name.startswith("paged"):
        return 0
    return next((size for key, size in OPTIMIZER_BYTES.items() if key in name), 8)


def _step(
    model: Any,
    base: Any,
    four_bit: set[int],
    precision: Precision,
    batch: BatchShape,
    recompute: bool,
    loss_in_chunks: bool,
) -> tuple[dict[str, int], int]:
    """Run forward and backward; bytes alive at the moment of the peak, by what they are, and at the end of forward."""
    from glmspectra.tuning.model.recomputation import enable_checkpointing

    inputs, labels = _inputs(batch)
    known = [*model.parameters(), *model.buffers(), *inputs.values(), labels]
    for parameter in model.parameters():
        if parameter.requires_grad:  # counted as resident: they are there in every step but the first
            parameter.grad = torch.empty_like(parameter)
            known.append(parameter.grad)
    tracker = Tracker(known)
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}[precision.autocast]
    if recompute:
        # Recomputation runs inside backward, where modes that were entered outside are off.
        enable_checkpointing(base, {"context_fn": lambda: (nullcontext(), CudaKernels(four_bit, autocast, tracker))})
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", autocast is not None)  # PEFT asks for it before it casts
    try:
        with tracker, CudaKernels(four_bit, autocast, tracker):
            loss = _loss(model, base, inputs, labels, batch, tracker, loss_in_chunks)
            kept = tracker.total
            tracker.label = "gradients of activations, recomputation"
            loss.backward()
    finally:
        torch.set_autocast_enabled("cuda", before)
    parts = dict(tracker.at_peak)
    forward = parts.pop("activations", 0)
    # What the forward pass leaves for backward, and what more of it was alive at the peak.
    return {"activations": min(forward, kept), "passing activations": max(forward - kept, 0), **parts}, kept


def _inputs(batch: BatchShape) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs of the model and labels [rows, tokens].

    Rows are padded on the right and need no mask; packed ones have the mask [rows, 1, tokens, tokens] that transformers
    makes of their positions.
    """
    shape = (batch.rows, batch.tokens)
    inputs = {"input_ids": torch.empty(shape, dtype=torch.long)}
    if batch.packed:
        inputs["attention_mask"] = torch.empty(batch.rows, 1, batch.tokens, batch.tokens, dtype=torch.bool)
        inputs["position_ids"] = torch.empty(shape, dtype=torch.long)
    return inputs, torch.full(shape, IGNORED)


def _loss(
    model: Any,
    base: Any,
    inputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    batch: BatchShape,
    tracker: Tracker,
    in_chunks: bool,
) -> torch.Tensor:
    """The mean loss as `TokenLoss` computes it, for `batch.supervised` tokens that no data chooses."""
    from glmspectra.tuning.training.token_loss import linear_cross_entropy

    count = max(min(batch.supervised, batch.rows * (batch.tokens - 1)), 1)
    rows, positions, targets = (torch.empty(count, dtype=torch.long) for _ in range(3))
    tracker.known |= {tensor.untyped_storage()._cdata for tensor in (rows, positions, targets)}
    head = base.get_output_embeddings()
    if in_chunks:

        def losses(hidden: torch.Tensor) -> torch.Tensor:
            with tracker.labelled("logits and loss"):
                chosen = hidden[rows, positions]
                half = torch.is_autocast_enabled("cuda") or head.weight.dtype != torch.float32
                # Half-precision logits are worked on in their place by a kernel, which allocates nothing.
                in_place = (lambda *_: None) if half else None
                nll, _ = linear_cross_entropy(chosen, head.weight, head.bias, targets, in_place)
                return nll[None, :, None]

        head.forward = losses
        try:
            mean: torch.Tensor = model(**inputs, use_cache=False).logits.mean()
            return mean
        finally:
            del head.forward
    logits = model(**inputs, use_cache=False).logits
    with tracker.labelled("logits and loss"):
        return nn.functional.cross_entropy(logits[rows, positions].float(), targets)
