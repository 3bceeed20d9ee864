"""Upcasts that a port loses: what HuggingFace computes in float32, left in the model's own dtype.

In float32 they are no faults: there is nothing wider to lose. In promoted float64 nothing happens
either: the function is the same.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from conformance.faults.base import Fault, at, exactly
from conformance.faults.inject import AttentionMode, attention_calls, delegates, exposed
from conformance.faults.norms import norm_by_hand, norm_changed
from conformance.own_error import UPCAST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


def _norm(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    return norm_by_hand(x.to(y.dtype), module)


def _softmax(dtype: torch.dtype) -> Any:
    """By its definition: every step rounds to ``dtype``, as torch's own kernel does not."""

    def by_hand(scores: torch.Tensor) -> torch.Tensor:
        x = scores.to(dtype)
        powers = (x - x.amax(-1, keepdim=True)).exp()
        return (powers / powers.sum(-1, keepdim=True)).to(scores.dtype)

    return by_hand


class _Refused(TorchFunctionMode):
    """While active, requests for float32 give another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].to(self._dtype)
        narrow = {torch.float32: self._dtype}
        args = tuple(narrow.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {
            name: narrow.get(value, value) if isinstance(value, torch.dtype) else value
            for name, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


def _rotary_modules(subject: LensModel) -> list[torch.nn.Module]:
    """HuggingFace's modules that make rotary tables as the model runs."""
    return [m for m in subject.model.modules() if type(m).__name__.endswith("RotaryEmbedding")]


@contextlib.contextmanager
def _rotary_refused(subject: LensModel) -> Iterator[None]:
    """Angles, and not only their cosines and sines, are of the model's dtype."""
    with contextlib.ExitStack() as stack:
        for module in _rotary_modules(subject):
            forward = module.forward

            def refused(*args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
                with _Refused(subject.dtype):
                    return _forward(*args, **kwargs)

            module.forward = refused
            stack.callback(module.__dict__.pop, "forward")
        yield


def _fault(name: str, what: str, apply: Any, sites: Any, applies: Any) -> Fault:
    return Fault(
        name,
        "precision",
        what,
        apply,
        sites,
        applies,
        kind="precision",
        dtypes=UPCAST,
        named_by="components",
    )


FAULTS: tuple[Fault, ...] = (
    _fault(
        "norm_upcast_lost",
        "a norm without its upcast to float32",
        norm_changed(f"{_PRE}.ln1", _norm),
        exactly(f"{_PRE}.ln1"),
        lambda s: exposed(s, f"{_PRE}.ln1"),
    ),
    _fault(
        "softmax_upcast_lost",
        "the attention softmax by its definition, without an upcast",
        lambda s: attention_calls(s, _LAYER, AttentionMode(softmax=_softmax(s.dtype))),
        at("attn.pattern"),
        lambda s: not delegates(s) and exposed(s, f"{_PRE}.attn.scores"),
    ),
    _fault(
        "rotary_upcast_lost",
        "rotary angles of the model's dtype",
        _rotary_refused,
        at("attn.rot_q", "attn.scores", "attn.pattern", layer=0),
        lambda s: bool(_rotary_modules(s)),
    ),
)
