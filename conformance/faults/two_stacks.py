"""Faults of what is read off an encoder and a decoder; the forward pass is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.faults.base import Fault, at
from conformance.faults.inject import attribute, exposed
from conformance.faults.views import shown

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel


def _heads_reversed(subject: LensModel) -> AbstractContextManager[None]:
    owner = type(subject.attention(0))
    right = owner.W_O.fget
    return attribute(owner, "W_O", property(lambda self: right(self).flip(0)))


def _end_of_encoder(subject: LensModel) -> str:
    return f"blocks.{subject.family.encoder - 1}.resid_post"


def _decoder_pattern(subject: LensModel) -> str:
    return f"blocks.{subject.family.encoder}.attn.pattern"


def _two(subject: LensModel) -> bool:
    return subject.family.encoder > 0


FAULTS: tuple[Fault, ...] = (
    Fault(
        "output_weights_of_stacks_reversed",
        "accessor",
        "W_O of an encoder's and a decoder's blocks gives the heads in reverse order",
        _heads_reversed,
        at("attn.out", "attn_out", layer=0),
        _two,
        needs="lens",
    ),
    Fault(
        "encoder_end_shown_scaled",
        "hook",
        "the encoder's last stream is shown a millionth too large: no longer its parts' sum",
        lambda s: shown(s, _end_of_encoder(s), lambda t: t * (1 + 1e-6)),
        lambda s: (_end_of_encoder(s),),
        lambda s: _two(s) and not s.family.post_norm and exposed(s, _end_of_encoder(s)),
        needs="lens",
    ),
    Fault(
        "decoder_patterns_of_next_head",
        "hook",
        "hook_pattern of a decoder gives each head the pattern of the one before",
        lambda s: shown(s, _decoder_pattern(s), lambda p: p.roll(1, dims=1)),
        lambda s: (_decoder_pattern(s),),
        lambda s: _two(s) and exposed(s, _decoder_pattern(s)),
        needs="heads",
    ),
)
