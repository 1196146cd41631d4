"""How many bytes are alive, and how many were at most, while operations run."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING = 512  # CUDA's caching allocator hands out multiples of it


def rounded(nbytes: int) -> int:
    """Bytes that the caching allocator counts for a block of `nbytes`."""
    return -(-nbytes // ROUNDING) * ROUNDING


class Tracker(TorchDispatchMode):
    """Adds up the storages that operations make while it is entered, until they are freed.

    `known` tensors (weights, inputs) are not counted. `label` names what is being made; `peak` is the largest sum of
    bytes and `at_peak` how it fell to labels then.
    """

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.live: Counter[str] = Counter()
        self.total = 0
        self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self.label = "activations"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # what autograd asks of tensors without data most, and makes nothing
            of = getattr(args[0], "fake_device", None)
            return func(*args) if of is None else of
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._see(result)
        elif result is not None:
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self._see(value)
        return result

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.sizes:
            return
        size = rounded(storage.nbytes())
        self.sizes[key] = size
        self.live[self.label] += size
        self.total += size
        weakref.finalize(storage, self._forget, key, self.label)
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.live.copy()

    def _forget(self, key: int, label: str) -> None:
        size = self.sizes.pop(key)
        self.live[label] -= size
        self.total -= size
