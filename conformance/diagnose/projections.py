"""Linear maps: queries, keys, values, attention's output, and an MLP's first and last."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from conformance.diagnose.registry import Proposal, Step
from conformance.weights import split_fused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.registry import Predicted


@dataclass(frozen=True)
class Linear:
    """One linear map of a block.

    Attributes:
        kind: the kind of site that it produces.
        weight, bias: their names in the block.
        rivals: weights that it may be mistaken for.
        x: its input, [batch, pos, d_in].
        factor: what its output is multiplied by on its way to the site.
    """

    kind: str
    weight: str
    bias: str
    rivals: tuple[str, ...]
    x: Callable[[Scene], torch.Tensor]
    factor: float = 1.0

    def matrix(
        self, scene: Scene, name: str | None = None, layer: int | None = None
    ) -> torch.Tensor:
        """The weight as [d_in, d_out].

        Raises:
            KeyError: there is none of that name.
        """
        at = scene.layer if layer is None else layer
        found = scene.whole(f"blocks.{at}.{name or self.weight}")
        if found is None:
            raise KeyError(f"no weight {name or self.weight}")
        if found.ndim == 3:
            if (name or self.weight).endswith("W_O"):
                return found.flatten(0, 1)
            return found.transpose(0, 1).flatten(1)
        return found

    def offset(
        self, scene: Scene, name: str | None = None, layer: int | None = None
    ) -> torch.Tensor | None:
        """The bias as [d_out], if there is one."""
        at = scene.layer if layer is None else layer
        found = scene.whole(f"blocks.{at}.{name or self.bias}")
        return None if found is None else found.flatten()

    def shaped(self, scene: Scene, y: torch.Tensor) -> Predicted:
        """As the site shows it."""
        return {self.kind: self.factor * y.reshape(scene.truth(self.kind).shape)}


def _as_given(scene: Scene) -> torch.Tensor:
    return scene.input("attn")


def _with_positions(scene: Scene) -> torch.Tensor:
    """What a shortformer's queries and keys are made of (Press et al. 2021)."""
    return scene.input("attn") + scene.truth("pos_embed")


def linear(evidence: Evidence, kind: str) -> Linear | None:
    """The map that produces a kind of site, if one does alone."""
    fam = evidence.family
    out = "attn.out" if fam.ln1_post else "attn_out"
    factor = fam.residual_multiplier
    if kind in ("attn.q", "attn.k", "attn.v"):
        letter = kind[-1].upper()
        rivals = tuple(f"attn.W_{x}" for x in "QKV" if x != letter)
        reads = _with_positions if fam.shortformer and letter != "V" else _as_given
        return Linear(kind, f"attn.W_{letter}", f"attn.b_{letter}", rivals, reads)
    if kind == out:
        return Linear(
            kind,
            "attn.W_O",
            "attn.b_O",
            ("attn.W_Q",),
            lambda s: s.truth("attn.z").flatten(-2),
            factor,
        )
    if fam.moe:
        return None
    down = "mlp.out" if fam.ln2_post else "mlp_out"
    if kind == down and fam.down:
        return Linear(kind, "mlp.W_out", "mlp.b_out", (), lambda s: s.truth("mlp.post"), factor)
    gate, up = ("mlp.W_gate", "mlp.b_gate"), ("mlp.W_in", "mlp.b_in")
    if kind == "mlp.pre":
        own, other = (gate, up) if fam.gated else (up, gate)
    elif kind == "mlp.pre_linear":
        own, other = up, gate
    else:
        return None
    rivals = (other[0],) if fam.gated else ()
    return Linear(kind, own[0], own[1], rivals, lambda s: s.input("mlp"))


def linear_step(evidence: Evidence, m: Linear, layer: int) -> Step:
    """The formula of a linear map."""

    def using(
        name: str | None = None,
        at: int | None = None,
        *,
        bias: Literal["own", "same", "none"] = "same",
        transposed: bool = False,
        x: Callable[[Scene], torch.Tensor] | None = None,
    ) -> Callable[[Scene], Predicted]:
        """``bias``: this map's own, the one beside the weight, or none."""

        def predict(scene: Scene) -> Predicted:
            w = m.matrix(scene, name, at)
            y = (x or m.x)(scene) @ (w.T if transposed else w)
            b = None
            if bias != "none":
                beside = m.bias if name is None else name.replace("W_", "b_")
                b = m.offset(scene, beside, at) if bias == "same" else m.offset(scene)
            return m.shaped(scene, y if b is None else y + b)

        return predict

    def proposals() -> Iterator[Proposal]:
        prefix = f"blocks.{layer}"
        shape = evidence.weights.shape
        if f"{prefix}.{m.bias}" in evidence.weights:
            yield Proposal("bias_skipped", f"leaves out {m.bias}", using(bias="none"))
        size = _size(shape(f"{prefix}.{m.weight}"), m.weight)
        if size[0] == size[1]:
            yield Proposal(
                "matrix_transposed",
                f"multiplies by the transpose of {m.weight}",
                using(transposed=True),
            )
        for rival in m.rivals:
            full = f"{prefix}.{rival}"
            if full in evidence.weights and _size(shape(full), rival) == size:
                yield Proposal("weights_swapped", f"uses {rival} for {m.weight}", using(rival))
                yield Proposal(
                    "weights_swapped",
                    f"uses {rival} for {m.weight}, with its own bias",
                    using(rival, bias="own"),
                )
        for at in range(evidence.dims.n_layers):
            full = f"blocks.{at}.{m.weight}"
            if (
                at != layer
                and full in evidence.weights
                and shape(full) == shape(f"{prefix}.{m.weight}")
            ):
                yield Proposal("weights_of_layer", f"uses the weights of blocks.{at}", using(at=at))
        yield from _inputs(evidence, m, using)
        if m.kind in ("attn.q", "attn.k", "attn.v"):
            yield from _layouts(evidence, m)

    return Step(f"the projection {m.weight}", using(), proposals())


def _size(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """[d_in, d_out] of a weight by its canonical shape."""
    if len(shape) == 2:
        return shape[0], shape[1]
    heads, first, second = shape
    return (heads * first, second) if name.endswith("W_O") else (first, heads * second)


def _inputs(
    evidence: Evidence, m: Linear, using: Callable[..., Callable[[Scene], Predicted]]
) -> Iterator[Proposal]:
    """The map reads something else than it should."""
    fam = evidence.family
    norm = {"attn": fam.ln1, "mlp": fam.ln1 if fam.mlp_reads_ln1 else fam.ln2}
    part = m.weight.split(".")[0]
    if m.weight.endswith(("W_O", "W_out")):
        return
    if fam.shortformer and part == "attn":
        if m.weight == "attn.W_V":
            yield Proposal(
                "positions_in_values",
                "reads positions too; the checkpoint adds them for queries and keys alone",
                using(x=_with_positions),
            )
        else:
            yield Proposal(
                "positions_missing", "reads what it is given without positions", using(x=_as_given)
            )
        return
    if norm[part] is not None:
        stream = "resid_mid" if part == "mlp" and not fam.parallel else "resid_pre"
        yield Proposal(
            "norm_skipped",
            "reads the residual stream without its norm",
            using(x=lambda s: s.truth(stream)),
        )
    if part != "mlp":
        return
    if fam.parallel:
        yield Proposal(
            "sequential",
            "reads attention's output too; the checkpoint's attention and MLP are parallel",
            using(x=lambda s: s.input("mlp") + s.truth("attn_out")),
        )
    elif fam.ln2 is None:
        yield Proposal(
            "parallel",
            "reads the stream before attention; the checkpoint's MLP comes after attention",
            using(x=lambda s: s.truth("resid_pre")),
        )


def _layouts(evidence: Evidence, m: Linear) -> Iterator[Proposal]:
    """A fused projection is split as another architecture's would be."""
    fam, d = evidence.family, evidence.dims
    if fam.qkv is None:
        return
    words = {
        "concat": "all queries, all keys, all values",
        "per_head": "query, key, value of each head in turn",
        "grouped": "queries, key, value of each group in turn",
    }
    for layout, what in words.items():
        if layout == fam.qkv_layout or (layout == "per_head" and d.group > 1):
            continue
        if layout == "grouped" and d.group == 1 and fam.qkv_layout == "per_head":
            continue  # the same

        def predict(scene: Scene, layout: str = layout) -> Predicted:
            # The fused output itself does not depend on how it is split.
            q, k, v = (scene.truth(f"attn.{x}") for x in "qkv")
            whole = _joined(q, k, v, fam.qkv_layout)
            changed = dataclasses.replace(fam, qkv_layout=layout)  # type: ignore[arg-type]
            parts = split_fused(whole, changed, d)
            return {m.kind: parts["qkv".index(m.kind[-1])]}

        yield Proposal(
            "qkv_layout",
            f"splits the fused projection as {what}; the checkpoint's is {words[fam.qkv_layout]}",
            predict,
        )


def _joined(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> torch.Tensor:
    """The inverse of :func:`conformance.weights.split_fused`."""
    import torch

    if layout == "concat":
        return torch.cat([t.flatten(-2) for t in (q, k, v)], dim=-1)
    if layout == "per_head":
        return torch.stack([q, k, v], dim=-2).flatten(-3)
    if layout == "quarters":
        return torch.stack([t.unflatten(-2, (4, -1)) for t in (q, v, k)], dim=-3).flatten(-4)
    groups = q.unflatten(-2, (k.shape[-2], -1))
    return torch.cat([groups, k.unsqueeze(-2), v.unsqueeze(-2)], dim=-2).flatten(-3)
