"""Rotary tables: read angles out of cosines and sines, change them, put them back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.inject import (
    attention,
    called_with,
    original,
    overwritten,
)

if TYPE_CHECKING:
    from conformance.implementations.lens_model import LensModel

#: (positions [..., pos, 1], frequencies [pair]) -> new angles [..., pos, pair].
Angles = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: (cos, sin) -> another (cos, sin).
Retable = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

#: Positions are read off the slowest pair; its angle must not have gone round once.
_SLOWEST = -1


def _pairs(table: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, str]:
    """One entry per pair, and how the table repeats them."""
    width = like.shape[-1]
    if width % 2 == 0 and torch.equal(like[..., : width // 2], like[..., width // 2 :]):
        return table[..., : width // 2], "halves"
    if width % 2 == 0 and torch.equal(like[..., ::2], like[..., 1::2]):
        return table[..., ::2], "adjacent"
    return table, "single"


def _spread(table: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "halves":
        return torch.cat([table, table], dim=-1)
    if layout == "adjacent":
        return table.repeat_interleave(2, dim=-1)
    return table


def retabled(
    cos: torch.Tensor, sin: torch.Tensor, angles: Angles
) -> tuple[torch.Tensor, torch.Tensor]:
    """The table with other angles; unchanged where a single position shows no frequency."""
    c, layout = _pairs(cos.double(), sin)
    s, _ = _pairs(sin.double(), sin)
    turns = torch.complex(c, s)
    if turns.shape[-2] < 2:
        return cos, sin
    step = (turns[..., 1:, :] * turns[..., :-1, :].conj()).angle()
    frequencies = step.reshape(-1, step.shape[-1]).amax(0)
    slowest = frequencies[_SLOWEST]
    if float(slowest) <= 0:
        return cos, sin
    positions = (turns[..., _SLOWEST:].angle() / slowest).round()
    frequencies = _sharpened(turns, positions, frequencies)
    turned = torch.polar(turns.abs(), angles(positions, frequencies).expand_as(turns.abs()))
    return (
        _spread(turned.real, layout).to(cos.dtype),
        _spread(turned.imag, layout).to(sin.dtype),
    )


def _sharpened(
    turns: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor
) -> torch.Tensor:
    """Frequencies by the farthest position, where what a step leaves uncertain has added up."""
    over = (turns * torch.polar(torch.ones_like(turns.abs()), -positions * frequencies)).angle()
    farthest = positions.reshape(-1).argmax()
    return frequencies + over.reshape(-1, over.shape[-1])[farthest] / positions.amax()


def shifted(by: int) -> Retable:
    """The table ``by`` positions later.

    Every angle moves by one constant, so that what is imprecise about it is the same for queries
    and keys, and cancels.
    """

    def change(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c, layout = _pairs(cos.double(), sin)
        s, _ = _pairs(sin.double(), sin)
        turns = torch.complex(c, s)
        if turns.shape[-2] < 2:
            return cos, sin
        step = (turns[..., 1:, :] * turns[..., :-1, :].conj()).angle()
        by_angle = by * step.reshape(-1, step.shape[-1]).amax(0)
        turns = turns * torch.polar(torch.ones_like(by_angle), by_angle)
        return (
            _spread(turns.real, layout).to(cos.dtype),
            _spread(turns.imag, layout).to(sin.dtype),
        )

    return change


def turned_once(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, adjacent: bool
) -> torch.Tensor:
    """``x`` [batch, pos, head, d_head], already rotated, moved on by one more position."""
    c, _ = _pairs(cos.double(), sin)
    s, _ = _pairs(sin.double(), sin)
    turns = torch.complex(c, s)
    if turns.shape[-2] < 2:
        return x
    step = (turns[..., 1:, :] * turns[..., :-1, :].conj()).angle()
    f = step.reshape(-1, step.shape[-1]).amax(0)
    n = f.shape[0]
    rotated, rest = x[..., : 2 * n].double(), x[..., 2 * n :]
    if adjacent:
        a, b = rotated[..., ::2], rotated[..., 1::2]
    else:
        a, b = rotated[..., :n], rotated[..., n:]
    new_a, new_b = a * f.cos() - b * f.sin(), b * f.cos() + a * f.sin()
    joined = (
        torch.stack([new_a, new_b], dim=-1).flatten(-2)
        if adjacent
        else torch.cat([new_a, new_b], dim=-1)
    )
    return torch.cat([joined.to(x.dtype), rest], dim=-1)


def _turned(turns: torch.Tensor, change: Retable) -> torch.Tensor:
    """Another table of complex numbers [..., pos, pairs], one for each angle."""
    pairs = turns.shape[-1]
    cos, sin = change(*(torch.cat([part, part], dim=-1) for part in (turns.real, turns.imag)))
    return torch.complex(cos[..., :pairs].contiguous(), sin[..., :pairs].contiguous())


@contextlib.contextmanager
def rotary_changed(subject: LensModel, layer: int, change: Retable) -> Iterator[None]:
    """Another table for one layer, wherever this port keeps it."""
    module = attention(subject, layer)
    buffers = dict(module.named_buffers(recurse=False))
    if "rotary_cos" in buffers:
        cos, sin = change(buffers["rotary_cos"], buffers["rotary_sin"])
        with (
            overwritten(buffers["rotary_cos"], lambda _: cos),
            overwritten(buffers["rotary_sin"], lambda _: sin),
        ):
            yield
        return
    table = getattr(original(module), "embed_positions", None)
    if table is not None:
        half = table.shape[-1] // 2
        cos, sin = change(table[:, half:], table[:, :half])
        with overwritten(table, lambda _: torch.cat([sin, cos], dim=-1)):
            yield
        return

    def replace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = kwargs["position_embeddings"]
        other = _turned(given, change) if isinstance(given, torch.Tensor) else change(*given)
        return args, {**kwargs, "position_embeddings": other}

    with called_with(module, replace):
        yield


def based(factor: float) -> Retable:
    """The table of a base ``factor`` times as large."""

    def angles(p: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        pairs = f.shape[-1]
        return p * f * factor ** (-torch.arange(pairs, dtype=f.dtype) / pairs)

    return lambda cos, sin: retabled(cos, sin, angles)
