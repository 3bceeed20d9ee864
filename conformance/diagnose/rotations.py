"""Hypotheses about rotary positions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.diagnose import rotary
from conformance.diagnose.registry import Fitted, Proposal, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.formulas import Asked, Formula
    from conformance.diagnose.rotary import Rope

_BASES = (1e3, 1e4, 5e4, 1e5, 1.5e5, 2e5, 5e5, 1e6, 5e6, 8e6, 1e7)
_STRETCHES = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
_SHIFTS = (-2, -1, 1, 2)


def rotations(asked: Asked) -> Iterator[Proposal | Fitted]:
    """Base, scaling, dimensions, pairing, direction and positions of the rotation."""
    evidence, f, by, varied = asked.evidence, asked.formula, asked.by, asked.varied
    found = rotary.setting(evidence.config, evidence.family, evidence.dims, asked.layer)
    assert found is not None
    rope = found.rope()

    growth = None if f.q_rope is None else f.q_rope.growth

    def both(changed: Rope | None) -> Formula:
        queries = None if changed is None else dataclasses.replace(changed, growth=growth)
        return dataclasses.replace(f, q_rope=queries, k_rope=changed)

    def changed(**fields: Any) -> Formula:
        return both(dataclasses.replace(rope, **fields))

    if growth is not None:
        yield Proposal(
            "query_growth_ignored",
            f"queries are not scaled by position; the checkpoint says llama_4_scaling_beta = "
            f"{number(growth[0])}",
            by(dataclasses.replace(f, q_rope=rope)),
        )
    says = f"the checkpoint says {number(found.base)}"
    for other in rotary.other_bases(evidence.config, found.base):
        yield Proposal(
            "rotary_local_global_swapped",
            f"is rotated with base {number(other)}, that of the other kind of layer; {says}",
            by(both(found.rope(base=other))),
            implies=("rotary_base",),
        )
    yield Fitted(
        "rotary_base",
        lambda base: f"is rotated with base {number(base)}; {says}",
        varied(lambda base: both(found.rope(base=base))),
        found.base,
        (*_BASES, found.base * 10, found.base / 10),
    )
    if found.kind != "default":
        yield from _scaling(asked, found, rope, both)
    yield from _dimensions(asked, found, rope, both)
    for pairing in ("halves", "adjacent"):
        for table in ("halves", "adjacent"):
            if (pairing, table) == (rope.pairing, rope.table):
                continue
            words = {"halves": "i and i + n", "adjacent": "2i and 2i + 1"}
            detail = "" if pairing == table else f", frequencies laid out for {words[table]}"
            yield Proposal(
                "rotary_pairing",
                f"turns dimensions {words[pairing]} together{detail}; "
                f"the checkpoint turns {words[rope.pairing]}",
                by(changed(pairing=pairing, table=table)),
            )
    yield Proposal(
        "rotary_direction", "is rotated in the other direction", by(changed(direction=-1))
    )
    yield Fitted(
        "rotary_positions_scaled",
        lambda t: f"is rotated as if every position were multiplied by {number(t)}",
        varied(lambda t: changed(stretch=t)),
        1.0,
        _STRETCHES,
    )
    yield Proposal(
        "rotary_positions_count_padding",
        "is rotated by positions that count padding",
        by(changed(count_padding=True)),
    )
    yield from _shifted(asked, rope)
    for what, skips in (
        ("queries", dataclasses.replace(f, q_rope=None)),
        ("keys", dataclasses.replace(f, k_rope=None)),
        ("queries and keys", dataclasses.replace(f, q_rope=None, k_rope=None)),
    ):
        yield Proposal(
            "rotary_skipped",
            f"shows that {what} are not rotated",
            by(skips),
            implies=("hook_shows_other",),
        )


def _scaling(
    asked: Asked, found: rotary.Setting, rope: Rope, both: Callable[[Rope | None], Formula]
) -> Iterator[Proposal | Fitted]:
    """The scaling of frequencies (linear, llama3, yarn) is left out, or made for another base."""
    plain = found.unscaled()
    scale = rope.frequencies / plain.frequencies
    stretched = bool((scale != 1).any())
    own = f"the checkpoint scales frequencies by {found.kind}"
    radius = f"{found.kind}'s factor {number(rope.radius)} of cosines and sines"

    def changed(**fields: Any) -> Formula:
        return both(dataclasses.replace(rope, **fields))

    yield Proposal(
        "rotary_scaling_dropped",
        f"is rotated with unscaled frequencies; {own}",
        asked.by(both(plain)),
        implies=_same_as_unscaled(found, stretched=stretched),
    )
    if stretched:
        yield Fitted(
            "rotary_base",
            lambda base: (
                f"is rotated with base {number(base)}, its frequencies scaled as those of the "
                f"checkpoint's base {number(found.base)}"
            ),
            asked.varied(
                lambda base: changed(frequencies=scale * rotary.frequencies(base, found.dim))
            ),
            found.base,
            (*_BASES, found.base * 10, found.base / 10),
            variant=True,
        )
    if stretched and rope.radius != 1.0:
        yield Proposal(
            "rotary_scaling_dropped",
            f"is rotated with unscaled frequencies, but with {radius}; {own}",
            asked.by(changed(frequencies=plain.frequencies)),
        )
    if rope.radius != 1.0:
        yield Proposal(
            "rotary_radius_dropped",
            f"is rotated without {radius}",
            asked.by(changed(radius=1.0)),
            implies=("scaled",),
        )


def _same_as_unscaled(found: rotary.Setting, *, stretched: bool) -> tuple[str, ...]:
    """Where a scaling is nothing but a factor of positions, or of cosines and sines."""
    if found.kind == "linear":
        return ("rotary_positions_scaled",)
    return () if stretched else ("rotary_radius_dropped", "scaled")


def _shifted(asked: Asked, rope: Rope) -> Iterator[Proposal]:
    f = asked.formula

    def turned(n: int, *parts: str) -> Formula:
        changes: dict[str, Any] = {}
        for part in parts:
            own = rope if (stated := getattr(f, part)) is None else stated
            changes[part] = dataclasses.replace(own, shift=float(n))
        return dataclasses.replace(f, **changes)

    for n in _SHIFTS:
        way = f"{abs(n)} position{'s' * (abs(n) > 1)} too {'far' if n > 0 else 'short'}"
        for parts, what in (
            (("q_rope",), "queries"),
            (("k_rope",), "keys"),
            (("q_rope", "k_rope"), "queries and keys"),
        ):
            yield Proposal(
                "rotary_positions_shifted",
                f"shows that {what} are rotated {way}",
                asked.by(turned(n, *parts)),
            )


def _dimensions(
    asked: Asked, found: rotary.Setting, rope: Rope, both: Callable[[Rope | None], Formula]
) -> Iterator[Proposal]:
    """Fewer or more dimensions are turned, or one pair is not."""
    evidence, by = asked.evidence, asked.by
    says = f"the checkpoint turns {found.dim} of {evidence.dims.d_head}"
    sizes = {evidence.dims.d_head // part for part in (1, 2, 4, 8)}
    sizes |= {found.dim - 2, found.dim + 2, found.dim // 2}
    for dim in sorted(d - d % 2 for d in sizes):
        if not 2 <= dim <= evidence.dims.d_head or dim == found.dim:
            continue
        try:
            other = found.rope(dim=dim)
        except (KeyError, ValueError):
            continue
        yield Proposal("rotary_dim", f"is rotated in {dim} dimensions; {says}", by(both(other)))
        if dim < found.dim:
            kept = dataclasses.replace(rope, frequencies=rope.frequencies[: dim // 2])
            yield Proposal(
                "rotary_dim",
                f"is rotated in {dim} dimensions, with the frequencies of {found.dim}; {says}",
                by(both(kept)),
            )
    for pair in range(len(rope.frequencies)):
        still = rope.frequencies.clone()
        still[pair] = 0
        yield Proposal(
            "rotary_dim",
            f"is not rotated in pair {pair} of dimensions",
            by(both(dataclasses.replace(rope, frequencies=still))),
        )
