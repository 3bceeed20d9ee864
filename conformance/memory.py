"""How much is held at once; and what is freed goes back to the system, to count as free.

The C library keeps what is freed below 32 MB (glibc's largest ``M_MMAP_THRESHOLD``) for later, in
pieces: a process that has once held a long prompt's activations would keep their size to its end,
beside whatever comes then (``docs/footprint.md``).
"""

from __future__ import annotations

import ctypes
import functools
import gc
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.trace import Trace

#: Logits of one forward pass of edited rows at most, in numbers: 256 MB in float64.
LOGITS = 1 << 25
#: Logits whose softmax is taken at a time, in numbers.
LOGITS_AT_ONCE = 1 << 22
#: Entries of a weight that are moved by roundoff at a time, in numbers.
MOVED_AT_ONCE = 1 << 22
#: A mapped page of a trace stays in the process's memory once it was looked at, though nothing
#: needs it: after so many bytes all are let go of. A tensor still in use comes back by itself.
MAPPED = 64 << 20
#: Checkpoints of fewer bytes leave nothing behind that is worth the time.
TIDIED = 16 << 20

#: Every trace that somebody reads: :class:`~conformance.trace.Trace` enters itself.
OPEN: weakref.WeakSet[Trace] = weakref.WeakSet()


def worth_tidying(checkpoint: Path) -> bool:
    """Whether a checkpoint's weights are large enough for :func:`give_back` to matter."""
    return sum(f.stat().st_size for f in checkpoint.rglob("*.safetensors")) >= TIDIED


def give_back() -> None:
    """Free what only cycles hold, unmap traces, and return free memory to the system."""
    gc.collect()  # a bridge is full of cycles: nothing else frees it before the next
    for trace in tuple(OPEN):
        trace.let_go()
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
