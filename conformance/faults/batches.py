"""Faults of batches: a row that its neighbours, or its padding, get into."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from conformance.faults import attention, wiring
from conformance.faults.base import Fault, exactly
from conformance.faults.inject import editing

if TYPE_CHECKING:
    import torch

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


def _mixed(t: torch.Tensor) -> torch.Tensor:
    """Each row takes a millionth of the row before it; a row alone stays as it is."""
    return t + 1e-6 * (t.roll(1, 0) - t)


def _in_a_batch(fault: Fault) -> Fault:
    """A fault that the check of batches must see too: no token sees padding on its right."""
    part = "padding on the left"
    return replace(fault, name=f"batch_{fault.name}", needs="batching", part=part)


FAULTS: tuple[Fault, ...] = (
    *(
        _in_a_batch(fault)
        for fault in (*attention.FAULTS, *wiring.FAULTS)
        if fault.name in ("padding_ignored", "positions_count_padding")
    ),
    Fault(
        "batch_rows_mixed",
        "padding",
        "a millionth of each row gets into the next",
        editing(f"{_PRE}.resid_post", _mixed),
        exactly(f"{_PRE}.resid_post"),
        needs="batching",
    ),
)
