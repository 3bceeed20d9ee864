"""Norms of queries and keys."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.diagnose.norms import EPSILONS
from conformance.diagnose.registry import Fitted, Proposal, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.diagnose.formulas import Asked, Formula


def qk_norms(asked: Asked) -> Iterator[Proposal | Fitted]:
    """Norms of queries and keys: skipped, of another kind, or with other weights."""
    f, by, varied = asked.formula, asked.by, asked.varied
    assert f.q_norm is not None
    assert f.k_norm is not None
    rule = f.q_norm.rule

    def both(**changes: Any) -> Formula:
        q, k = (dataclasses.replace(n, **changes) for n in (f.q_norm, f.k_norm) if n)
        return dataclasses.replace(f, q_norm=q, k_norm=k)

    skipped = "checkpoint normalises them"
    for what, skips in (
        ("queries", dataclasses.replace(f, q_norm=None)),
        ("keys", dataclasses.replace(f, k_norm=None)),
        ("queries and keys", dataclasses.replace(f, q_norm=None, k_norm=None)),
    ):
        yield Proposal(
            "qk_norm_skipped",
            f"takes {what} as they are projected: the {skipped}",
            by(skips),
            implies=("hook_shows_other",),
        )
    yield Fitted(
        "qk_norm_eps",
        lambda eps: (
            f"behaves as if eps of the norm of queries and keys were {number(eps)}; "
            f"the checkpoint says {number(rule.eps)}"
        ),
        varied(lambda eps: both(rule=dataclasses.replace(rule, eps=eps))),
        rule.eps,
        EPSILONS,
    )
    for part in ("q_norm", "k_norm"):
        yield _own_eps(asked, part)
    yield Proposal(
        "qk_norm_offset",
        f"normalises queries and keys with {'w' if rule.offset else '1 + w'} for "
        f"{'1 + w' if rule.offset else 'w'}",
        by(both(rule=dataclasses.replace(rule, offset=1 - rule.offset))),
    )
    yield Proposal(
        "qk_norm_centring",
        "normalises queries and keys with a LayerNorm for an RMSNorm, or the other way round",
        by(both(rule=dataclasses.replace(rule, centred=not rule.centred))),
    )
    yield Proposal(
        "qk_norm_weight_skipped",
        "normalises queries and keys without the norms' weights",
        by(both(weight=None)),
    )
    widths = {
        n: asked.evidence.weights.shape(f"blocks.{asked.layer}.attn.{n}.w")
        for n in ("q_norm", "k_norm")
    }
    if widths["q_norm"] == widths["k_norm"]:
        yield Proposal(
            "qk_norm_swapped",
            "normalises queries with the keys' weights, and the other way round",
            by(
                dataclasses.replace(
                    f,
                    q_norm=dataclasses.replace(f.q_norm, weight="k_norm"),
                    k_norm=dataclasses.replace(f.k_norm, weight="q_norm"),
                )
            ),
        )


def _own_eps(asked: Asked, part: str) -> Fitted:
    """Another eps in the norm of queries, or in that of keys, alone."""
    f = asked.formula
    own = f.q_norm if part == "q_norm" else f.k_norm
    assert own is not None
    rule = own.rule

    def changed(eps: float) -> Formula:
        norm = dataclasses.replace(own, rule=dataclasses.replace(rule, eps=eps))
        if part == "q_norm":
            return dataclasses.replace(f, q_norm=norm)
        return dataclasses.replace(f, k_norm=norm)

    says = f"the checkpoint says {number(rule.eps)}"
    return Fitted(
        "qk_norm_eps",
        lambda eps: f"behaves as if eps of {part} were {number(eps)}; {says}",
        asked.varied(changed),
        rule.eps,
        EPSILONS,
    )
