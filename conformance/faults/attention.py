"""Faults of attention: scale, heads, masks, caps, biases, norms of queries and keys."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from conformance.bounds import MASKED_BELOW
from conformance.faults.base import Fault, at
from conformance.faults.inject import (
    AttentionMode,
    attention,
    attention_calls,
    attribute,
    delegates,
    edited,
    editing,
    named,
    original,
    scores_changed,
    watched_input,
)

if TYPE_CHECKING:
    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_SCORES = at("attn.scores", "attn.pattern")
Scores = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def alibi(subject: LensModel) -> bool:
    """Whether positions enter as a bias of the scores."""
    return subject.family.of(_LAYER).alibi


def _cap(subject: LensModel) -> float | None:
    module = attention(subject, _LAYER)
    cap = getattr(original(module), "attn_logit_softcapping", None)
    if cap is None and hasattr(module, "cfg"):
        cap = module.cfg.attn_scores_soft_cap
    return float(cap) if cap and cap > 0 else None


def _capped(subject: LensModel, cap: float | None) -> Any:
    module = attention(subject, _LAYER)
    if hasattr(module, "cfg"):
        cfg = copy.copy(module.cfg)
        cfg.attn_scores_soft_cap = -1.0 if cap is None else cap
        return attribute(module, "cfg", cfg)
    return attribute(original(module), "attn_logit_softcapping", cap)


def _unmasked(change: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    return lambda s, _: torch.where(s > MASKED_BELOW, change(s), s)


def _scores(change: Scores, layer: Callable[[LensModel], int] | int = _LAYER) -> Any:
    def apply(subject: LensModel) -> Any:
        where = layer if isinstance(layer, int) else layer(subject)
        return scores_changed(subject, where, change)

    return apply


def _bare(subject: LensModel) -> bool:
    """Whether scores are products times a scale, and a mask."""
    return _cap(subject) is None and not alibi(subject)


# --- heads ------------------------------------------------------------------------------------


def _grouped(subject: LensModel) -> bool:
    return subject.dims.group > 1 and subject.dims.n_kv_heads > 1 and not delegates(subject)


def _tiled(subject: LensModel) -> Any:
    """Keys and values repeated as a, b, a, b instead of a, a, b, b."""
    group, heads = subject.dims.group, subject.dims.n_heads

    def products(_: int, first: torch.Tensor, second: torch.Tensor) -> tuple[Any, Any]:
        if second.shape[1] != heads:
            return first, second
        return first, second[:, ::group].repeat(1, group, 1, 1)

    return attention_calls(subject, _LAYER, AttentionMode(products=products))


def _heads_swapped(z: torch.Tensor) -> torch.Tensor:
    order = list(range(z.shape[2]))
    order[0], order[-1] = order[-1], order[0]
    return z[:, :, order]


# --- masks ------------------------------------------------------------------------------------


def _positions(s: torch.Tensor) -> torch.Tensor:
    """query - key, [query, key]."""
    n = torch.arange(s.shape[-1], device=s.device)
    return n[-s.shape[-2] :, None] - n[None, :]


def _hidden(s: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mask more, but never a query's every key."""
    masked = s.masked_fill(where, torch.finfo(s.dtype).min)
    nothing = (masked <= MASKED_BELOW).all(-1, keepdim=True)
    return torch.where(nothing, s, masked)


def _shown(
    s: torch.Tensor, raw: torch.Tensor | None, where: torch.Tensor, cap: float | None
) -> torch.Tensor:
    """Mask less: a masked entry gets the score it would have without the mask.

    Args:
        raw: products of queries and keys, without scale or cap.
        cap: the softcap of the scores, if there is one.
    """
    assert raw is not None
    raw = raw.reshape(s.shape)
    open_ = (s > MASKED_BELOW) & (raw.abs() > 1e-3)
    # The scale, from the smallest score that no mask forbids: a cap bends it least.
    at_ = torch.where(open_, raw.abs(), torch.full_like(raw, torch.inf)).flatten().argmin()
    seen = s.flatten()[at_]
    scale = (seen if cap is None else cap * torch.atanh(seen / cap)) / raw.flatten()[at_]
    score = raw * scale
    if cap is not None:
        score = cap * torch.tanh(score / cap)
    return torch.where((s <= MASKED_BELOW) & where, score, s)


def _reveals(shown: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[LensModel], Any]:
    """Mask less, where ``shown`` of query - key says so."""

    def apply(subject: LensModel) -> Any:
        cap = _cap(subject)
        return scores_changed(
            subject, _LAYER, lambda s, raw: _shown(s, raw, shown(_positions(s)).expand_as(s), cap)
        )

    return apply


def _causal(subject: LensModel) -> bool:
    """Whether tokens of this layer see none after them."""
    return subject.family.causal and subject.family.encoder <= _LAYER


def _causal_narrow(s: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return _hidden(s, (_positions(s) == 0).expand_as(s))


def _windows(subject: LensModel) -> dict[int, int]:
    """Layers with a window that the prompts outgrow, of whose attention the port has a module."""
    d = subject.dims
    reach = min(d.n_ctx, max(512, max((w or 0) for w in d.windows) * 9 // 8))
    return {
        i: w
        for i, w in enumerate(d.windows)
        if w is not None and w < reach and attention(subject, i) is not None
    }


def _windowed(subject: LensModel) -> int:
    """The layer to break: the first with a window, after the first layer if there is one."""
    layers = [i for i in _windows(subject) if i > 0] or list(_windows(subject))
    return layers[0]


def _global(subject: LensModel) -> int | None:
    if not _windows(subject):
        return None
    return next((i for i, w in enumerate(subject.dims.windows) if w is None), None)


def _window_reveals(
    shown: Callable[[torch.Tensor, int], torch.Tensor],
) -> Callable[[LensModel], Any]:
    """Mask less in a windowed layer, where ``shown`` of query - key and the width says so."""

    def apply(subject: LensModel) -> Any:
        layer, cap = _windowed(subject), _cap(subject)
        width = _windows(subject)[layer]

        def change(s: torch.Tensor, raw: torch.Tensor | None) -> torch.Tensor:
            return _shown(s, raw, shown(_positions(s), width).expand_as(s), cap)

        return scores_changed(subject, layer, change)

    return apply


def _window_narrow(subject: LensModel) -> Any:
    layer = _windowed(subject)
    width = _windows(subject)[layer]
    return scores_changed(
        subject, layer, lambda s, _: _hidden(s, (_positions(s) == width - 1).expand_as(s))
    )


def _parity(subject: LensModel) -> Any:
    layer = _global(subject)
    assert layer is not None
    width = min(_windows(subject).values())
    return scores_changed(
        subject, layer, lambda s, _: _hidden(s, (_positions(s) >= width).expand_as(s))
    )


def _parity_site(subject: LensModel) -> tuple[str, ...]:
    layer = _global(subject)
    assert layer is not None
    return at("attn.scores", "attn.pattern", layer=layer)(subject)


# --- variants ---------------------------------------------------------------------------------


def _no_sinks(subject: LensModel) -> Any:
    module = attention(subject, _LAYER)
    if hasattr(module, "cfg"):
        cfg = copy.copy(module.cfg)
        cfg.use_attention_sinks = False
        return attribute(module, "cfg", cfg)
    return attribute(original(module), "sinks", None)


def _slopes_reversed(subject: LensModel) -> Any:
    slopes = _slopes(subject.dims.n_heads)

    def change(s: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        delta = (slopes.flip(0) - slopes).to(s.dtype)[:, None, None] * -_positions(s)
        return s + delta.reshape(s.shape[-3:]) if s.ndim == 3 else s + delta

    return scores_changed(subject, _LAYER, _masked_kept(change))


def _slopes(heads: int) -> torch.Tensor:
    """ALiBi's slopes for a number of heads that is a power of two (Press et al., 2021)."""
    return torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])


def _slopes_regular(subject: LensModel) -> Any:
    """The formula for a power of two, used for another number of heads."""
    heads = subject.dims.n_heads
    below = 2 ** int(math.log2(heads))
    right = torch.cat([_slopes(below), _slopes(2 * below)[::2][: heads - below]])
    delta = _slopes(heads) - right

    def change(s: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        bias = delta.to(s.dtype)[:, None, None] * -_positions(s)
        return s + bias.reshape(s.shape[-3:]) if s.ndim == 3 else s + bias

    return scores_changed(subject, _LAYER, _masked_kept(change))


def _masked_kept(change: Scores) -> Scores:
    return lambda s, raw: torch.where(s > MASKED_BELOW, change(s, raw), s)


def _clip(subject: LensModel) -> float | None:
    module = attention(subject, _LAYER)
    config = module.cfg if hasattr(module, "cfg") else getattr(original(module), "config", None)
    found = getattr(config, "clip_qkv", None)
    return None if found is None else float(found)


def _no_clip(subject: LensModel) -> Any:
    module = attention(subject, _LAYER)
    owner, name = (module, "cfg") if hasattr(module, "cfg") else (original(module), "config")
    config = copy.copy(getattr(owner, name))
    config.clip_qkv = None
    return attribute(owner, name, config)


def _qk_norm(subject: LensModel, letter: str) -> Any | None:
    if subject.family.of(_LAYER).qk_norm is None:
        return None
    return getattr(attention(subject, _LAYER), f"{letter}_norm", None)


@contextlib.contextmanager
def _qk_norm_skipped(subject: LensModel, letter: str) -> Iterator[None]:
    norm = _qk_norm(subject, letter)
    assert norm is not None
    target = getattr(norm, "hook_out", norm)  # a bridge's own hook, so that the hook shows it too
    with watched_input(norm) as box:
        handle = target.register_forward_hook(lambda _, __, out: box.get().reshape(out.shape))
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def _qk_norm_off(subject: LensModel, letter: str) -> Iterator[None]:
    norm = _qk_norm(subject, letter)
    assert norm is not None
    target = getattr(norm, "hook_out", norm)
    handle = target.register_forward_hook(lambda _, __, out: out * 1.01)
    try:
        yield
    finally:
        handle.remove()


def bias(subject: LensModel, name: str) -> torch.Tensor | None:
    """A bias of the layer by its TransformerLens name, if it has one that is not zero."""
    found = named(subject)
    stem = f"blocks.{_LAYER}."
    value = found.get(stem + name)
    if value is None:
        value = found.get(stem + name.replace("b_", "_b_"))
    return value if value is not None and bool((value != 0).any()) else None


def _no_bias(name: str, site: str) -> Callable[[LensModel], Any]:
    def apply(subject: LensModel) -> Any:
        value = bias(subject, name)
        assert value is not None

        def change(t: torch.Tensor) -> torch.Tensor:
            b = value
            if b.ndim == 2 and t.ndim == 4 and b.shape[0] != t.shape[2]:
                b = b[:: b.shape[0] // t.shape[2]]
            return t - (b.reshape(t.shape[2:]) if t.ndim == 4 else b.flatten())

        return edited(subject, f"blocks.{_LAYER}.{site}", change)

    return apply


def _has_bias(name: str) -> Callable[[LensModel], bool]:
    return lambda s: bias(s, name) is not None


def _attn_out(subject: LensModel) -> str:
    return "attn.out" if subject.family.of(_LAYER).ln1_post else "attn_out"


def _flows(subject: LensModel) -> bool:
    """Whether a pattern changed at its hook reaches the output."""
    return not delegates(subject)


_generator = torch.Generator()


def _dropout(t: torch.Tensor) -> torch.Tensor:
    _generator.manual_seed(0)
    keep = torch.rand(t.shape, generator=_generator) > 0.1
    return t * keep.to(t.dtype) / 0.9


FAULTS: tuple[Fault, ...] = (
    Fault(
        "attn_scale_dropped",
        "attention scale",
        "scores not divided by sqrt(d_head)",
        lambda s: scores_changed(s, _LAYER, _unmasked(lambda t: t * s.dims.d_head**0.5)),
        _SCORES,
        _bare,
    ),
    Fault(
        "attn_scale_0.1%",
        "attention scale",
        "scores 0.1 % too large",
        _scores(_unmasked(lambda t: t * 1.001)),
        _SCORES,
        _bare,
    ),
    Fault(
        "attn_scale_inverse_layer",
        "attention scale",
        "scores divided by the layer's number too",
        _scores(_unmasked(lambda t: t / (_LAYER + 1))),
        _SCORES,
        _bare,
    ),
    Fault(
        "heads_tiled",
        "grouped heads",
        "key/value heads tiled instead of repeated",
        _tiled,
        at("attn.scores"),
        _grouped,
    ),
    Fault(
        "heads_swapped",
        "grouped heads",
        "the outputs of two heads swapped",
        editing(f"blocks.{_LAYER}.attn.z", _heads_swapped),
        at("attn.z"),
    ),
    Fault(
        "causal_one_too_wide",
        "mask",
        "a query sees the next token",
        _reveals(lambda distance: distance == -1),
        lambda s: (f"blocks.{_LAYER}.attn.pattern",),
        lambda s: not alibi(s) and _causal(s),
    ),
    Fault(
        "causal_where_none_is",
        "mask",
        "an encoder's token does not see those after it",
        _scores(lambda s, _: _hidden(s, (_positions(s) < 0).expand_as(s))),
        _SCORES,
        lambda s: not _causal(s),
    ),
    Fault(
        "causal_one_too_narrow",
        "mask",
        "a query does not see its own token",
        _scores(_causal_narrow),
        _SCORES,
    ),
    Fault(
        "padding_ignored",
        "padding",
        "padding is attended to",
        # Keys that are padding: masked, although not in the future.
        _reveals(lambda distance: distance >= 0),
        lambda s: (f"blocks.{_LAYER}.attn.pattern",),
        # A decoder with an encoder sees its own padding; an image has none.
        lambda s: (
            not (alibi(s) or s.family.reads)
            and s.dims.windows[_LAYER] is None
            and not s.family.of(_LAYER).cross
        ),
    ),
    Fault(
        "window_one_too_wide",
        "mask",
        "the sliding window keeps one key too many",
        _window_reveals(lambda distance, width: distance == width),
        lambda s: (f"blocks.{_windowed(s)}.attn.pattern",),
        lambda s: bool(_windows(s)),
    ),
    Fault(
        "window_one_too_narrow",
        "mask",
        "the sliding window keeps one key too few",
        _window_narrow,
        lambda s: at("attn.scores", "attn.pattern", layer=_windowed(s))(s),
        lambda s: bool(_windows(s)),
    ),
    Fault(
        "window_absent",
        "mask",
        "a local layer attends globally",
        _window_reveals(lambda distance, width: distance >= width),
        lambda s: (f"blocks.{_windowed(s)}.attn.pattern",),
        lambda s: bool(_windows(s)),
    ),
    Fault(
        "window_parity",
        "mask",
        "a global layer is given the window",
        _parity,
        _parity_site,
        lambda s: _global(s) is not None,
    ),
    Fault(
        "softcap_missing",
        "softcap",
        "scores are not capped",
        lambda s: _capped(s, None),
        _SCORES,
        lambda s: _cap(s) is not None,
    ),
    Fault(
        "softcap_off",
        "softcap",
        "scores capped at 1.7 % more",
        lambda s: _capped(s, (_cap(s) or 0) * 30.5 / 30),
        _SCORES,
        lambda s: _cap(s) is not None,
    ),
    Fault(
        "sinks_ignored",
        "attention variant",
        "attention sinks left out of the softmax",
        _no_sinks,
        at("attn.pattern"),
        lambda s: s.family.of(_LAYER).sinks is not None,
    ),
    Fault(
        "alibi_slopes",
        "attention variant",
        "alibi slopes in reverse order",
        _slopes_reversed,
        _SCORES,
        alibi,
    ),
    Fault(
        "alibi_slopes_regular",
        "attention variant",
        "alibi slopes of one formula where the heads are no power of two",
        _slopes_regular,
        _SCORES,
        lambda s: alibi(s) and s.dims.n_heads & (s.dims.n_heads - 1) != 0,
    ),
    Fault(
        "q_norm_skipped",
        "attention variant",
        "queries are not normalised",
        lambda s: _qk_norm_skipped(s, "q"),
        at("attn.q_normed", "attn.rot_q"),
        lambda s: _qk_norm(s, "q") is not None,
    ),
    Fault(
        "k_norm_1%",
        "attention variant",
        "normalised keys 1 % too large",
        lambda s: _qk_norm_off(s, "k"),
        at("attn.k_normed", "attn.rot_k"),
        lambda s: _qk_norm(s, "k") is not None,
    ),
    Fault(
        "clip_qkv_ignored",
        "attention variant",
        "queries, keys and values are not clipped",
        _no_clip,
        at("attn.rot_q"),
        lambda s: _clip(s) is not None,
    ),
    Fault(
        "bias_q_skipped",
        "attention variant",
        "the bias of queries is left out",
        _no_bias("attn.b_Q", "attn.q"),
        at("attn.q"),
        _has_bias("attn.b_Q"),
    ),
    Fault(
        "bias_k_skipped",
        "attention variant",
        "the bias of keys is left out",
        _no_bias("attn.b_K", "attn.k"),
        at("attn.k"),
        _has_bias("attn.b_K"),
    ),
    Fault(
        "bias_v_skipped",
        "attention variant",
        "the bias of values is left out",
        _no_bias("attn.b_V", "attn.v"),
        at("attn.v"),
        _has_bias("attn.b_V"),
    ),
    Fault(
        "bias_o_skipped",
        "attention variant",
        "the bias of the output projection is left out",
        lambda s: _no_bias("attn.b_O", _attn_out(s))(s),
        lambda s: at(_attn_out(s))(s),
        _has_bias("attn.b_O"),
    ),
    Fault(
        "values_of_next_head",
        "grouped heads",
        "each head reads its neighbour's values",
        editing(f"blocks.{_LAYER}.attn.v", lambda t: t.roll(1, dims=2)),
        at("attn.v"),
        lambda s: s.dims.n_kv_heads > 1,
    ),
    Fault(
        "pattern_unnormalised",
        "attention variant",
        "rows of the pattern sum to 0.999",
        editing(f"blocks.{_LAYER}.attn.pattern", lambda t: t * 0.999),
        at("attn.pattern"),
        _flows,
    ),
    Fault(
        "dropout_on",
        "behaviour",
        "dropout of the pattern left on",
        editing(f"blocks.{_LAYER}.attn.pattern", _dropout),
        at("attn.pattern"),
        _flows,
    ),
)
