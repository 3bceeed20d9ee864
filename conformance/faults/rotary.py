"""Faults of rotary positions."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault, at
from conformance.faults.inject import (
    attention,
    attribute,
    edited,
    exposed,
    original,
    watched,
)
from conformance.faults.tables import Retable, based, retabled, rotary_changed, shifted, turned_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.implementations.lens_model import LensModel

_LAYER = 1


def rotary(subject: LensModel) -> bool:
    """Whether positions enter by rotation."""
    return subject.family.of(_LAYER).rotary


def shows_rotation(subject: LensModel) -> bool:
    """Whether the port shows rotated queries and keys."""
    return rotary(subject) and exposed(subject, f"blocks.{_LAYER}.attn.rot_q")


def rotary_sites(subject: LensModel) -> tuple[str, ...]:
    """Where a rotation shows first: in what a norm makes of it, where a norm reads it."""
    normed = ("attn.q_normed",) if subject.family.of(_LAYER).qk_norm_rotated else ()
    return at("attn.rot_q", *normed, "attn.scores", "attn.pattern")(subject)


def _by_difference(subject: LensModel) -> bool:
    """Whether only differences of positions matter: not if a norm weighs what is rotated."""
    own = subject.family.of(_LAYER)
    if any(other.kv_from == _LAYER for other in subject.family.every):
        return False  # its keys meet queries of a layer whose positions are right
    if not own.rotary or not own.qk_norm_rotated:
        return own.rotary
    norm = getattr(original(attention(subject, _LAYER)), str(own.q_norm).rpartition(".")[2], None)
    return getattr(norm, "weight", None) is None


def hf_config(subject: LensModel) -> Any | None:
    """The HuggingFace config that a bridge holds; None for HookedTransformer."""
    return getattr(original(attention(subject, _LAYER)), "config", None)


def _table(change: Retable) -> Any:
    return lambda subject: rotary_changed(subject, _LAYER, change)


def _thetas(subject: LensModel) -> tuple[float, float] | None:
    """(this layer's base, the other kind of layer's) where a model has two."""
    cfg = hf_config(subject)
    if cfg is None:
        cfg = subject.model.cfg
        local = getattr(cfg, "rotary_base_local", None)
        if not local or local == cfg.rotary_base:
            return None
        windowed = subject.dims.windows[_LAYER] is not None
        return (local, cfg.rotary_base) if windowed else (cfg.rotary_base, local)
    parameters = getattr(cfg, "rope_parameters", None)
    kinds = getattr(cfg, "layer_types", None)
    if not isinstance(parameters, dict) or not kinds or kinds[_LAYER] not in parameters:
        return None
    own = kinds[_LAYER]
    other = next((k for k in parameters if k != own), None)
    if other is None or parameters[other]["rope_theta"] == parameters[own]["rope_theta"]:
        return None
    return parameters[own]["rope_theta"], parameters[other]["rope_theta"]


def _swapped_base(subject: LensModel) -> Any:
    found = _thetas(subject)
    assert found is not None
    return rotary_changed(subject, _LAYER, based(found[1] / found[0]))


def _scaled(subject: LensModel) -> float | None:
    """The base, if frequencies are scaled (linear, llama3, yarn)."""
    cfg = hf_config(subject)
    if cfg is None:
        cfg = subject.model.cfg
        scaled = getattr(cfg, "use_NTK_by_parts_rope", False) or getattr(
            cfg, "use_yarn_rope", False
        )
        # Scaling may spare local layers (Olmo 3).
        spared = getattr(cfg, "yarn_global_attn_only", False)
        local = spared and subject.dims.windows[_LAYER] is not None
        return float(cfg.rotary_base) if scaled and not local else None
    parameters = getattr(cfg, "rope_parameters", None) or {}
    if parameters.get("rope_type", "default") == "default" or "rope_theta" not in parameters:
        return None
    return float(parameters["rope_theta"])


def _unscaled(subject: LensModel) -> Any:
    base = _scaled(subject)
    assert base is not None

    def change(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def angles(p: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
            pairs = f.shape[-1]
            return p * base ** (-torch.arange(pairs, dtype=f.dtype) / pairs)

        cos, sin = retabled(cos, sin, angles)
        radius = (cos.double() ** 2 + sin.double() ** 2).sqrt().amax()
        return (cos / radius).to(cos.dtype), (sin / radius).to(sin.dtype)

    return rotary_changed(subject, _LAYER, change)


def _one_pair_less(p: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    kept = torch.ones_like(f)
    kept[0] = 0
    return p * f * kept


def _pairing(subject: LensModel) -> Any:
    """Turn pairs of neighbours where halves are right, and the other way round."""
    module = attention(subject, _LAYER)
    if hasattr(module, "cfg"):
        cfg = copy.copy(module.cfg)
        cfg.rotary_adjacent_pairs = not cfg.rotary_adjacent_pairs
        return attribute(module, "cfg", cfg)
    cfg = copy.copy(module.config)
    if getattr(cfg, "rotary_interleaved_cos_sin", False):
        cfg.rotary_interleaved_cos_sin = False
    else:
        cfg.rotary_adjacent_pairs = not getattr(cfg, "rotary_adjacent_pairs", False)
    return attribute(module, "config", cfg)


def _can_pair(subject: LensModel) -> bool:
    module = attention(subject, _LAYER)
    if hasattr(module, "cfg"):
        return rotary(subject)
    if not shows_rotation(subject) or subject.family.of(_LAYER).kv_latent:
        return False  # latent attention rotates by HuggingFace's own function
    names = ("rotary_adjacent_pairs", "rotary_interleaved_cos_sin")
    return any(hasattr(module.config, n) for n in names)


@contextlib.contextmanager
def _not_rotated(subject: LensModel, letter: str) -> Iterator[None]:
    """Skip the rotation: what came before it goes on."""
    normed = f"blocks.{_LAYER}.attn.{letter}_normed"
    first = exposed(subject, normed) and not subject.family.of(_LAYER).qk_norm_rotated
    before = normed if first else f"blocks.{_LAYER}.attn.{letter}"
    with (
        watched(subject, before) as box,
        edited(
            subject,
            f"blocks.{_LAYER}.attn.rot_{letter}",
            lambda t: _like(box.get(), t),
        ),
    ):
        yield


def _like(value: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """``value`` in the layout of ``shown``; norms fire on [batch, head, pos, d_head]."""
    if value.ndim == 3:
        return value.reshape(shown.shape)
    return value if value.shape == shown.shape else value.transpose(1, 2)


def _rotations(letter: str) -> Callable[[LensModel], tuple[str, ...]]:
    """Where a rotation shows first: in what a norm makes of it, where a norm reads it."""

    def sites(subject: LensModel) -> tuple[str, ...]:
        after = [f"{letter}_normed"] if subject.family.of(_LAYER).qk_norm_rotated else []
        return tuple(f"blocks.{_LAYER}.attn.{name}" for name in (f"rot_{letter}", *after))

    return sites


def _can_skip(subject: LensModel) -> bool:
    own = subject.family.of(_LAYER)
    normed = own.qk_norm is not None
    return (
        shows_rotation(subject)
        and exposed(subject, f"blocks.{_LAYER}.attn.k")
        and own.architecture != "OlmoForCausalLM"
        and (not normed or exposed(subject, f"blocks.{_LAYER}.attn.k_normed"))
    )


@contextlib.contextmanager
def _queries_late(subject: LensModel) -> Iterator[None]:
    """Queries rotated one position further than keys."""
    seen: dict[str, torch.Tensor] = {}

    def keep(c: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen["cos"], seen["sin"] = c, s
        return c, s

    with (
        rotary_changed(subject, _LAYER, keep),
        edited(
            subject,
            f"blocks.{_LAYER}.attn.rot_q",
            lambda q: turned_once(q, seen["cos"], seen["sin"], _adjacent(subject)),
        ),
    ):
        yield


def _adjacent(subject: LensModel) -> bool:
    cfg = getattr(attention(subject, _LAYER), "cfg", None)
    if cfg is not None:
        return bool(cfg.rotary_adjacent_pairs)
    return subject.family.of(_LAYER).rotary_adjacent


def _fault(
    name: str, what: str, apply: Any, applies: Any = rotary, sites: Any = rotary_sites
) -> Fault:
    return Fault(name, "rotary", what, apply, sites, applies)


FAULTS: tuple[Fault, ...] = (
    _fault("rope_base_0.01%", "rotary base 0.01 % too large", _table(based(1.0001))),
    _fault("rope_base_1%", "rotary base 1 % too large", _table(based(1.01))),
    _fault("rope_base_tenfold", "rotary base of another order", _table(based(10.0))),
    _fault(
        "rope_partial_dim",
        "one pair of dimensions is not rotated",
        _table(lambda c, s: retabled(c, s, _one_pair_less)),
    ),
    _fault(
        "rope_adjacent_pairs", "neighbours paired instead of halves, or back", _pairing, _can_pair
    ),
    _fault("rope_reversed", "rotation in the other direction", _table(lambda c, s: (c, -s))),
    _fault(
        "rope_linear_scaling",
        "positions divided by 2",
        _table(lambda c, s: retabled(c, s, lambda p, f: p * f / 2)),
    ),
    _fault(
        "rope_scaling_dropped",
        "llama3 or yarn scaling of frequencies ignored",
        _unscaled,
        lambda s: rotary(s) and _scaled(s) is not None,
    ),
    _fault(
        "rope_queries_late",
        "queries one position further than keys",
        _queries_late,
        shows_rotation,
        at("attn.rot_q"),
    ),
    _fault(
        "rope_stretched",
        "positions grow by 1.001 a token",
        _table(lambda c, s: retabled(c, s, lambda p, f: p * f * 1.001)),
    ),
    _fault(
        "rope_local_global_swapped",
        "a layer's base is that of the other kind of layer",
        _swapped_base,
        lambda s: rotary(s) and _thetas(s) is not None,
    ),
    _fault(
        "rope_keys_not_rotated",
        "keys are not rotated",
        lambda s: _not_rotated(s, "k"),
        _can_skip,
        _rotations("k"),
    ),
    _fault(
        "rope_queries_not_rotated",
        "queries are not rotated",
        lambda s: _not_rotated(s, "q"),
        _can_skip,
        _rotations("q"),
    ),
)


EQUIVALENTS: tuple[Fault, ...] = (
    Fault(
        "positions_shifted",
        "rotary",
        "every position seven later: only differences matter under rotary",
        _table(shifted(7)),
        applies=_by_difference,
        kind="equivalent",
        may_differ=("attn.rot_q", "attn.rot_k", "attn.q_normed", "attn.k_normed"),
    ),
)
