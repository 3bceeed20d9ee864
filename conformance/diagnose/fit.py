"""How far a recomputation is from what the subject shows, and fits of a single parameter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from conformance.bounds import EPS, MASKED_BELOW, about, same_number
from conformance.compare import kept
from conformance.metrics import difference
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Newton steps of a fit. Its derivative is good to 1e-10, so that each step from nearby gains ten
#: digits; the rest is for coming near.
_STEPS = 12
#: Relative step of the central difference: its error (h^2) and roundoff (2^-52 / h) are alike.
_DELTA = 1e-5
#: How many starts are refined.
_REFINED = 3


def counted(
    site: str, truth: torch.Tensor, valid: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor:
    """Which entries of a site are compared: bool of ``truth``'s shape."""
    keep = kept(site, truth, valid)
    found = torch.ones_like(truth, dtype=torch.bool) if keep is None else keep
    for other in others:
        found = found & ~hidden(site, other)
    return found


def hidden(site: str, value: torch.Tensor) -> torch.Tensor:
    """Scores that a mask forbids, whatever number stands for that."""
    if site.endswith("attn.scores"):
        return ~(value > MASKED_BELOW)
    return torch.zeros_like(value, dtype=torch.bool)


def apart(
    site: str,
    truth: torch.Tensor,
    subject: torch.Tensor,
    predicted: torch.Tensor,
    valid: torch.Tensor,
    *,
    loose: bool = False,
) -> float:
    """``rel_max`` distance of ``predicted`` from ``subject``; infinite if they mask differently.

    Args:
        truth: the reference's value: says which entries are compared.
        loose: leave out a constant per query, which a softmax does not see.
    """
    if predicted.shape != subject.shape:
        return math.inf
    if subject.shape == truth.shape:
        keep = counted(site, truth, valid)
    else:  # a hook that shows another tensor
        keep = torch.ones_like(subject, dtype=torch.bool)
    if bool(((hidden(site, predicted) != hidden(site, subject)) & keep).any()):
        return math.inf
    keep = keep & ~hidden(site, subject)
    if not bool(keep.any()):
        return 0.0
    zero = subject.new_zeros(())
    a, b = subject.where(keep, zero), predicted.where(keep, zero)
    if loose:
        gap = (a - b).sum(-1, keepdim=True) / keep.sum(-1, keepdim=True).clamp_min(1)
        b = (b + gap).where(keep, zero)
    row_dims = 2 if len(parse(site).axes) == 4 and not site.endswith("attn.pattern") else 1
    found = difference(a, b, keep, row_dims).rel_max
    return math.inf if math.isnan(found) else found


def fitted(
    predict: Callable[[float], torch.Tensor],
    target: torch.Tensor,
    starts: Iterable[float],
    *,
    positive: bool,
) -> Iterator[float]:
    """Values of one parameter that bring ``predict`` nearest to ``target``, the best first.

    Gauss-Newton from the best of several starts; in the logarithm if the parameter is positive.
    """

    def cost(value: float) -> float:
        gap = predict(value) - target
        found = float(gap.square().sum())
        return found if math.isfinite(found) else math.inf

    ranked = sorted({float(s): cost(float(s)) for s in starts}.items(), key=lambda p: p[1])
    results = [
        _refined(predict, target, start, reached, cost, positive)
        for start, reached in ranked[:_REFINED]
        if math.isfinite(reached)
    ]
    seen: list[float] = []
    for value, _ in sorted(results, key=lambda p: p[1]):
        if not any(same_number(value, other) for other in seen):
            seen.append(value)
            yield value


def _refined(
    predict: Callable[[float], torch.Tensor],
    target: torch.Tensor,
    start: float,
    reached: float,
    cost: Callable[[float], float],
    positive: bool,
) -> tuple[float, float]:
    value, best = start, reached
    for _ in range(_STEPS):
        h = _DELTA * (abs(value) or 1.0)
        slope = (predict(value + h) - predict(value - h)) / (2 * h)
        size = float(slope.square().sum())
        if not math.isfinite(size) or size == 0.0:
            break
        step = float((slope * (target - predict(value))).sum()) / size
        for _ in range(8):
            factor = math.exp(max(-3.0, min(3.0, step / value))) if positive else 1.0
            new = value * factor if positive else value + step
            found = cost(new)
            if found <= best:
                break
            step /= 2
        else:
            break
        gain, value, best = abs(new - value), new, found
        if gain <= 4 * EPS["float64"] * abs(value):
            break
    return value, best


def written(value: float) -> Iterator[float]:
    """What a person may have written where ``value`` was measured, the shortest first."""
    seen: set[float] = set()
    for digits in range(7):
        short = float(f"{value:.{digits}e}")
        if short not in seen and about(short, value):
            seen.add(short)
            yield short
    if value not in seen:
        yield value


def number(value: float) -> str:
    """A number for a sentence."""
    return f"{value:.10g}"
