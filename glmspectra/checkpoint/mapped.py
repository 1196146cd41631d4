"""Pages of memory-mapped files: asked for ahead of use, given back after it.

A mapped tensor costs no anonymous memory, but the pages that were touched count as resident until they are
given back. The mappings here are private and never written to, so dropping a page loses nothing: touched
again, it is read again.
"""

import ctypes
import mmap
import sys

import torch

_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
if _libc is not None:
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def prefetch(tensor: torch.Tensor) -> None:
    """Tell the system that a mapped tensor is about to be read, so that reading ahead begins."""
    _advise(tensor, _WILLNEED, inwards=False)


def release(tensor: torch.Tensor) -> None:
    """Give a mapped tensor's pages back. The tensor stays valid; pages shared with its neighbours stay."""
    _advise(tensor, _DONTNEED, inwards=True)


def _advise(tensor: torch.Tensor, advice: int | None, inwards: bool) -> None:
    if _libc is None or advice is None or tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    storage = tensor.untyped_storage()
    # Of a strided view the whole span is taken, from its first to past its last element.
    span = (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1) * tensor.element_size()
    start = tensor.data_ptr()
    stop = min(start + span, storage.data_ptr() + storage.nbytes())
    page = mmap.PAGESIZE
    if inwards:
        start, stop = -(-start // page) * page, stop // page * page
    else:
        start, stop = start // page * page, -(-stop // page) * page
    if stop > start:
        _libc.madvise(start, stop - start, advice)  # advice only: a refusal changes nothing
