"""Hypotheses about attention scores."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from conformance.bounds import SAME, SIMILAR, same_number
from conformance.diagnose import facts
from conformance.diagnose.evidence import Scene
from conformance.diagnose.formulas import Stage, compute
from conformance.diagnose.registry import Fitted, Proposal, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.facts import Buckets
    from conformance.diagnose.formulas import Asked
    from conformance.diagnose.registry import Predicted

#: What T5's configs say, and what is usual elsewhere.
_DISTANCES = frozenset({64, 128, 256})
_CAPS = (10.0, 15.0, 20.0, 30.0, 50.0, 100.0)
#: A cap that nothing feels.
UNCAPPED = 1e12


def scores(asked: Asked) -> Iterator[Proposal | Fitted]:
    """The scale of scores, their cap, alibi slopes, and which heads are paired."""
    f, layer, by, varied = asked.formula, asked.layer, asked.by, asked.varied
    d = asked.evidence.dims
    scale, how = facts.attention_scale(asked.evidence.config, asked.evidence.family, d, layer)
    root = math.sqrt(d.d_head)

    def stated(t: float) -> str:
        known = {
            "they are not scaled": 1 / scale,
            "they are divided by d_head": 1 / d.d_head / scale,
            "they are divided by sqrt(d_head)": 1 / root / scale,
            f"they are divided by {layer + 1}, the layer's number, too": 1 / (layer + 1),
        }
        why = next((w for w, v in known.items() if same_number(v, t)), None)
        what = f"products of queries and keys are multiplied by {number(t * scale)}"
        times = f"{number(t)} times the checkpoint's {number(scale)} ({how})"
        return f"shows that {what}, {times}" + ("" if why is None else f": {why}")

    starts = (1 / scale, 1 / root / scale, 1 / d.d_head / scale, root, 1 / root, 0.5, 2.0)
    yield Fitted(
        "attention_scale",
        stated,
        varied(lambda t: dataclasses.replace(f, scale=scale * t)),
        1.0,
        (*starts, 1 / (layer + 1)),
        implies=("scaled",),
    )
    if f.cap is not None:
        cap = f.cap
        says = f"the checkpoint says {number(cap)}"
        yield Proposal(
            "softcap_missing",
            f"is not capped; {says}",
            by(dataclasses.replace(f, cap=None)),
        )
        yield Fitted(
            "softcap",
            lambda c: f"is capped at {number(c)}; {says}",
            varied(lambda c: dataclasses.replace(f, cap=c)),
            cap,
            _CAPS,
        )
        yield from _scaled_and_capped(asked, scale)
    else:
        yield Fitted(
            "softcap",
            lambda c: f"is capped at {number(c)}; the checkpoint does not cap scores",
            varied(lambda c: dataclasses.replace(f, cap=c)),
            UNCAPPED,
            _CAPS,
        )
    if d.group > 1 and d.n_kv_heads > 1:
        yield Proposal(
            "grouped_heads_tiled",
            "pairs query heads with key heads tiled (a, b, a, b); the checkpoint repeats them "
            "(a, a, b, b)",
            by(dataclasses.replace(f, tiled=True)),
        )
    if f.slopes is not None:
        yield from _slopes(asked)
    if f.buckets is not None:
        yield from _relative(asked, f.buckets)


def _relative(asked: Asked, own: Buckets) -> Iterator[Proposal]:
    """T5's relative positions: without, in other buckets, or by another table."""

    def placed(buckets: Buckets | None) -> Callable[[Scene], Predicted]:
        return asked.by(dataclasses.replace(asked.formula, buckets=buckets))

    says = f"the checkpoint says {own.count} buckets up to {own.furthest} tokens"
    yield Proposal("relative_missing", f"has no relative positions; {says}", placed(None))
    ways = ("both ways", "one way") if own.both_ways else ("one way", "both ways")
    yield Proposal(
        "relative_direction",
        f"tells distances apart {ways[1]}; the checkpoint's layer does so {ways[0]}",
        placed(dataclasses.replace(own, both_ways=not own.both_ways)),
    )
    near = {2 * own.furthest, own.furthest // 2, own.furthest - 1, own.furthest + 1}
    for furthest in sorted((near | _DISTANCES) - {own.furthest}):
        if furthest <= own.count:
            continue
        yield Proposal(
            "relative_distance",
            f"tells distances apart up to {furthest} tokens; {says}",
            placed(dataclasses.replace(own, furthest=furthest)),
        )
    for count in sorted({own.count // 2, own.count - 1}):
        yield Proposal(
            "relative_buckets",
            f"has {count} buckets of distances; {says}",
            placed(dataclasses.replace(own, count=count)),
        )
    fam = asked.evidence.reference.family
    for layer in {0, fam.encoder}:
        other = facts.buckets(asked.evidence.config, fam, layer)
        if other is not None and other.table != own.table:
            yield Proposal(
                "relative_table",
                f"has the relative positions of layer {layer}'s stack",
                placed(dataclasses.replace(own, table=other.table)),
            )


def _scaled_and_capped(asked: Asked, scale: float) -> Iterator[Fitted]:
    """Both constants are another model's."""
    f = asked.formula
    for cap in _CAPS:
        if cap == f.cap:
            continue
        yield Fitted(
            "attention_scale_and_softcap",
            lambda t, cap=cap: (  # type: ignore[misc]
                f"shows that products of queries and keys are multiplied by {number(t * scale)} "
                f"and capped at {number(cap)}; the checkpoint says {number(scale)} and "
                f"{number(f.cap or 0)}"
            ),
            asked.varied(
                lambda t, cap=cap: dataclasses.replace(f, scale=scale * t, cap=cap)  # type: ignore[misc]
            ),
            1.0,
            (0.5, 2.0, asked.evidence.dims.d_head**-0.5 / scale),
        )


def _agree(a: torch.Tensor, b: torch.Tensor, part: float) -> bool:
    return bool(((a - b).abs() <= part * b.abs()).all())


def _slopes(asked: Asked) -> Iterator[Proposal | Fitted]:
    f, by, varied = asked.formula, asked.by, asked.varied
    slopes = f.slopes
    assert slopes is not None
    known = [(w, t) for w, t in _rules(slopes) if not _agree(t, slopes, SAME)]
    for what, other in known:
        yield Proposal(
            "alibi_slopes",
            f"has alibi slopes {what}",
            by(dataclasses.replace(f, slopes=other)),
        )
    measured = _measured(asked)
    near = [(w, t) for w, t in known if measured is not None and _agree(t, measured, SIMILAR)]
    if measured is not None and not any(_agree(t, measured, SAME) for _, t in near):
        listed = ", ".join(f"{t:.6g}" for t in measured.tolist())
        rule = "".join(f": {what}, rounded" for what, _ in near[:1])
        yield Proposal(
            "alibi_slopes",
            f"has alibi slopes {listed}{rule}",
            by(dataclasses.replace(f, slopes=measured)),
        )
    yield Proposal("alibi_missing", "has no alibi bias", by(dataclasses.replace(f, slopes=None)))
    yield Fitted(
        "alibi_slopes",
        lambda t: f"has alibi slopes {number(t)} times the checkpoint's",
        varied(lambda t: dataclasses.replace(f, slopes=slopes * t)),
        1.0,
        (0.5, 2.0, f.scale),
    )


def _rules(slopes: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Slopes that a port may have for ``slopes``."""
    n = len(slopes)
    numbers = torch.arange(1, n + 1).double()
    return [
        (f"2^(-8 h / {n}) for heads h from 1 on", 2.0 ** (-8 * numbers / n) * _unit(slopes)),
        ("in reverse order", slopes.flip(0)),
        ("of the other sign", -slopes),
        ("2^-1, 2^-2, ... whatever the number of heads", 2.0**-numbers),
        ("that begin at 1", slopes * (slopes[0] / slopes[1])),
        ("all alike", torch.full_like(slopes, float(slopes[0]))),
    ]


def _measured(asked: Asked) -> torch.Tensor | None:
    """The slopes that the subject's scores, or the logarithm of its pattern, have: [head]."""
    kind = "attn.scores" if asked.until == Stage.SCORES else "attn.pattern"
    scene = Scene(asked.evidence, asked.evidence.prompts[0], asked.layer)
    shown = scene.subject(kind)
    bare = dataclasses.replace(asked.formula, slopes=None)
    scores = compute(scene, bare, asked.since, Stage.SCORES)["attn.scores"]
    if shown is None or shown.shape != scores.shape:
        return None
    if kind == "attn.pattern":
        shown = shown.log()
    seen = scores.isfinite() & shown.isfinite() & scene.prompt.valid[:, None, :, None]
    keys = scene.positions[:, None, None, :].double().expand(scores.shape)
    # A constant a query is not seen by the softmax: regress on what varies along the keys.
    count = seen.sum(-1, keepdim=True).clamp_min(1)
    gap, at = (
        (t - t.where(seen, t.new_zeros(())).sum(-1, keepdim=True) / count).where(seen, 0.0)
        for t in ((shown - scores).where(seen, 0.0), keys)
    )
    size = at.square().sum((0, 2, 3))
    return (gap * at).sum((0, 2, 3)) / size if bool((size > 0).all()) else None


def _unit(slopes: torch.Tensor) -> float:
    """What all slopes are multiplied by: in every rule the last power of two below n is 2^-8."""
    n = len(slopes)
    below = 2 ** math.floor(math.log2(n))
    return float(slopes[below - 1]) * 2.0**8
