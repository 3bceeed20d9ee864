"""Promoted float64: every request for a narrower float becomes a request for float64.

``model.double()`` is not float64: HuggingFace and TransformerLens ask for float32 inside
norms, softmax, rotary tables and masks, which leaves about 1e-6 of noise in a model that was
merely cast (``docs/verdicts.md``). :class:`Promoted` removes those requests, so that two
right implementations agree to about 1e-15 and a wrong formula has nowhere to hide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NARROW: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)
# Constructors that take their dtype from data rather than from an argument.
_FROM_DATA = (torch.from_numpy, torch.as_tensor, torch.tensor, torch.asarray)
# ``x.type("torch.FloatTensor")``: the only place where torch takes a dtype as text.
_NARROW_NAMES = frozenset({"torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"})
_NARROW_TENSOR_TYPES = (torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor)


def _widen(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    if isinstance(value, str) and value in _NARROW_NAMES:
        return torch.float64
    if value in _NARROW_TENSOR_TYPES if isinstance(value, type) else False:
        return torch.float64
    if type(value) is torch.Tensor and value.dtype in NARROW:
        # A float32 tensor made outside the mode (a table built at import time, say).
        return value
    return value


class Promoted(TorchFunctionMode):
    """While active, float32, bfloat16 and float16 requests give float64 on this thread."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS:
            return args[0].to(torch.float64)
        args = tuple(_widen(a) for a in args)
        kwargs = {name: _widen(value) for name, value in kwargs.items()}
        result = func(*args, **kwargs)
        if func in _FROM_DATA and result.dtype in NARROW:
            return result.to(torch.float64)
        return result


@contextlib.contextmanager
def promoted(dtype: torch.dtype) -> Iterator[None]:
    """Load and run under this context: promotion for float64, nothing for other dtypes."""
    if dtype != torch.float64:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Promoted():
            yield
    finally:
        torch.set_default_dtype(before)
