"""Faults of a decoder's attention to its encoder, and of what the encoder hands over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.faults.base import Fault, at
from conformance.faults.inject import Change, edited, exposed
from conformance.faults.norms import norm, skipped

if TYPE_CHECKING:
    import torch

    from conformance.implementations.lens_model import LensModel


def _crossing(subject: LensModel) -> int:
    """The first layer that attends to the encoder."""
    return subject.family.encoder


def _fault(name: str, klass: str, what: str, kind: str, change: Change) -> Fault:
    sites = at(kind, layer=_crossing)
    return Fault(
        name,
        klass,
        what,
        lambda s: edited(s, sites(s)[0], change),
        sites,
        lambda s: s.family.encoder > 0 and exposed(s, sites(s)[0]),
    )


def _next_head(t: torch.Tensor) -> torch.Tensor:
    return t.roll(1, dims=2)


def _late(t: torch.Tensor) -> torch.Tensor:
    return t.roll(1, dims=1)


FAULTS: tuple[Fault, ...] = (
    _fault(
        "cross_attn_out_scaled",
        "wiring",
        "what a decoder reads of its encoder is scaled by 1.01",
        "cross_attn_out",
        lambda t: t * 1.01,
    ),
    _fault(
        "cross_keys_late",
        "wiring",
        "a decoder's keys are those of the encoder's tokens before",
        "cross_attn.k",
        _late,
    ),
    _fault(
        "cross_values_of_next_head",
        "grouped heads",
        "each head that attends to the encoder reads its neighbour's values",
        "cross_attn.v",
        _next_head,
    ),
    Fault(
        "encoder_norm_skipped",
        "norm",
        "the norm after the encoder is left out",
        skipped("ln_encoder"),
        lambda _: ("ln_encoder",),
        lambda s: norm(s, "ln_encoder") is not None and exposed(s, "ln_encoder"),
    ),
)
