"""One description made from another: layers with something in another's place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conformance.families.base import Family

_OF_ATTENTION = ("attn", "o", "q", "k", "v", "qkv", "q_norm", "k_norm", "qk_norm", "sinks")
_OF_EXPERTS = ("router", "experts", "expert_layout", "shared", "shared_gate")
#: What a gated MLP's projections are called, in order of gate, up and down.
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def without_attention(fam: Family, mixer: str) -> Family:
    """The same block with a mixer in attention's place."""
    none: dict[str, Any] = dict.fromkeys(_OF_ATTENTION)
    return dataclasses.replace(fam, **none, rotary=False, mixer=mixer)


def gated(mlp: str, names: tuple[str, str, str] = _PROJECTIONS) -> dict[str, Any]:
    """Where a gated MLP keeps its projections; ``mlp`` is relative to the block."""
    paths = (f"{mlp}.{name}" for name in names)
    return {"mlp": mlp, **dict(zip(("gate", "up", "down"), paths, strict=True))}


def dense(fam: Family, names: tuple[str, str, str] = _PROJECTIONS) -> Family:
    """The same block with a gated MLP in the experts' place."""
    none: dict[str, Any] = dict.fromkeys(_OF_EXPERTS)
    assert fam.mlp is not None
    return dataclasses.replace(fam, **none, **gated(fam.mlp, names))


def mixed(fam: Family, kinds: Iterable[str], mixer: str) -> Family:
    """A model whose layers are of attention where their kind says so, of a mixer elsewhere."""
    other = without_attention(fam, mixer)
    layers = tuple(fam if "attention" in k and "linear" not in k else other for k in kinds)
    return dataclasses.replace(fam, layers=layers)
