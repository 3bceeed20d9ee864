"""Attention between its projections and its output: norms, rotation, scores, mask, pattern, z."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from conformance.diagnose import facts
from conformance.diagnose.formulas import SHOWN, Asked, Formula, Stage, right, values
from conformance.diagnose.masks import masks
from conformance.diagnose.qk_norms import qk_norms
from conformance.diagnose.registry import Fitted, Proposal, Step
from conformance.diagnose.rotations import rotations
from conformance.diagnose.scores import scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.registry import Predicted


def attention_steps(evidence: Evidence, kind: str, layer: int) -> Iterator[Step]:
    """The formulas between the last site that agrees and one that does not."""
    until = next(stage for stage, kinds in SHOWN.items() if kind in kinds)
    try:
        f = right(evidence, layer)
    except KeyError:
        return
    if until == Stage.MIXED:
        yield _mixed(evidence, f)
        return
    for since in _unseen(evidence, until, layer):
        asked = Asked(evidence, layer, f, since, until)
        hidden = f"blocks.{layer}.{SHOWN[since][0]}" if _before(since, until) else None
        proposals = (dataclasses.replace(p, site=hidden) for p in _proposals(asked))
        yield Step(_NAMES[since], asked.by(f), proposals)


def _before(since: Stage, until: Stage) -> bool:
    """Whether a hypothesis acts at a site that the port does not show."""
    return since < until and since in (Stage.NORMED, Stage.ROTATED)


_NAMES = {
    Stage.NORMED: "the norms of queries and keys",
    Stage.CLIPPED: "the clipping of queries and keys",
    Stage.ROTATED: "the rotation of queries and keys",
    Stage.SCORES: "attention scores and their mask",
    Stage.PATTERN: "the attention pattern",
}


def _unseen(evidence: Evidence, until: Stage, layer: int) -> Iterator[Stage]:
    """Stages that may be wrong: ``until``, and those before it that the port does not show."""
    fam = evidence.family
    for stage in sorted(Stage, reverse=True):
        if stage > until:
            continue
        if stage == Stage.PATTERN:
            yield Stage.SCORES  # a mask that hides too little shows in the pattern first
            continue
        exists = {
            Stage.PROJECTED: False,  # always shown
            Stage.NORMED: fam.qk_norm is not None,
            Stage.CLIPPED: facts.clip(evidence.config) is not None,
            Stage.ROTATED: fam.rotary,
        }.get(stage, True)
        shown = any(evidence.shows(f"blocks.{layer}.{kind}") for kind in SHOWN[stage])
        if stage < until and exists and shown:
            return
        if exists and (stage != Stage.SCORES or until != Stage.PATTERN):
            yield stage


def _proposals(asked: Asked) -> Iterator[Proposal | Fitted]:
    f, since, until = asked.formula, asked.since, asked.until
    if since == Stage.NORMED:
        yield from qk_norms(asked)
    elif since == Stage.CLIPPED:
        yield Proposal(
            "clip_qkv_ignored",
            f"is computed without clipping; the checkpoint says clip_qkv = {f.clip}",
            asked.by(dataclasses.replace(f, clip=None)),
        )
    elif since == Stage.ROTATED:
        yield from rotations(asked)
    elif since == Stage.SCORES:
        shown = asked.evidence.shows(f"blocks.{asked.layer}.attn.scores")
        if until == Stage.SCORES or not shown:
            yield from scores(asked)
        yield from masks(asked)
        if until == Stage.PATTERN and f.sinks:
            yield Proposal(
                "sinks_ignored",
                "is a softmax without the checkpoint's attention sinks",
                asked.by(dataclasses.replace(f, sinks=False)),
            )


def _mixed(evidence: Evidence, f: Formula) -> Step:
    group = evidence.dims.group

    def by(clip: float | None, *, tiled: bool = False) -> Callable[[Scene], Predicted]:
        def predict(scene: Scene) -> Predicted:
            v = values(scene, clip)
            v = v.repeat(1, 1, group, 1) if tiled else v.repeat_interleave(group, dim=2)
            return {"attn.z": f.mixed(scene, v)}

        return predict

    def proposals() -> Iterator[Proposal | Fitted]:
        if f.clip is not None:
            yield Proposal(
                "clip_qkv_ignored",
                f"mixes values that are not clipped; the checkpoint says clip_qkv = {f.clip}",
                by(None),
            )
        if group > 1 and evidence.dims.n_kv_heads > 1:
            yield Proposal(
                "grouped_heads_tiled",
                "pairs query heads with value heads tiled (a, b, a, b); the checkpoint repeats "
                "them (a, a, b, b)",
                by(f.clip, tiled=True),
            )

    return Step("the mixing of values", by(f.clip), proposals())
