"""Pages of memory-mapped files: asked for ahead of use, given back after it.

A mapped tensor costs no anonymous memory, but the pages that were touched count as resident until they are given back.
The mappings here are private and never written to, so dropping a page loses nothing: touched again, it is read again.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
if _libc is not None:
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def prefetch(tensor: torch.Tensor) -> None:
    """Tell the system that a mapped tensor is about to be read, so that reading ahead begins."""
    start, stop = _span(tensor)
    page = mmap.PAGESIZE
    _advise(start // page * page, -(-stop // page) * page, _WILLNEED)


def release(tensor: torch.Tensor) -> None:
    """Give a mapped tensor's pages back. The tensor stays valid; pages shared with its neighbours stay.

    A tensor that is not mapped from a file is left alone: the same call would turn its pages to zeros.
    """
    start, stop = _span(tensor)
    page = mmap.PAGESIZE
    start, stop = -(-start // page) * page, stop // page * page
    if stop > start and _is_mapped_file(start, stop):
        _advise(start, stop, _DONTNEED)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and past-the-last address of a tensor on the CPU, of a strided one from its first to its last number."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return 0, 0
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()


def _is_mapped_file(start: int, stop: int) -> bool:
    """Whether all of the range lies in one mapping of a file, by what the system lists for this process."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
                first, last = (int(address, 16) for address in addresses.split("-"))
                if first <= start < last:
                    return stop <= last and inode != "0"
    except OSError:
        pass
    return False


def _advise(start: int, stop: int, advice: int | None) -> None:
    if _libc is not None and advice is not None and stop > start:
        _libc.madvise(start, stop - start, advice)  # advice only: a refusal changes nothing
