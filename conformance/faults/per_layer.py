"""Faults of what layers have of their own: keys and values of another layer, an embedding of each
token, a factor of the stream, experts beside the MLP (Gemma 4)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import attention, block, called_with, edited, exposed, original

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.families.base import Family
    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


def _own(subject: LensModel) -> Family:
    return subject.family.of(_LAYER)


def _inside(subject: LensModel, path: str) -> Any:
    """What lies at a path of a layer's block: HuggingFace's, inside a bridge's."""
    found = original(block(subject, _LAYER))
    for name in path.split("."):
        found = original(getattr(found, name))
    return found


@contextlib.contextmanager
def _unnormed(subject: LensModel) -> Iterator[None]:
    """The norm of values returns what it is given."""
    norm = original(attention(subject, _LAYER).v_norm)
    handle = norm.register_forward_hook(lambda _, args, __: args[0])
    with contextlib.closing(_Closing(handle)):
        yield


class _Closing:
    def __init__(self, handle: Any) -> None:
        self.close = handle.remove


def _late(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every token has the embedding of the token before it."""
    stream, embedding, *rest = args
    return (stream, embedding.roll(1, dims=1), *rest), kwargs


def _reader(subject: LensModel) -> int | None:
    """The first layer that reads another's keys and values."""
    layers = range(subject.dims.n_layers)
    return next((i for i in layers if subject.family.of(i).kv_from is not None), None)


def _values_of_next(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shared = kwargs["shared_kv_states"]
    rolled = {kind: (keys, values.roll(1, dims=1)) for kind, (keys, values) in shared.items()}
    return args, {**kwargs, "shared_kv_states": rolled}


def _where_read(subject: LensModel) -> tuple[str, ...]:
    return (f"blocks.{_reader(subject)}.attn.z",)


def _reads_several(subject: LensModel) -> bool:
    layer = _reader(subject)
    return layer is not None and subject.dims.of(layer).n_kv_heads > 1


def _factor(subject: LensModel) -> torch.Tensor:
    found: torch.Tensor = _inside(subject, str(_own(subject).stream_scale))
    return found


@contextlib.contextmanager
def _without_experts(subject: LensModel) -> Iterator[None]:
    module = _inside(subject, str(_own(subject).experts))
    handle = module.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    with contextlib.closing(_Closing(handle)):
        yield


FAULTS: tuple[Fault, ...] = (
    Fault(
        "v_norm_skipped",
        "attention variant",
        "values are mixed without their norm",
        _unnormed,
        exactly(f"{_PRE}.attn.v_normed"),
        lambda s: _own(s).v_norm is not None and exposed(s, f"{_PRE}.attn.v_normed"),
    ),
    Fault(
        "shared_values_of_next_head",
        "grouped heads",
        "a layer reads another's keys, and the values of the head beside each",
        lambda s: called_with(block(s, _reader(s) or 0), _values_of_next),
        _where_read,
        _reads_several,
    ),
    Fault(
        "layer_embedding_late",
        "wiring",
        "a layer is given the embedding of the token before",
        lambda s: called_with(block(s, _LAYER), _late),
        exactly(f"{_PRE}.per_layer_out"),
        lambda s: _own(s).per_layer is not None,
    ),
    Fault(
        "layer_embedding_missing",
        "wiring",
        "a layer adds no embedding of its tokens",
        lambda s: edited(s, f"{_PRE}.per_layer_out", torch.zeros_like),
        exactly(f"{_PRE}.per_layer_out"),
        lambda s: _own(s).per_layer is not None and exposed(s, f"{_PRE}.per_layer_out"),
    ),
    Fault(
        "stream_scale_missing",
        "wiring",
        "a block's sum is not multiplied by the layer's factor",
        lambda s: edited(s, f"{_PRE}.resid_post", lambda t: t / _factor(s)),
        exactly(f"{_PRE}.resid_post"),
        lambda s: _own(s).stream_scale is not None,
    ),
    Fault(
        "experts_beside_dropped",
        "wiring",
        "only the MLP beside the experts is added",
        _without_experts,
        exactly(f"{_PRE}.mlp_out"),
        lambda s: _own(s).moe and _own(s).has_neurons,
    ),
)
