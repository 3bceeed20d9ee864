"""The catalogue of known-wrong ports, and of equivalent changes that must not be flagged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.faults import (
    attention,
    backward,
    batches,
    behaviour,
    crossing,
    decoding,
    detection,
    edits,
    equivalents,
    hook_points,
    lenses,
    mlps,
    norms,
    per_layer,
    processing,
    recurrence,
    relative,
    rotary,
    state,
    text,
    two_stacks,
    upcasts,
    views,
    weights,
    wiring,
)
from conformance.faults.base import SOURCES, Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Every entry by its name, in the order in which they are proven.
CATALOGUE: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        *rotary.FAULTS,
        *attention.FAULTS,
        *relative.FAULTS,
        *norms.FAULTS,
        *mlps.FAULTS,
        *recurrence.FAULTS,
        *per_layer.FAULTS,
        *wiring.FAULTS,
        *crossing.FAULTS,
        *weights.FAULTS,
        *behaviour.FAULTS,
        *upcasts.FAULTS,
        *backward.FAULTS,
        *state.FAULTS,
        *hook_points.FAULTS,
        *edits.FAULTS,
        *views.FAULTS,
        *lenses.FAULTS,
        *detection.FAULTS,
        *two_stacks.FAULTS,
        *processing.FAULTS,
        *batches.FAULTS,
        *decoding.FAULTS,
        *text.FAULTS,
        *rotary.EQUIVALENTS,
        *equivalents.EQUIVALENTS,
    )
}

__all__ = ["CATALOGUE", "SOURCES", "Fault"]
