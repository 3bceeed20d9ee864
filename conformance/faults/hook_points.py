"""Faults of hook points that a forward pass without hooks does not show."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import (
    attention,
    attribute,
    edited,
    exposed,
    forks,
    point,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_SITE = f"blocks.{_LAYER}.resid_post"
_START = f"blocks.{_LAYER}.resid_pre"
#: The same tensor, where the stream's norm ends a block.
_SAME = (f"blocks.{_LAYER}.ln2",)


@contextlib.contextmanager
def _adding(subject: LensModel, add: Callable[..., Any], site: str = _SITE) -> Iterator[None]:
    """Let ``add(right, user, direction)`` stand for a hook point's ``add_hook``."""
    module: Any = point(subject, site)
    right = module.add_hook

    def wrong(user: Any, dir: str = "fwd", **kwargs: Any) -> Any:
        return add(lambda hook: right(hook, dir=dir, **kwargs), user, dir)

    with attribute(module, "add_hook", wrong):
        yield


@contextlib.contextmanager
def _left_behind(subject: LensModel) -> Iterator[None]:
    """With every hook comes one that stays."""
    module: Any = point(subject, _SITE)
    kept: list[Any] = []

    def add(right: Any, user: Any, direction: str) -> Any:
        kept.append(module.register_forward_hook(lambda *_: None))
        return right(user)

    with _adding(subject, add):
        yield
    for handle in kept:
        handle.remove()


def _twice(right: Any, user: Any, direction: str) -> Any:
    """A forward hook is called twice."""

    def hook(tensor: torch.Tensor, hook: Any) -> Any:
        user(tensor, hook=hook)
        return user(tensor, hook=hook)

    return right(hook if direction == "fwd" else user)


def _flat(right: Any, user: Any, direction: str) -> Any:
    """A forward hook sees batch and position in one."""

    def hook(tensor: torch.Tensor, hook: Any) -> Any:
        result = user(tensor.flatten(0, 1), hook=hook)
        return None if result is None else result.reshape(tensor.shape)

    return right(hook if direction == "fwd" else user)


def _rounded(right: Any, user: Any, direction: str) -> Any:
    """What a forward hook returns loses its last bits."""

    def hook(tensor: torch.Tensor, hook: Any) -> Any:
        result = user(tensor, hook=hook)
        return None if result is None else result * (1 + 1e-13)

    return right(hook if direction == "fwd" else user)


def _doubled(right: Any, user: Any, direction: str) -> Any:
    """A backward hook sees twice the gradient."""

    def hook(tensor: torch.Tensor, hook: Any) -> Any:
        return user(2 * tensor, hook=hook)

    return right(user if direction == "fwd" else hook)


@contextlib.contextmanager
def _overwritten(subject: LensModel) -> Iterator[None]:
    """What a hook was shown is overwritten once nothing reads it any more."""

    def wipe(t: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            box.get().detach().zero_()
        return t

    with watched(subject, _SITE) as box, edited(subject, "ln_final", wipe):
        yield


@contextlib.contextmanager
def _late(subject: LensModel) -> Iterator[None]:
    """A hook of the beginning of a block is called at its end."""
    waiting: list[Callable[[], Any]] = []

    def add(right: Any, user: Any, direction: str) -> Any:
        def hook(tensor: torch.Tensor, hook: Any) -> None:
            waiting.append(lambda: user(tensor, hook=hook))

        return right(hook if direction == "fwd" else user)

    def call(t: torch.Tensor) -> torch.Tensor:
        for later in waiting:
            later()
        waiting.clear()
        return t

    with edited(subject, _SITE, call), _adding(subject, add, _START):
        yield


def _between(subject: LensModel) -> bool:
    """Whether the port shows anything between the two, by which "late" can be told."""
    shown = {s for s in subject.expected_hooks()[0] if s.startswith(f"blocks.{_LAYER}.")}
    return bool(shown - {_START, _SITE})


@contextlib.contextmanager
def _next_position(subject: LensModel) -> Iterator[None]:
    """A cache of one position holds the next one's, at one hook."""
    model: Any = subject.model
    name, right = subject.expected_hooks()[0][_SITE], model.run_with_cache

    def wrong(*args: Any, pos_slice: Any = None, **kwargs: Any) -> Any:
        result, cache = right(*args, pos_slice=pos_slice, **kwargs)
        if pos_slice is not None and name in cache:
            _, other = right(*args, pos_slice=pos_slice + 1, **kwargs)
            cache.cache_dict[name] = other[name]
        return result, cache

    with attribute(model, "run_with_cache", wrong):
        yield


@contextlib.contextmanager
def _gradient_doubled(subject: LensModel) -> Iterator[None]:
    """A cache with gradients holds twice what flows back, at one hook."""
    model: Any = subject.model
    name, right = subject.expected_hooks()[0][_SITE] + "_grad", model.run_with_cache

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result, cache = right(*args, **kwargs)
        if name in cache:
            cache.cache_dict[name] = 2 * cache.cache_dict[name]
        return result, cache

    with attribute(model, "run_with_cache", wrong):
        yield


@contextlib.contextmanager
def _fork_normed(subject: LensModel) -> Iterator[None]:
    """The residual stream is not kept for attention: what its heads read is the norm's output."""
    module = attention(subject, _LAYER)

    def forget(own: Any, _: Any) -> None:
        own._captured_pre_ln_residual = None

    handle = module.register_forward_pre_hook(forget)
    try:
        yield
    finally:
        handle.remove()


def _forks(subject: LensModel) -> bool:
    own = hasattr(attention(subject, _LAYER), "_captured_pre_ln_residual")
    before = subject.family.of(_LAYER).ln1 is not None  # else its output is the stream itself
    return own and before and forks(subject, _LAYER)


def _fault(
    name: str,
    what: str,
    apply: Callable[[LensModel], AbstractContextManager[Any]],
    site: str = _SITE,
    applies: Callable[[LensModel], bool] = lambda _: True,
) -> Fault:
    return Fault(
        name,
        "hook",
        what,
        apply,
        lambda s: (site, *_SAME) if s.family.post_norm and site == _SITE else (site,),
        lambda s: exposed(s, site) and site not in s.module_sites() and applies(s),
        needs="hooks",
    )


FAULTS: tuple[Fault, ...] = (
    _fault("hook_left_behind", "a hook outlives its context", _left_behind),
    _fault("hook_called_twice", "a hook is called twice", lambda s: _adding(s, _twice)),
    _fault("hook_shown_flat", "a hook sees [batch pos, d_model]", lambda s: _adding(s, _flat)),
    _fault("hook_rounds", "what a hook returns is rounded", lambda s: _adding(s, _rounded)),
    _fault("hook_gradient_doubled", "a gradient shown twofold", lambda s: _adding(s, _doubled)),
    _fault(
        "hook_overwritten",
        "what was shown is overwritten later",
        _overwritten,
        applies=lambda s: exposed(s, "ln_final"),
    ),
    _fault("hook_late", "a hook fires late", _late, _START, _between),
    Fault(
        "fork_after_norm",
        "hook",
        "hook_q_input and its like show the norm's output",
        _fork_normed,
        exactly(f"blocks.{_LAYER}.hook_q_input"),
        _forks,
        needs="hooks",
    ),
    _fault("hook_cache_next_position", "pos_slice takes the next position", _next_position),
    _fault("hook_cache_gradient_doubled", "incl_bwd keeps twice a gradient", _gradient_doubled),
)
