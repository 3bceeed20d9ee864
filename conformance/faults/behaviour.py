"""Faults of hooks and of precision."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.attention import alibi
from conformance.faults.base import Fault, at, exactly
from conformance.faults.inject import (
    AttentionMode,
    attention_calls,
    delegates,
    edited,
    exposed,
    point,
    watched_input,
)
from conformance.faults.norms import norm
from conformance.faults.rotary import rotary, rotary_sites
from conformance.faults.tables import rotary_changed
from conformance.faults.wiring import final, headed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


# --- hooks ------------------------------------------------------------------------------------


def _named(subject: LensModel, kind: str) -> str:
    return subject.expected_hooks()[0][f"{_PRE}.{kind}"]


@contextlib.contextmanager
def _resolving(subject: LensModel, kind: str, name: str) -> Iterator[None]:
    """The hook of a site resolves to another of the library's hook points."""
    right = subject.expected_hooks

    def wrong() -> tuple[dict[str, str], dict[str, str]]:
        sites, hidden = right()
        return {**sites, f"{_PRE}.{kind}": name}, hidden

    subject.expected_hooks = wrong  # type: ignore[method-assign]
    try:
        yield
    finally:
        del subject.expected_hooks


def _shows(kind: str, other: str) -> Callable[[LensModel], Any]:
    return lambda s: _resolving(s, kind, _named(s, other))


def _both(*kinds: str) -> Callable[[LensModel], bool]:
    def applies(subject: LensModel) -> bool:
        by_module = subject.module_sites()
        names = [f"{_PRE}.{k}" for k in kinds]
        return all(exposed(subject, n) and n not in by_module for n in names)

    return applies


@contextlib.contextmanager
def _fires_twice(subject: LensModel, kind: str) -> Iterator[None]:
    module = point(subject, f"{_PRE}.{kind}")
    hooks = module._forward_hooks

    def again(_: Any, args: Any, output: Any) -> None:
        for hook in list(hooks.values()):
            if hook is not again:
                hook(module, args, output)

    handle = module.register_forward_hook(again)
    try:
        yield
    finally:
        handle.remove()


def _hook(name: str, what: str, apply: Any, site: str, applies: Any) -> Fault:
    return Fault(name, "hook", what, apply, exactly(f"{_PRE}.{site}"), applies)


_HOOKS: tuple[Fault, ...] = (
    _hook(
        "hook_v_shows_k",
        "hook_v shows keys",
        _shows("attn.v", "attn.k"),
        "attn.v",
        _both("attn.v", "attn.k"),
    ),
    _hook(
        "hook_pattern_shows_scores",
        "hook_pattern shows scores",
        _shows("attn.pattern", "attn.scores"),
        "attn.pattern",
        _both("attn.pattern", "attn.scores"),
    ),
    _hook(
        "hook_resid_pre_shows_mid",
        "hook_resid_pre shows resid_mid",
        _shows("resid_pre", "resid_mid"),
        "resid_pre",
        _both("resid_pre", "resid_mid"),
    ),
    _hook(
        "hook_rot_q_shows_rot_k",
        "hook_rot_q shows rotated keys",
        _shows("attn.rot_q", "attn.rot_k"),
        "attn.rot_q",
        _both("attn.rot_q", "attn.rot_k"),
    ),
    _hook(
        "hook_post_shows_pre",
        "the MLP's hook_post shows hook_pre",
        _shows("mlp.post", "mlp.pre"),
        "mlp.post",
        _both("mlp.post", "mlp.pre"),
    ),
    _hook(
        "hook_mlp_out_shows_resid",
        "hook_mlp_out shows the residual stream",
        _shows("mlp_out", "resid_post"),
        "mlp_out",
        _both("mlp_out", "resid_post"),
    ),
    _hook(
        "hook_never_fires",
        "hook_z never fires",
        lambda s: _resolving(s, "attn.z", "nowhere"),
        "attn.z",
        _both("attn.z"),
    ),
    _hook(
        "hook_fires_twice",
        "hook_resid_post fires twice",
        lambda s: _fires_twice(s, "resid_post"),
        "resid_post",
        _both("resid_post"),
    ),
)

# --- precision --------------------------------------------------------------------------------


#: Dtypes that hold more digits than bfloat16.
WIDER: frozenset[str] = frozenset({"float32", "float16"})


def coarse(t: torch.Tensor) -> torch.Tensor:
    """Through bfloat16 and back; in promoted float64 nothing happens."""
    return t.to(torch.bfloat16).to(t.dtype)


@contextlib.contextmanager
def _norm_in_bfloat16(subject: LensModel) -> Iterator[None]:
    """The norm of a rounded input."""
    component = f"{_PRE}.ln1"
    module = norm(subject, component)
    assert module is not None
    with (
        watched_input(module) as box,
        edited(subject, component, lambda y: _through(y, box.get())),
    ):
        yield


def _through(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``y`` with the relative error that rounding ``x`` brings."""
    x = x.reshape(y.shape)
    ratio = coarse(x) / torch.where(x == 0, torch.ones_like(x), x)
    return torch.where(x == 0, y, y * ratio)


def _precision(name: str, what: str, apply: Any, sites: Any, applies: Any, **more: Any) -> Fault:
    return Fault(
        name, "precision", what, apply, sites, applies, kind="precision", dtypes=WIDER, **more
    )


_PRECISION: tuple[Fault, ...] = (
    _precision(
        "norm_in_bfloat16",
        "a norm computed in bfloat16",
        _norm_in_bfloat16,
        exactly(f"{_PRE}.ln1"),
        lambda s: exposed(s, f"{_PRE}.ln1"),
    ),
    _precision(
        "softmax_in_bfloat16",
        "the attention softmax computed in bfloat16",
        lambda s: attention_calls(
            s, _LAYER, AttentionMode(softmax=lambda x: coarse(torch.softmax(coarse(x), dim=-1)))
        ),
        at("attn.pattern"),
        lambda s: not delegates(s),
    ),
    _precision(
        "scores_in_bfloat16",
        "scores rounded to bfloat16",
        lambda s: edited(s, f"{_PRE}.attn.scores", coarse),
        at("attn.scores"),
        lambda s: exposed(s, f"{_PRE}.attn.scores") and not alibi(s),
    ),
    _precision(
        "rotary_table_in_bfloat16",
        "the rotary table in bfloat16",
        lambda s: rotary_changed(s, _LAYER, _coarse_table(s)),
        rotary_sites,
        rotary,
    ),
    _precision(
        "residual_in_bfloat16",
        "the residual stream rounded to bfloat16",
        lambda s: edited(s, f"{_PRE}.resid_post", coarse),
        at("resid_post"),
        lambda _: True,
    ),
    _precision(
        "mlp_in_bfloat16",
        "the MLP's output rounded to bfloat16",
        lambda s: edited(s, f"{_PRE}.mlp_out", coarse),
        at("mlp_out"),
        lambda s: exposed(s, f"{_PRE}.mlp_out"),
    ),
    _precision(
        "logits_in_bfloat16",
        "the unembedding in bfloat16",
        lambda s: final(s, coarse),
        exactly("logits"),
        headed,
        named_by="logits",
    ),
)


def _coarse_table(subject: LensModel) -> Any:
    # A buffer is changed before the forward pass, outside promotion.
    if subject.dtype == torch.float64:
        return lambda c, s: (c, s)
    return lambda c, s: (coarse(c), coarse(s))


FAULTS: tuple[Fault, ...] = (*_HOOKS, *_PRECISION)
