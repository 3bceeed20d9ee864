"""Gives memory back to the system: what is freed should count as free.

The C library keeps what is freed below 32 MB (glibc's largest ``M_MMAP_THRESHOLD``) for later, in
pieces: a process that has once held a long prompt's activations would keep their size to its end,
beside whatever comes then (``docs/footprint.md``).
"""

from __future__ import annotations

import ctypes
import functools
import gc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: Checkpoints of fewer bytes leave nothing behind that is worth the time.
TIDIED = 16 << 20


def worth_tidying(checkpoint: Path) -> bool:
    """Whether a checkpoint's weights are large enough for :func:`give_back` to matter."""
    return sum(f.stat().st_size for f in checkpoint.rglob("*.safetensors")) >= TIDIED


def give_back() -> None:
    """Free what only cycles hold, and return free memory to the system, where it can be told to."""
    gc.collect()  # a bridge is full of cycles: nothing else frees it before the next
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any | None:
    """glibc's ``malloc_trim``; None elsewhere."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
