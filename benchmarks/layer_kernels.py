"""The fused kernels of a training step beside torch's operations and liger-kernel's, each with its bound by bytes.

    python benchmarks/layer_kernels.py                # CUDA, bf16, 8 x 512 tokens of ChatGLM2-6B's shape, a minute

One line for each: milliseconds of forward and backward together (median, cache emptied before each), the milliseconds
that its bytes take at the rate of a device-to-device copy, and the error of output and gradient against float64.
"""

import argparse
from collections.abc import Callable

import torch
from torch.nn import functional as F

from glmspectra.chatglm2 import ChatGLMConfig, layer_kernels
from glmspectra.chatglm2.layers import RotaryEmbedding, _SwiGLU, rotate

TOKENS = (8, 512)
WIDTH, HEADS, GROUPS, SIZE = 13696, 32, 2, 128


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("these kernels run on a CUDA device only")
    flush = torch.empty(1 << 29, dtype=torch.int8, device="cuda")
    target = torch.empty_like(flush)
    rate = 2 * flush.nbytes / milliseconds(lambda: target.copy_(flush), target)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, a copy moves {rate / 1e6:.0f} GB/s")
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*TOKENS, *shape, device="cuda", dtype=torch.bfloat16, generator=generator)

    x, given = drawn(2 * WIDTH), drawn(WIDTH)
    ways: dict[str, Callable] = {
        "swiglu: torch, autograd": plain_swiglu,
        "swiglu: torch, keeping its input alone": _SwiGLU.apply,
        "swiglu: torch.compile": torch.compile(plain_swiglu),
        "swiglu: fused": layer_kernels.swiglu,
    }
    try:
        from liger_kernel.ops import LigerSiLUMulFunction

        ways["swiglu: liger-kernel"] = lambda x: LigerSiLUMulFunction.apply(*x.chunk(2, -1))
    except ImportError:
        print("liger-kernel is not installed")
    exact = reference(plain_swiglu, x, [given])
    for name, way in ways.items():
        line(name, way, x, [given], exact, 8 * x.nbytes / 2 / rate, flush)

    mixed = drawn(HEADS + 2 * GROUPS, SIZE)
    positions = torch.arange(TOKENS[1], device="cuda")[None]
    cos, sin = RotaryEmbedding(ChatGLMConfig())(positions, torch.bfloat16)
    pieces = [drawn(heads, SIZE).transpose(1, 2) for heads in (HEADS, GROUPS, GROUPS)]

    def plain(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        turned = rotate(x[:, :, : HEADS + GROUPS], cos, sin)
        parts = (turned[:, :, :HEADS], turned[:, :, HEADS:], x[:, :, HEADS + GROUPS :])
        return tuple(part.transpose(1, 2) for part in parts)

    exact = reference(plain, mixed, pieces)
    rotary: dict[str, Callable] = {
        "rotary and split: torch": plain,
        "rotary and split: torch.compile": torch.compile(plain),
        "rotary and split: fused": lambda x: layer_kernels.split_rotated(x, cos, sin, HEADS, GROUPS),
    }
    for name, way in rotary.items():
        line(name, way, mixed, pieces, exact, 4 * mixed.nbytes / rate, flush)


def plain_swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def both_ways(way: Callable, x: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    found = way(x)
    found = list(found) if isinstance(found, tuple) else [found]
    return [*found, *torch.autograd.grad(found, x, given)]


def reference(way: Callable, x: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradient in float64, of the first row of the batch."""
    return both_ways(way, x[:1].double(), [part[:1].double() for part in given])


def line(
    name: str, way: Callable, x: torch.Tensor, given: list[torch.Tensor], exact: list[torch.Tensor], bound: float,
    flush: torch.Tensor,
) -> None:  # fmt: skip
    # A copy, since liger-kernel writes its gradients over its inputs.
    found = [part[:1].double() for part in both_ways(way, x.clone(), given)]
    error = max(float((part - due).norm() / due.norm()) for part, due in zip(found, exact, strict=True))
    spare = x.clone()
    taken = milliseconds(lambda: both_ways(way, spare, given), flush)
    print(f"{name:42}{taken:8.3f} ms, bound {bound:.3f}, error {error:.1e}", flush=True)


def milliseconds(call: Callable, flush: torch.Tensor, runs: int = 15) -> float:
    for _ in range(3):
        call()
    pairs = []
    for _ in range(runs):
        flush.zero_()
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        call()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(stop) for start, stop in pairs)[runs // 2]


if __name__ == "__main__":
    main()
