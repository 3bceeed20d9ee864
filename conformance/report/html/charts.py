"""Charts as inline SVG: sizes and colours come from the page's style sheet.

Each has a title and a description, and stands beside a table of the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from conformance.records import PER_DECADE
from conformance.report.html.words import sci

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 480.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 20.0, 14.0, 40.0


@dataclass(frozen=True)
class Point:
    """A layer: what was measured there and what was allowed, relative and dimensionless."""

    layer: int
    measured: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.measured <= self.allowed


class _Frame:
    """A plot with decades upwards."""

    def __init__(self, low: int, high: int, zero: bool) -> None:
        self.low, self.high, self.zero = low, max(high, low + 1), zero
        self._bottom = _HEIGHT - _BOTTOM - (16.0 if zero else 0.0)

    def y(self, value: float) -> float:
        """Where a value is; what is no number is at the top, zero on a line of its own."""
        if value == 0:
            return _HEIGHT - _BOTTOM
        if not math.isfinite(value):
            return _TOP
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self._bottom - min(max(part, 0.0), 1.0) * (self._bottom - _TOP)

    def decades(self) -> list[str]:
        step = max(1, math.ceil((self.high - self.low) / 6))
        parts = []
        for power in range(self.low, self.high + 1, step):
            parts.append(_tick(self.y(10.0**power), f"1e{power}" if power else "1"))
        if self.zero:
            parts.append(_tick(self.y(0), "0"))
        return parts


def _tick(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def by_layer(points: Sequence[Point], name: str, title: str, what: str) -> Markup:
    """Error by layer, with what was allowed.

    Args:
        points: sorted by layer, at least one.
        name: unique on the page, for the labels' ids.
        title: what a screen reader says first.
        what: the label of the upward axis.
    """
    sizes = [x for p in points for x in (p.measured, p.allowed) if math.isfinite(x) and x > 0]
    low = math.floor(math.log10(min(sizes, default=1.0))) - 1
    high = math.floor(math.log10(max(sizes, default=1.0))) + 1
    frame = _Frame(low, high, any(p.measured == 0 for p in points))
    span = max(1, points[-1].layer - points[0].layer)
    room = _WIDTH - _LEFT - _RIGHT - 24

    def x(layer: int) -> float:
        if len(points) == 1:
            return _LEFT + 12 + room / 2
        return _LEFT + 12 + room * (layer - points[0].layer) / span

    parts = frame.decades()
    step = max(1, math.ceil(len(points) / 12))
    for p in points[::step]:
        parts.append(
            f'<text class="tick" x="{x(p.layer):.1f}" y="{_HEIGHT - _BOTTOM + 16:g}" '
            f'text-anchor="middle">{p.layer}</text>'
        )
    parts += [
        _text(_LEFT + room / 2, _HEIGHT - 6, "layer", "axis", "middle"),
        _text(_LEFT, _TOP - 3, what, "axis", "start"),
        _line([(x(p.layer), frame.y(p.allowed)) for p in points], "allowed"),
        _line([(x(p.layer), frame.y(p.measured)) for p in points], "measured"),
    ]
    parts += [_mark(x(p.layer), frame.y(p.measured), p.ok) for p in points]
    worst = max(points, key=lambda p: math.inf if math.isnan(p.measured) else p.measured)
    failing = [str(p.layer) for p in points if not p.ok]
    said = f"Largest {sci(worst.measured)} in layer {worst.layer}, {sci(worst.allowed)} allowed. "
    said += f"Beyond what is allowed in layers {', '.join(failing)}." if failing else "All within."
    return _svg(name, title, said, parts)


def histogram(counts: Mapping[int, int], name: str, title: str, bound: float | None) -> Markup:
    """How many entries differ by how much.

    Args:
        counts: bin (half decades of the relative difference) -> entries.
        bound: marked with a line, where there is one.
    """
    low, high = min(counts), max(counts) + 1
    if bound is not None:
        at = math.log10(bound) * PER_DECADE
        low, high = min(low, math.floor(at)), max(high, math.ceil(at) + 1)
    low -= low % PER_DECADE
    high += -high % PER_DECADE
    most = max(counts.values())
    room, floor = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM
    wide = room / (high - low)

    def x(number: float) -> float:
        return _LEFT + wide * (number - low)

    parts = []
    for part in (0.0, 0.5, 1.0):
        y = floor - part * (floor - _TOP - 10)
        parts.append(_tick(y, f"{most * part:.0f}" if most * part == round(most * part) else ""))
    for number, entries in sorted(counts.items()):
        tall = max(1.0, entries / most * (floor - _TOP - 10)) if entries else 0.0
        parts.append(
            f'<rect class="bar" x="{x(number) + 0.5:.1f}" y="{floor - tall:.1f}" '
            f'width="{wide - 1:.1f}" height="{tall:.1f}"/>'
        )
    step = max(1, math.ceil((high - low) / PER_DECADE / 8)) * PER_DECADE
    for number in range(low, high + 1, step):
        power = number // PER_DECADE
        parts.append(_text(x(number), floor + 16, f"1e{power}" if power else "1", "tick", "middle"))
    if bound is not None:
        at = x(math.log10(bound) * PER_DECADE)
        parts.append(
            f'<line class="allowed" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP:g}" y2="{floor:g}"/>'
        )
    parts.append(_text(_LEFT + room / 2, _HEIGHT - 6, "relative difference", "axis", "middle"))
    parts.append(_text(_LEFT, _TOP - 3, "entries", "axis", "start"))
    peak = max(counts, key=lambda n: counts[n])
    total = sum(counts.values())
    said = f"{total} entries differ, most of them by about {sci(10 ** (peak / PER_DECADE), 1)}; "
    said += f"none by more than {sci(10 ** ((max(counts) + 1) / PER_DECADE))}."
    return _svg(name, title, said, parts)


def _svg(name: str, title: str, said: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-labelledby="{escape(name)}-t {escape(name)}-d">'
        f'<title id="{escape(name)}-t">{escape(title)}</title>'
        f'<desc id="{escape(name)}-d">{escape(said)}</desc>' + "".join(parts) + "</svg>"
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(points: Sequence[tuple[float, float]], kind: str) -> str:
    if len(points) == 1:
        (x, y) = points[0]
        points = [(x - 40, y), (x + 40, y)] if kind == "allowed" else points
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{listed}"/>'


def _mark(x: float, y: float, ok: bool) -> str:
    if ok:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    a, b, c, d = x - 5, x + 5, y - 5, y + 5
    path = f"M{a:.1f} {c:.1f}L{b:.1f} {d:.1f}M{a:.1f} {d:.1f}L{b:.1f} {c:.1f}"
    return f'<path class="cross" d="{path}"/>'
