"""Faults of state: a run that is not the same again, or leaves something behind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import (
    attends,
    attention,
    edited,
    editing,
    exposed,
    original,
    overwritten,
)
from conformance.faults.norms import norm, norm_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


@contextlib.contextmanager
def _state_leaked(subject: LensModel) -> Iterator[None]:
    """Each run adds a trace of the run before it."""
    memory = [0.0]

    def change(t: torch.Tensor) -> torch.Tensor:
        result = t + memory[0]
        memory[0] = float(t.detach().mean()) * 1e-6
        return result

    with edited(subject, f"{_PRE}.resid_post", change):
        yield


@contextlib.contextmanager
def _weight_drifts(subject: LensModel) -> Iterator[None]:
    """A norm's weight grows by a billionth each time it is used."""
    weight = norm_weight(norm(subject, f"{_PRE}.ln1"))
    assert weight is not None

    def change(t: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight.mul_(1 + 1e-9)
        return t

    with overwritten(weight, lambda w: w), edited(subject, f"{_PRE}.ln1", change):
        yield


def _has_norm_weight(subject: LensModel) -> bool:
    module = norm(subject, f"{_PRE}.ln1")
    return (
        exposed(subject, f"{_PRE}.ln1") and module is not None and norm_weight(module) is not None
    )


@contextlib.contextmanager
def _runs_counted(subject: LensModel) -> Iterator[None]:
    """A buffer counts the runs."""
    module = attention(subject, _LAYER)
    runs = torch.zeros((), dtype=torch.int64)
    module.register_buffer("runs", runs)

    def count(t: torch.Tensor) -> torch.Tensor:
        runs.add_(1)
        return t

    try:
        with edited(subject, f"{_PRE}.resid_post", count):
            yield
    finally:
        del module._buffers["runs"]


@contextlib.contextmanager
def _training(subject: LensModel) -> Iterator[None]:
    """Attention is in training mode."""
    attention(subject, _LAYER).training = True
    try:
        yield
    finally:
        attention(subject, _LAYER).training = False


def _where_training_shows(subject: LensModel) -> tuple[str, ...]:
    """The module itself; and its pattern, where dropout has a rate."""
    config = getattr(original(attention(subject, _LAYER)), "config", None)
    rate = getattr(config, "attention_dropout", 0.0)
    return (f"{_PRE}.attn", f"{_PRE}.attn.pattern") if rate else (f"{_PRE}.attn",)


def _fault(
    name: str,
    what: str,
    apply: Callable[[LensModel], AbstractContextManager[object]],
    site: str,
    applies: Callable[[LensModel], bool] = lambda _: True,
    *,
    appears: bool = False,
) -> Fault:
    return Fault(
        name,
        "behaviour",
        what,
        apply,
        exactly(f"{_PRE}.{site}"),
        applies,
        needs="determinism",
        appears=appears,
    )


FAULTS: tuple[Fault, ...] = (
    _fault("state_leaked", "a run adds a trace of the run before", _state_leaked, "resid_post"),
    _fault(
        "dropout_left_on",
        "dropout is active on the MLP's output",
        editing(f"{_PRE}.mlp_out", lambda t: torch.nn.functional.dropout(t, 0.1, training=True)),
        "mlp_out",
    ),
    _fault(
        "weight_drifts", "a norm's weight changes by use", _weight_drifts, "ln1", _has_norm_weight
    ),
    _fault(
        "runs_counted",
        "a buffer changes by use",
        _runs_counted,
        "attn.runs",
        attends,
        appears=True,
    ),
    Fault(
        "training_left_on",
        "behaviour",
        "attention is in training mode",
        _training,
        _where_training_shows,
        attends,
        needs="determinism",
        appears=True,
    ),
)
