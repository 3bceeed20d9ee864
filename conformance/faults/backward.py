"""Faults of backpropagation: the forward pass is right, and a gradient is not."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from conformance.faults.base import Fault
from conformance.faults.inject import acts, attends, edited, editing, exposed, watched_input
from conformance.faults.norms import norm, norm_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import torch

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


def _scaled(t: torch.Tensor) -> torch.Tensor:
    """The same value, with half the gradient."""
    return 0.5 * t + (0.5 * t).detach()


@contextlib.contextmanager
def _straight_through(subject: LensModel) -> Iterator[None]:
    """A norm passes gradients through as if it only multiplied, by what it did."""
    module = norm(subject, f"{_PRE}.ln1")
    assert module is not None

    def change(y: torch.Tensor) -> torch.Tensor:
        x = box.get().reshape(y.shape)
        return y.detach() + (x - x.detach())  # the value is y, to the bit

    with watched_input(module) as box, edited(subject, f"{_PRE}.ln1", change):
        yield


@contextlib.contextmanager
def _frozen(subject: LensModel) -> Iterator[None]:
    """The parameters of one layer's attention record no gradient."""
    parameters = list(subject.components()[f"{_PRE}.attn"].parameters())
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, was in zip(parameters, before, strict=True):
            p.requires_grad_(was)


def _last_of_mlp(subject: LensModel) -> tuple[str, ...]:
    """The MLP's weight that gradients reach first."""
    fam = subject.family.of(_LAYER)
    if fam.ln2_post:
        return (f"{_PRE}.ln2_post.w.grad",)
    if fam.experts:
        parts = ("b_gate", "W_gate", "W_in", "W_out")  # of the first that any token uses
        experts = range(subject.dims.n_experts)
        return tuple(f"{_PRE}.mlp.experts.{e}.{w}.grad" for e in experts for w in parts)
    return (f"{_PRE}.mlp.W_out.grad",)


def _last_of_block(subject: LensModel) -> tuple[str, ...]:
    """The weight that gradients reach first in a block: the mixer's, where that is all it has;
    the norm's that ends a post-norm block."""
    fam = subject.family.of(_LAYER)
    if fam.per_layer_out:
        return (f"{_PRE}.{fam.per_layer_out}.weight.grad",)
    if fam.post_norm:
        return (f"{_PRE}.ln2.w.grad",)
    if fam.mlp is not None or fam.mixer is None:
        return _last_of_mlp(subject)
    module = subject.model.original_model.get_submodule(subject.family.at(fam.mixer, _LAYER))
    names = [n.replace("_original_component.", "") for n, _ in module.named_parameters()]
    return tuple(f"{_PRE}.{fam.mixer}.{name}.grad" for name in names)


def _after_attention(subject: LensModel) -> tuple[str, ...]:
    """The weight of attention that gradients reach first: a gate has no place of its own, and
    BERT's module of attention has the norm after it inside."""
    after = norm(subject, f"{_PRE}.ln1") if subject.family.post_norm else None
    weight = None if after is None else norm_weight(after)
    inside = {p.data_ptr() for p in subject.components()[f"{_PRE}.attn"].parameters()}
    if weight is not None and weight.data_ptr() in inside:
        return (f"{_PRE}.ln1.w.grad",)
    gate = subject.family.of(_LAYER).attn_gate
    gates = () if gate is None else (f"{_PRE}.{gate}.weight.grad",)
    return (f"{_PRE}.attn.W_O.grad", *gates, *_unnamed(subject))


def _before_ln1(subject: LensModel) -> tuple[str, ...]:
    """The norm's own weight, or what is before a norm without one."""
    return (f"{_PRE}.ln1.w.grad", f"{_PRE}.resid_pre.grad")


def _before_the_pattern(subject: LensModel) -> tuple[str, ...]:
    found = tuple(f"{_PRE}.attn.{w}.grad" for w in ("q_norm.w", "k_norm.w", "W_Q", "sinks"))
    return (*found, *_unnamed(subject))


def _unnamed(subject: LensModel) -> tuple[str, ...]:
    """Weights of attention that TransformerLens has no name for, and no order therefore."""
    fam = subject.family.of(_LAYER)
    return tuple(f"{_PRE}.{n}.weight.grad" for n in fam.unnamed if n.startswith(f"{fam.attn}."))


def _fault(
    name: str,
    what: str,
    apply: Callable[[LensModel], AbstractContextManager[Any]],
    sites: Callable[[LensModel], tuple[str, ...]],
    applies: Callable[[LensModel], bool] = lambda _: True,
) -> Fault:
    return Fault(
        name,
        "behaviour",
        what,
        apply,
        sites,
        applies,
        needs="gradients",
    )


FAULTS: tuple[Fault, ...] = (
    _fault(
        "gradients_detached",
        "the graph is cut at resid_post",
        editing(f"{_PRE}.resid_post", lambda t: t.detach()),
        _last_of_block,
    ),
    _fault(
        "gradient_halved",
        "the MLP's output passes on half of its gradient",
        editing(f"{_PRE}.mlp_out", _scaled),
        _last_of_mlp,
        lambda s: exposed(s, f"{_PRE}.mlp_out"),
    ),
    _fault(
        "gradient_straight_through",
        "a norm's gradient is that of its input",
        _straight_through,
        _before_ln1,
        lambda s: exposed(s, f"{_PRE}.ln1") and norm(s, f"{_PRE}.ln1") is not None,
    ),
    _fault(
        "pattern_detached",
        "the attention pattern is computed without recording",
        editing(f"{_PRE}.attn.pattern", lambda t: t.detach()),
        _before_the_pattern,
        lambda s: acts(s, f"{_PRE}.attn.pattern"),
    ),
    _fault(
        "attention_frozen",
        "attention's weights record no gradient",
        _frozen,
        _after_attention,
        attends,
    ),
)
