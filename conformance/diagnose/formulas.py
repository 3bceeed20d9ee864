"""Attention from projected queries and keys to its pattern, one stage after another.

Each stage can be recomputed from the reference's values just before it, so that a hypothesis
about one stage needs none of the others, and a port that hides a stage is met at the next one
that it shows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from conformance.bounds import MASKED_BELOW
from conformance.diagnose import facts, rotary

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.facts import Buckets, Norm
    from conformance.diagnose.registry import Predicted
    from conformance.diagnose.rotary import Rope
    from conformance.families import Family
    from conformance.prompts import Prompt


class Stage(enum.IntEnum):
    """The stages of attention, in order of computation."""

    PROJECTED = 0
    NORMED = 1
    CLIPPED = 2
    ROTATED = 3
    SCORES = 4
    PATTERN = 5
    MIXED = 6
    OUT = 7


#: Stage -> the kinds of site that show it; none shows what is clipped.
SHOWN: dict[Stage, tuple[str, ...]] = {
    Stage.PROJECTED: ("attn.q", "attn.k", "attn.v"),
    Stage.NORMED: ("attn.q_normed", "attn.k_normed"),
    Stage.CLIPPED: (),
    Stage.ROTATED: ("attn.rot_q", "attn.rot_k"),
    Stage.SCORES: ("attn.scores",),
    Stage.PATTERN: ("attn.pattern",),
    Stage.MIXED: ("attn.z",),
}


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees.

    Attributes:
        offset: the last key, counted from the query: 0 is causal.
        window: how many keys back, its own among them; None for all.
        padding: whether padding is hidden.
        lonely: what a query does that would see nothing: ``own`` keeps what it should see,
            ``all`` spreads evenly over every key.
        chunk: keys of a query's own chunk of this length only; chunks begin after left padding.
        indexed: of these keys, those that an indexer chose, as the reference's scores show it.
        causal: whether later keys are hidden.
        stray: the right window, where keys beyond it are seen whether or not they are padding.
    """

    offset: int = 0
    window: int | None = None
    padding: bool = True
    lonely: Literal["own", "all"] = "own"
    stray: int | None = None
    chunk: int | None = None
    indexed: bool = False
    causal: bool = True


@dataclass(frozen=True)
class QKNorm:
    """The norm of queries or keys.

    Attributes:
        rule: its formula.
        full: over all heads at once, not over each.
        weight: which norm's weight: ``q_norm`` or ``k_norm``; None for no weight.
        scale: what its output is multiplied by, 1 in a right port.
    """

    rule: Norm
    full: bool
    weight: str | None

    def __call__(self, x: torch.Tensor, scene: Scene) -> torch.Tensor:
        """``x`` is [batch, pos, head, d_head]."""
        w = None if self.weight is None else scene.weight(f"attn.{self.weight}.w")
        b = None if self.weight is None else scene.weight(f"attn.{self.weight}.b")
        if self.full:
            return self.rule(x.flatten(-2), w, b).unflatten(-1, x.shape[-2:])
        return self.rule(x, w, b)


@dataclass(frozen=True)
class Formula:
    """Attention of one layer up to its pattern.

    Attributes:
        q_norm, k_norm: norms of queries and keys, or None.
        clip: bound of queries, keys and values, or None.
        q_rope, k_rope: their rotation, or None.
        scale: of products of queries and keys.
        temperature: (floor, slope): scores of the query at position i are multiplied by
            1 + slope log(1 + floor((i + 1) / floor)) (Llama 4), or None.
        cap: scores are cap tanh(score / cap), or None.
        slopes: alibi slopes [head], or None.
        tiled: key heads are repeated a, b, a, b and not a, a, b, b.
        mask: which keys a query sees.
        sinks: a learned score that takes its part of the softmax and is left out.
        o_norm: norm of what all heads mix, or None.
        buckets: of relative positions, each with a learned score of every head; or None.
    """

    q_norm: QKNorm | None
    k_norm: QKNorm | None
    clip: float | None
    q_rope: Rope | None
    k_rope: Rope | None
    scale: float
    cap: float | None
    slopes: torch.Tensor | None
    mask: Mask
    sinks: bool
    tiled: bool = False
    temperature: tuple[float, float] | None = None
    o_norm: Norm | None = None
    buckets: Buckets | None = None

    def mixed(self, scene: Scene, v: torch.Tensor) -> torch.Tensor:
        """``z`` [batch, pos, head, d_head] of values repeated for each query head."""
        z = torch.einsum("bhqk,bkhd->bqhd", scene.truth("attn.pattern"), v) * gate(scene)
        if self.o_norm is None:
            return z
        weight = scene.weight("attn.o_norm.w")
        return self.o_norm(z.flatten(-2), weight).unflatten(-1, z.shape[-2:])


def right(evidence: Evidence, layer: int) -> Formula:
    """The checkpoint's own formula.

    Raises:
        KeyError: a part of it is not known here.
    """
    config, fam, d = evidence.config, evidence.family, evidence.dims
    q_norm = k_norm = None
    if fam.qk_norm is not None:
        rule, full = facts.norm(config, fam), fam.qk_norm == "full"
        q_norm, k_norm = QKNorm(rule, full, "q_norm"), QKNorm(rule, full, "k_norm")
    turned = rotary.setting(config, fam, d, layer)
    cap = facts.first(config, "attn_logit_softcapping")
    return Formula(
        q_norm=q_norm,
        k_norm=k_norm,
        clip=facts.clip(config),
        q_rope=None if turned is None else turned.of_queries(),
        k_rope=None if turned is None else turned.rope(),
        scale=facts.attention_scale(config, fam, d, layer)[0],
        cap=None if cap is None else float(cap),
        slopes=facts.slopes(config, fam, d),
        mask=Mask(
            window=d.windows[layer],
            padding=not fam.sees_padding,
            chunk=d.chunk(layer),
            indexed=fam.indexed,
            causal=fam.causal,
        ),
        sinks=fam.sinks is not None,
        o_norm=facts.norm(config, fam) if fam.o_norm else None,
        tiled=fam.tiled,
        temperature=facts.temperature(config, fam),
        buckets=facts.buckets(config, evidence.reference.family, layer),
    )


def compute(scene: Scene, f: Formula, since: Stage, until: Stage) -> Predicted:
    """Values at the sites of stage ``until``, recomputed from the reference's before ``since``."""
    d, fam = scene.evidence.dims, _family(scene)
    shared = fam.kv_from is not None  # keys come rotated from another layer
    if since > Stage.ROTATED and fam.qk_norm_rotated:
        q, k = scene.truth("attn.q_normed"), scene.truth("attn.k_normed")
    elif since > Stage.ROTATED and fam.rotary:
        q, k = scene.truth("attn.rot_q"), scene.truth("attn.rot_k")
    elif fam.qk_norm_rotated:
        rotated = _rotated(scene, f, scene.truth("attn.q"), scene.truth("attn.k"))
        if until == Stage.ROTATED:
            return {"attn.rot_q": rotated[0], "attn.rot_k": rotated[1]}
        q, k = _normed(scene, f, *rotated)
        if until == Stage.NORMED:
            return {"attn.q_normed": q, "attn.k_normed": k}
    else:
        q, k = _before_rotation(scene, f, since)
        if until == Stage.NORMED:
            return {"attn.q_normed": q, **({} if shared else {"attn.k_normed": k})}
        q, k = _rotated(scene, f, *(_clipped(t, f.clip) for t in (q, k)))
        k = scene.truth("attn.rot_k") if shared else k
        if until == Stage.ROTATED:
            return {"attn.rot_q": q, "attn.rot_k": k}
    if since > Stage.SCORES:
        raise ValueError("the mask is part of the scores: begin there")
    repeats = (1, 1, d.group, 1)
    k = k.repeat(*repeats) if f.tiled else k.repeat_interleave(d.group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * f.scale
    if f.temperature is not None:
        floor, slope = f.temperature
        steps = torch.arange(1, scores.shape[-2] + 1).div(floor, rounding_mode="floor")
        scores = scores * (1 + slope * steps.double().log1p())[:, None]
    if f.cap is not None:
        scores = f.cap * torch.tanh(scores / f.cap)
    if f.slopes is not None:
        keys = torch.arange(scores.shape[-1])
        if fam.architecture != "MptForCausalLM" and scene.prompt.mask is not None:
            at = (scene.positions * scene.prompt.mask)[:, None, None, :]
        else:
            at = (keys - (0 if fam.architecture != "MptForCausalLM" else len(keys) - 1)).reshape(
                1, 1, 1, -1
            )
        scores = scores + f.slopes[:, None, None] * at
    if f.buckets is not None:
        scores = scores + relative(scene, f.buckets)
    seen = visible(scene, f.mask)
    lonely = ~seen.any(-1, keepdim=True)
    if f.mask.lonely == "own":
        seen = torch.where(
            lonely, visible(scene, Mask(window=f.mask.window, causal=f.mask.causal)), seen
        )
    scores = scores.masked_fill(~seen, -torch.inf)
    if until == Stage.SCORES:
        return {"attn.scores": scores}
    if f.mask.lonely == "all":
        scores = torch.where(lonely, torch.zeros_like(scores), scores)
    return {"attn.pattern": softmax(scene, scores, sinks=f.sinks)}


@dataclass(frozen=True)
class Asked:
    """What a hypothesis about attention is asked for.

    Attributes:
        formula: the checkpoint's own.
        since, until: the stages that are recomputed.
    """

    evidence: Evidence
    layer: int
    formula: Formula
    since: Stage
    until: Stage

    def by(self, changed: Formula) -> Callable[[Scene], Predicted]:
        """What another formula gives."""
        return lambda scene: compute(scene, changed, self.since, self.until)

    def varied(self, change: Callable[[float], Formula]) -> Callable[[Scene, float], Predicted]:
        """What a formula with one parameter gives."""
        return lambda scene, value: compute(scene, change(value), self.since, self.until)


def _before_rotation(scene: Scene, f: Formula, since: Stage) -> tuple[torch.Tensor, torch.Tensor]:
    fam = _family(scene)
    if fam.kv_from is not None:  # keys come rotated: what stands for them here is not read
        q = scene.truth("attn.q_normed" if since > Stage.NORMED else "attn.q")
        q = q if since > Stage.NORMED or f.q_norm is None else f.q_norm(q, scene)
        return q, q
    if fam.qk_norm is not None and since > Stage.NORMED:
        return scene.truth("attn.q_normed"), scene.truth("attn.k_normed")
    return _normed(scene, f, scene.truth("attn.q"), scene.truth("attn.k"))


def _normed(
    scene: Scene, f: Formula, q: torch.Tensor, k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        q if f.q_norm is None else f.q_norm(q, scene),
        k if f.k_norm is None else f.k_norm(k, scene),
    )


def _rotated(
    scene: Scene, f: Formula, q: torch.Tensor, k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        q if f.q_rope is None else f.q_rope(q, scene.positions),
        k if f.k_rope is None else f.k_rope(k, scene.positions),
    )


def _family(scene: Scene) -> Family:
    assert scene.layer is not None
    return scene.evidence.family.of(scene.layer)


def _clipped(t: torch.Tensor, bound: float | None) -> torch.Tensor:
    return t if bound is None else t.clamp(-bound, bound)


def values(scene: Scene, bound: float | None) -> torch.Tensor:
    """Values as they are mixed, [batch, pos, kv_head, d_head]."""
    fam, layer = _family(scene), scene.layer
    if fam.kv_from is not None:
        layer, fam = fam.kv_from, scene.evidence.reference.family.of(fam.kv_from)
    kind = "attn.v_normed" if fam.v_norm else "attn.v"
    site = f"blocks.{layer}.{kind}"
    return _clipped(scene.evidence.truth(scene.name, site).double(), bound)


def gate(scene: Scene) -> torch.Tensor | float:
    """What multiplies the values as they are mixed, [batch, pos, head, d_head or 1]."""
    fam, d = scene.evidence.family, scene.evidence.dims
    if fam.attn_gate is None:
        return 1.0
    weight = scene.weight(f"{fam.attn_gate}.weight")
    assert weight is not None
    x = scene.truth(fam.attn_reads) @ weight.T
    x = x.sigmoid() if fam.attn_gate_by == "sigmoid" else torch.nn.functional.softplus(x)
    return x.unflatten(-1, (d.n_heads, -1))


def relative(scene: Scene, buckets: Buckets) -> torch.Tensor:
    """What relative positions add to the scores, [batch (1), head, query, key]."""
    n = torch.arange(scene.prompt.tokens.shape[1])
    table = scene.whole(buckets.table)
    assert table is not None
    return table[buckets.of(n[None, :] - n[:, None])].permute(2, 0, 1)[None]


def visible(scene: Scene, mask: Mask) -> torch.Tensor:
    """Bool [batch, head (1), query, key]: which keys each query sees."""
    n = torch.arange(scene.prompt.tokens.shape[1])
    back = n[:, None] - n[None, :]
    seen = (back >= -mask.offset) | (not mask.causal)
    if mask.window is not None:
        seen = seen & (back < mask.window) & (mask.causal | (back > -mask.window))
    seen = seen.expand(scene.prompt.tokens.shape[0], 1, *seen.shape)
    if mask.chunk is not None:
        seen = seen & same_chunk(scene.prompt, mask.chunk)
    if mask.indexed:
        site = f"blocks.{scene.layer}.attn.scores"
        seen = seen & (scene.evidence.reference.truth(scene.name, site) > MASKED_BELOW)
    if mask.padding and scene.prompt.mask is not None:
        real = scene.prompt.mask.bool()[:, None, None, :]
        seen = seen & (real if mask.stray is None else real | (back >= mask.stray))
    return seen


def same_chunk(prompt: Prompt, chunk: int) -> torch.Tensor:
    """Bool [batch, head (1), query, key]: which keys are of the query's own chunk."""
    start = prompt.valid.int().argmax(-1)  # tokens of padding on the left
    of = torch.arange(prompt.tokens.shape[1])[None] - start[:, None]
    of = of.div(chunk, rounding_mode="floor")
    return (of[:, :, None] == of[:, None, :])[:, None]


def softmax(scene: Scene, scores: torch.Tensor, *, sinks: bool) -> torch.Tensor:
    """The pattern of masked scores [batch, head, query, key]; with a sink, what it leaves."""
    if not sinks:
        return scores.softmax(-1).nan_to_num()
    sink = scene.weight("attn.sinks")
    assert sink is not None
    column = sink[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
