"""Faults that only the relations between a port's own views show (the check ``patterns``)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from conformance.bounds import MASKED_BELOW
from conformance.faults.base import Fault, at
from conformance.faults.inject import Change, attribute, edited, exposed, point, scores_changed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_ATTN = f"blocks.{_LAYER}.attn"


@contextlib.contextmanager
def shown(subject: LensModel, site: str, change: Change) -> Iterator[None]:
    """A hook shows ``change`` of what the port goes on with; edits there are lost."""
    module: Any = point(subject, site)
    right = module.add_hook

    def wrong(user: Any, *args: Any, **kwargs: Any) -> Any:
        def looks(tensor: torch.Tensor, hook: Any) -> None:
            user(change(tensor.clone()), hook=hook)

        return right(looks, *args, **kwargs)

    with attribute(module, "add_hook", wrong):
        yield


def _leaking(s: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    """exp(-60) of a weight: a millionth of a millionth of what any bound can see."""
    return torch.where(s <= MASKED_BELOW, torch.full_like(s, -60.0), s)


def _unmasked(s: torch.Tensor) -> torch.Tensor:
    return torch.where(s <= MASKED_BELOW, torch.zeros_like(s), s)


def _fault(
    name: str, klass: str, what: str, apply: Any, kinds: tuple[str, ...], applies: Any
) -> Fault:
    needs = "patterns"
    return Fault(name, klass, what, apply, at(*kinds), applies, needs=needs)


def _shows(kind: str) -> Any:
    return lambda s: exposed(s, f"{_ATTN}.{kind}")


FAULTS: tuple[Fault, ...] = (
    _fault(
        "mask_leaks",
        "mask",
        "masked scores are -60 and not minus infinity",
        lambda s: scores_changed(s, _LAYER, _leaking),
        ("attn.scores", "attn.pattern"),
        lambda _: True,
    ),
    _fault(
        "scores_shown_unmasked",
        "hook",
        "hook_attn_scores shows scores before the mask",
        lambda s: shown(s, f"{_ATTN}.scores", _unmasked),
        ("attn.scores",),
        _shows("scores"),
    ),
    _fault(
        "pattern_shown_unnormalised",
        "hook",
        "rows of the pattern shown sum to a millionth too much",
        lambda s: shown(s, f"{_ATTN}.pattern", lambda p: p * (1 + 1e-6)),
        ("attn.pattern",),
        _shows("pattern"),
    ),
    _fault(
        "z_of_another_pattern",
        "hook",
        "z is a millionth more than the pattern's mix of values",
        lambda s: edited(s, f"{_ATTN}.z", lambda z: z * (1 + 1e-6)),
        ("attn.z",),
        _shows("z"),
    ),
)
