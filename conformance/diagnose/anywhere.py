"""Hypotheses that need no formula: a site's value, scaled, reordered, or another site's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from conformance.bounds import SIMILAR, ZERO
from conformance.diagnose.fit import hidden
from conformance.diagnose.registry import Fitted, Proposal, Step, number
from conformance.sites import BLOCK_KINDS, GLOBAL_KINDS, KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.registry import Predicted

#: A dropout's rate is between these.
_RATES = (0.005, 0.9)
#: How far the part that was dropped may be from the rate: a short prompt has few entries.
_SAMPLING = 0.15


def anywhere_step(evidence: Evidence, kind: str, layer: int | None) -> Step:
    """What may be wrong with any site."""

    def same(scene: Scene) -> Predicted:
        return {kind: scene.truth(kind)}

    def proposals() -> Iterator[Proposal | Fitted]:
        if kind != "attn.scores":  # there a factor is the scale's, or the mask would grow too
            yield Fitted(
                "scaled",
                lambda t: f"is {number(t)} times the checkpoint's",
                lambda s, t: {kind: s.truth(kind) * t},
                1.0,
                (0.5, 2.0, -1.0, 2**-0.5, evidence.dims.d_model**-0.5),
                positive=False,
            )
        yield from _heads(evidence, kind)
        if kind == "attn.pattern":
            yield from _dropout(evidence)

    return Step("the site itself", same, proposals())


def _heads(evidence: Evidence, kind: str) -> Iterator[Proposal]:
    axes = KINDS[kind].axes
    axis = next((i for i, a in enumerate(axes) if a in ("head", "kv_head")), None)
    if axis is None or kind == "attn.scores":
        return
    order = _order(evidence, kind, axis)
    if order is None or order == tuple(range(len(order))):
        return
    moved = [i for i, j in enumerate(order) if i != j]
    if len(moved) == 2:
        what = f"has heads {moved[0]} and {moved[1]} in each other's place"
    else:
        what = f"has its heads in the order {', '.join(map(str, order))}"
    yield Proposal(
        "head_order",
        what,
        lambda s: {kind: s.truth(kind).index_select(axis, torch.tensor(order))},
    )


def _order(evidence: Evidence, kind: str, axis: int) -> tuple[int, ...] | None:
    """Which of the reference's heads each of the subject's is."""
    assert evidence.site is not None
    name = evidence.prompts[0]
    subject = evidence.subject(name, evidence.site)
    truth = evidence.truth(name, evidence.site).double()
    if subject is None or subject.shape != truth.shape:
        return None
    valid = evidence.prompt(name).valid
    if axis == 2:
        shown, right = (t[valid].transpose(0, 1).flatten(1) for t in (subject, truth))
    else:
        shown, right = (
            t.transpose(1, 2)[valid].transpose(0, 1).flatten(1) for t in (subject, truth)
        )
    away = (shown[:, None] - right[None]).abs().amax(-1) / right.abs().amax().clamp_min(ZERO)
    if not bool(away.isfinite().all()):
        return None
    near, order = away.min(-1)
    if float(near.max()) > SIMILAR:
        return None
    found = tuple(order.tolist())
    return found if len(set(found)) == len(found) else None


def _dropout(evidence: Evidence) -> Iterator[Proposal]:
    """Entries are either zero or all larger by one factor: 1 / (1 - rate)."""
    assert evidence.site is not None
    name = evidence.prompts[0]
    shown = evidence.subject(name, evidence.site)
    if shown is None:
        return
    truth = evidence.truth(name, evidence.site).double()
    if shown.shape != truth.shape:
        return
    real = (truth > 0) & evidence.prompt(name).valid[:, None, :, None]
    kept = real & (shown != 0)
    if not bool(kept.any()):
        return
    rate = 1 - float((truth[kept] / shown[kept]).median())
    rate = round(rate, 6)
    lost = 1 - float(kept.sum()) / float(real.sum())
    if not _RATES[0] < rate < _RATES[1] or abs(lost - rate) > _SAMPLING:
        return

    def predict(scene: Scene) -> Predicted:
        pattern = scene.truth("attn.pattern")
        subject = scene.subject("attn.pattern")
        assert subject is not None
        return {"attn.pattern": torch.where(subject == 0, 0.0, pattern / (1 - rate))}

    yield Proposal(
        "dropout",
        f"is zero here and there, and elsewhere divided by {number(1 - rate)}: "
        f"dropout of {number(rate)} is left on",
        predict,
    )


# --- hooks ------------------------------------------------------------------------------------


def hook_step(evidence: Evidence, kind: str, layer: int | None) -> Step:
    """The logits are right, but a hook shows another tensor than its own."""
    axes = KINDS[kind].axes

    def showing(other: str) -> Callable[[Scene], Predicted]:
        def predict(scene: Scene) -> Predicted:
            value, subject = scene.truth(other), scene.subject(kind)
            if other == "attn.scores" and subject is not None and subject.shape == value.shape:
                # Whatever number stands for a mask.
                forbidden = hidden(other, value) & hidden(other, subject)
                value = torch.where(forbidden, subject, value)
            return {kind: value}

        return predict

    def proposals() -> Iterator[Proposal]:
        kinds = (*GLOBAL_KINDS, *(BLOCK_KINDS if layer is not None else ()))
        for other in kinds:
            if other.name == kind or len(other.axes) != len(axes):
                continue
            full = other.name
            if layer is not None and other in BLOCK_KINDS:
                full = f"blocks.{layer}.{other.name}"
            if full in evidence.reference.sites:
                yield Proposal(
                    "hook_shows_other",
                    f"shows {full}: its hook is on another tensor, the logits are right",
                    showing(other.name),
                )

    return Step("what the hook shows", lambda s: {kind: s.truth(kind)}, proposals())
