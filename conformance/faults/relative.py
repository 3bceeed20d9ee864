"""Faults of T5's relative positions: learned scores of distances in buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.faults.base import Fault
from conformance.faults.inject import attribute, original

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.implementations.lens_model import LensModel


def _first(subject: LensModel) -> int:
    """The first layer that has the table, for itself and those above it; 0 if none has."""
    layers = range(subject.dims.n_layers)
    return next((i for i in layers if subject.family.of(i).relative), 0)


def _decoder(subject: LensModel) -> int:
    return subject.family.encoder


def _attention(subject: LensModel, layer: int) -> Any:
    return original(subject.attention(layer))


def _has(layer: Callable[[LensModel], int]) -> Callable[[LensModel], bool]:
    def applies(subject: LensModel) -> bool:
        where = layer(subject)
        if subject.family.of(where).relative is None:
            return False
        return hasattr(_attention(subject, where), "compute_bias")

    return applies


def _none(layer: Callable[[LensModel], int]) -> Callable[[LensModel], Any]:
    def apply(subject: LensModel) -> Any:
        module = _attention(subject, layer(subject))
        right = module.compute_bias
        return attribute(module, "compute_bias", lambda *args, **more: right(*args, **more) * 0)

    return apply


def _one_way(subject: LensModel) -> Any:
    module = _attention(subject, _first(subject))
    right = module._relative_position_bucket

    def bucket(positions: Any, **more: Any) -> Any:
        return right(positions, **{**more, "bidirectional": not more["bidirectional"]})

    return attribute(module, "_relative_position_bucket", bucket)


def _doubled(subject: LensModel) -> Any:
    module = _attention(subject, _first(subject))
    far = module.relative_attention_max_distance
    return attribute(module, "relative_attention_max_distance", 2 * far)


def _fault(
    name: str, what: str, apply: Any, layer: Callable[[LensModel], int], applies: Any = None
) -> Fault:
    has = _has(layer)

    def sites(subject: LensModel) -> tuple[str, ...]:
        # Attention is HuggingFace's own here: a port that shows its scores makes them anew.
        at = f"blocks.{layer(subject)}.attn"
        return (f"{at}.scores", f"{at}.pattern")

    return Fault(
        name,
        "positions",
        what,
        apply,
        sites,
        has if applies is None else lambda s: has(s) and applies(s),
    )


FAULTS: tuple[Fault, ...] = (
    _fault(
        "relative_bias_missing",
        "relative positions add nothing to the first stack's scores",
        _none(_first),
        _first,
    ),
    _fault(
        "relative_bias_of_decoder_missing",
        "relative positions add nothing to the decoder's scores",
        _none(_decoder),
        _decoder,
        lambda s: _decoder(s) != _first(s),
    ),
    _fault(
        "relative_buckets_one_way",
        "an encoder's distances are put in a decoder's buckets: all later tokens in one",
        _one_way,
        _first,
        lambda s: not s.family.of(_first(s)).causal,
    ),
    _fault(
        "relative_distance_doubled",
        "relative positions are told apart up to twice the distance",
        _doubled,
        _first,
    ),
)
