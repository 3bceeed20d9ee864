"""Promoted float64: every request for a narrower float becomes a request for float64.

``model.double()`` is not float64: HuggingFace and TransformerLens ask for float32 inside
norms, softmax, rotary tables and masks, which leaves about 1e-6 of noise in a model that was
merely cast (``docs/verdicts.md``). :class:`Promoted` removes those requests, so that two
right implementations agree to about 1e-15 and a wrong formula has nowhere to hide.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator

NARROW: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)
# Constructors that take their dtype from data rather than from an argument. (torch.from_numpy
# does so too, but asks no mode: what it makes is promoted at its first cast.)
_FROM_DATA = (torch.as_tensor, torch.tensor, torch.asarray)
# ``x.type("torch.FloatTensor")``: the only place where torch takes a dtype as text.
_NARROW_NAMES = frozenset({"torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"})


#: What can name a dtype among a call's arguments.
_NAMES = frozenset({torch.dtype, str})


def _widen(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    if isinstance(value, str):
        return torch.float64 if value in _NARROW_NAMES else value
    return value


def _grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The expert product where torch has no kernel: in float64, of unaligned rows.

    Rows of ``a`` [rows, k] are sorted by expert and ``offs`` [expert] says where each expert's
    end; ``b`` is [expert, k, n].
    """
    if offs is None or a.ndim != 2 or b.ndim != 3:
        raise NotImplementedError("grouped_mm: only [rows, k] x [expert, k, n]")
    out = a.new_zeros(a.shape[0], b.shape[-1])
    start = 0
    for expert, end in enumerate(offs.tolist()):
        out[start:end] = a[start:end] @ b[expert]
        start = end
    return out if bias is None else out + bias


class Unaligned(TorchFunctionMode):
    """While active, expert products of any size can be formed in bfloat16 and float16.

    Torch's kernel for several experts at once takes rows of whole 16 bytes only: real models have
    no others, twins do.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch._grouped_mm and any(map(_unaligned, args[:2])):
            return _grouped_mm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _unaligned(matrix: torch.Tensor) -> bool:
    return any(step != 1 and step * matrix.itemsize % 16 for step in matrix.stride())


_SPECIAL = frozenset({*_CASTS, *_FROM_DATA, torch._grouped_mm})


class Promoted(TorchFunctionMode):
    """While active, float32, bfloat16 and float16 requests give float64 on this thread."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Every torch call passes here, attribute reads too, and nearly all of them as they are.
        if not kwargs and func not in _SPECIAL and _NAMES.isdisjoint(map(type, args)):
            return func(*args)
        kwargs = kwargs or {}
        if func in _CASTS:
            return args[0].to(torch.float64)
        if func is torch._grouped_mm and args[0].dtype == torch.float64:
            return _grouped_mm(*args, **kwargs)
        args = tuple(_widen(a) for a in args)
        kwargs = {name: _widen(value) for name, value in kwargs.items()}
        result = func(*args, **kwargs)
        if func in _FROM_DATA and result.dtype in NARROW:
            return result.to(torch.float64)
        return result


@functools.cache
def settle_kernels(dtype: torch.dtype) -> bool:
    """Leave oneDNN out, in this process, if its kernels for a dtype kill it here.

    On some machines its products in bfloat16 end in an illegal instruction: the processor offers
    AMX, and the system or the hypervisor does not. So a child tries first.

    Returns:
        Whether the kernels are used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child does not use
        child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()  # its death is no news
            signal.alarm(_LONGEST_TRIAL_S)
            _try_kernels(dtype)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGILL:
        # torch.backends.mkldnn.flags also sets a GPU's flag, and warns where there is no GPU.
        torch._C._set_mkldnn_enabled(False)
        return False
    return True


#: A child that hangs tells nothing, and must not keep its parent.
_LONGEST_TRIAL_S = 20


def _try_kernels(dtype: torch.dtype) -> None:
    """Products of the kinds that models make, small and large enough for every kernel."""
    torch.set_num_threads(1)
    with torch.no_grad():
        for rows, inner, columns in ((16, 48, 113), (512, 64, 256), (96, 512, 512)):
            left, right = torch.ones(2, rows, inner), torch.ones(inner, columns)
            left, right = left.to(dtype), right.to(dtype)
            _ = left @ right
            _ = torch.bmm(left, right.expand(2, -1, -1))
            _ = torch.nn.functional.linear(left, right.T.contiguous(), right[0])
        _ = torch.nn.functional.conv1d(left, torch.ones(96, 1, 4, dtype=dtype), groups=96)


@contextlib.contextmanager
def promoted(dtype: torch.dtype) -> Iterator[None]:
    """Load and run under this context: promotion for float64; other dtypes are left alone."""
    if dtype != torch.float64:
        with Unaligned() if dtype != torch.float32 else contextlib.nullcontext():
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Promoted():
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def as_stored() -> Iterator[None]:
    """Inside promotion, read or write a file, whose numbers keep their dtype."""
    with torch._C.DisableTorchFunction():
        yield
