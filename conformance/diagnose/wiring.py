"""What stands between components: embedding, positions, residual sums, the head."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from conformance.bounds import same_number
from conformance.diagnose import facts
from conformance.diagnose.registry import Fitted, Proposal, Step, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.registry import Predicted

#: A cap that nothing feels.
_UNCAPPED = 1e12
_CAPS = (10.0, 15.0, 20.0, 30.0, 50.0)


# --- embedding --------------------------------------------------------------------------------


def embed_step(evidence: Evidence) -> Step:
    """The formula of the embedding, where no norm follows it."""
    width = evidence.dims.d_model
    fam = evidence.family
    scale = (math.sqrt(width) if fam.embed_scaled else 1.0) * fam.embed_multiplier

    def by(factor: float, shift: int = 0) -> Callable[[Scene], Predicted]:
        def predict(scene: Scene) -> Predicted:
            def rows() -> torch.Tensor:
                table = scene.whole("embed.W_E")
                assert table is not None
                return table[(scene.prompt.tokens + shift).clamp(0, len(table) - 1)]

            return {"embed": scene.once(("rows", shift), rows) * factor}

        return predict

    def stated(t: float) -> str:
        known = {
            f"the checkpoint's embedding is multiplied by sqrt(d_model) = {number(scale)}": 1
            / scale,
            "sqrt(d_model) rounded to bfloat16": float(torch.tensor(scale).bfloat16()) / scale,
            "sqrt(d_model), which the checkpoint's is not": math.sqrt(width) / scale,
        }
        near = (w for w, v in known.items() if same_number(v, t) and v != 1.0)
        why = next(near, None)
        what = f"is the token's row multiplied by {number(t * scale)}, not by {number(scale)}"
        return what if why is None else f"{what}: {why}"

    def proposals() -> Iterator[Proposal | Fitted]:
        yield Fitted(
            "embed_scale",
            stated,
            lambda s, t: by(scale * t)(s),
            1.0,
            (1 / scale, math.sqrt(width) / scale),
            implies=("scaled",),
        )
        for shift in (1, -1):
            yield Proposal("embed_row", f"is the row of token id {shift:+d}", by(scale, shift))

    return Step("the embedding", by(scale), proposals())


def positions_step(evidence: Evidence) -> Step:
    """The formula of learned positions."""
    offset = evidence.family.pos_offset

    def by(
        shift: int = 0, *, counts_padding: bool = False, first: int | None = 0, rows: int = offset
    ) -> Callable[[Scene], Predicted]:
        """``first``: the position that none goes below; None for the table's own beginning."""

        def predict(scene: Scene) -> Predicted:
            table = scene.whole("pos_embed.W_pos")
            assert table is not None
            at = scene.positions
            if counts_padding:
                at = torch.arange(at.shape[1]).expand(at.shape)
            at = at + shift
            at = at if first is None else at.clamp_min(first)
            return {"pos_embed": table[(at + rows).clamp(0, len(table) - 1)]}

        return predict

    def late(padding: int | None) -> Callable[[Scene], Predicted]:
        """Each token has the position before it in the batch; the first of a row its own."""

        def predict(scene: Scene) -> Predicted:
            table = scene.whole("pos_embed.W_pos")
            assert table is not None
            at = scene.positions.where(scene.prompt.valid, torch.tensor(padding or 0))
            rows = table[(at + offset).clamp(0, len(table) - 1)]
            if padding is None:
                rows = rows * scene.prompt.valid[..., None]
            return {"pos_embed": torch.cat([rows[:, :1], rows[:, :-1]], dim=1)}

        return predict

    def proposals() -> Iterator[Proposal]:
        if offset:
            yield Proposal(
                "positions_offset_missing",
                f"begins at row 0 of the table; the checkpoint's begins at row {offset}",
                by(rows=0),
                implies=("positions_shifted",),
            )
        for shift in (-1, 1, -2, 2):
            what = f"is that of position p {'+' if shift > 0 else '-'} {abs(shift)}"
            yield Proposal("positions_shifted", what, by(shift))
            yield Proposal("positions_shifted", what, by(shift, first=None))
        # Padding has position 0, or no position, or where rows are kept for it, one of its own.
        for padding in (0, None, -1) if offset else (0, None):
            yield Proposal("positions_shifted", "is that of position p - 1", late(padding))
        yield Proposal(
            "positions_count_padding", "counts padding as positions", by(counts_padding=True)
        )
        yield Proposal(
            "positions_missing",
            "is zero: positions are left out",
            lambda s: {"pos_embed": torch.zeros_like(s.truth("pos_embed"))},
        )

    return Step("learned positions", by(), proposals())


# --- the residual stream ----------------------------------------------------------------------


def sum_step(evidence: Evidence, kind: str, layer: int) -> Step | None:
    """The formula of a sum of the residual stream."""
    fam = evidence.family
    terms: tuple[str, ...]
    if kind == "resid_pre":
        if layer > 0:
            return None
        terms = fam.embeds
    elif kind == "resid_mid":
        terms = ("resid_pre", "attn_out")
    else:
        terms = (
            ("resid_pre", "attn_out") if fam.mlp is None else ("resid_pre", "attn_out", "mlp_out")
        )
        terms += ("per_layer_out",) if fam.per_layer_out else ()

    def times(scene: Scene) -> torch.Tensor | float:
        """What the block's end is multiplied by."""
        scale = None if fam.stream_scale is None else scene.weight(fam.stream_scale)
        return 1.0 if scale is None else scale

    def by(weights: dict[str, float]) -> Callable[[Scene], Predicted]:
        def predict(scene: Scene) -> Predicted:
            return carried(scene, summed(scene, weights))

        return predict

    def summed(scene: Scene, weights: dict[str, float]) -> torch.Tensor:
        total = torch.zeros_like(scene.truth(kind))
        for term in terms:
            total = total + weights.get(term, 1.0) * scene.truth(term)
        return total * times(scene) if kind == "resid_post" else total

    def carried(scene: Scene, total: torch.Tensor) -> Predicted:
        """The sum, and what the block's end then is."""
        shown = kind == "resid_mid" and evidence.shows(f"blocks.{layer}.mlp_out")
        added = scene.subject("mlp_out") if shown else None
        if added is not None and fam.per_layer_out:
            also = scene.subject("per_layer_out")
            added = None if also is None else added + also
        if added is None:
            return {kind: total}
        return {kind: total, "resid_post": (total + added) * times(scene)}

    def aside(scene: Scene) -> Predicted:
        """The MLP reads the block's input; the block's end adds everything all the same."""
        end = carried(scene, scene.truth(kind))
        return {**end, kind: scene.truth("resid_pre")}

    def part(term: str) -> Callable[[Scene, float], Predicted]:
        return lambda s, t: by({term: t})(s)

    def words(term: str) -> str:
        return {
            "resid_pre": "the block's input",
            "attn_out": "attention's output",
            "mlp_out": "the MLP's output",
            "per_layer_out": "the token's embedding of this layer",
            "embed": "the embedding",
            "pos_embed": "the position",
        }[term]

    def stated(term: str) -> Callable[[float], str]:
        return lambda t: f"adds {words(term)} with weight {number(t)}, not 1"

    def proposals() -> Iterator[Proposal | Fitted]:
        yield from _multipliers(evidence, kind, summed)
        if kind == "resid_pre" and fam.shortformer:
            yield Proposal(
                "positions_in_stream",
                "adds positions; the checkpoint adds them for queries and keys alone",
                lambda s: {kind: s.truth("embed") + s.truth("pos_embed")},
            )
        for term in terms:
            missing = "positions_missing" if term == "pos_embed" else "residual_missing"
            yield Proposal(
                missing, f"leaves out {words(term)}", by({term: 0.0}), implies=("residual_scale",)
            )
            yield Fitted(
                "residual_scale",
                stated(term),
                part(term),
                1.0,
                (0.5, 2.0, 2**-0.5),
                positive=False,
            )
        if kind == "resid_post" and fam.stream_scale:
            yield Proposal(
                "stream_scale_missing",
                f"is not multiplied by {fam.stream_scale} at the block's end",
                lambda s: {kind: summed(s, {}) / times(s)},
                implies=("residual_scale", "scaled"),
            )
        if kind == "resid_post":
            yield Fitted(
                "residual_scale",
                lambda t: f"adds the stream after attention with weight {number(t)}, not 1",
                lambda s, t: by({"resid_pre": t, "attn_out": t})(s),
                1.0,
                (0.5, 2.0),
                positive=False,
            )
        if kind == "resid_mid":
            yield Proposal(
                "parallel",
                "is the stream before attention: the MLP reads it, and the block's end adds "
                "attention's output all the same",
                aside,
                implies=("hook_shows_other",),
            )
        for norm in ("ln1", "ln2"):
            if getattr(fam, norm) and (
                kind == "resid_post" or (kind, norm) == ("resid_mid", "ln1")
            ):
                yield Proposal(
                    "residual_from_norm",
                    f"adds to the output of {norm}, not to the residual stream",
                    lambda s, norm=norm: carried(s, _from_norm(s, norm, terms)),  # type: ignore[misc]
                )

    return Step("the residual sum", lambda s: {kind: summed(s, {})}, proposals())


def _multipliers(
    evidence: Evidence,
    kind: str,
    summed: Callable[[Scene, dict[str, float]], torch.Tensor],
) -> Iterator[Proposal]:
    """What the config multiplies on its way into the stream enters it as it is."""
    fam = evidence.family
    if kind == "resid_pre" and fam.embed_multiplier != 1.0:
        times = number(fam.embed_multiplier)
        yield Proposal(
            "embed_scale",
            f"adds the embedding as it is; the checkpoint says embedding_multiplier = {times}",
            lambda s: {kind: summed(s, {"embed": 1 / fam.embed_multiplier})},
            implies=("residual_scale", "scaled"),
        )
    if kind != "resid_pre" and fam.residual_multiplier != 1.0:
        back = 1 / fam.residual_multiplier
        times = number(fam.residual_multiplier)
        yield Proposal(
            "residual_multiplier_missing",
            f"adds what a branch returns as it is; the checkpoint says residual_multiplier = "
            f"{times}",
            lambda s: {kind: summed(s, {"attn_out": back, "mlp_out": back})},
            implies=("residual_scale",),
        )


def _from_norm(scene: Scene, norm: str, terms: tuple[str, ...]) -> torch.Tensor:
    total = scene.truth(norm)
    for term in terms[1:] if norm == "ln1" else ("mlp_out",):
        total = total + scene.truth(term)
    return total


# --- the head ---------------------------------------------------------------------------------


def head_step(evidence: Evidence) -> Step:
    """The formula of the logits."""
    config = evidence.config
    cap = facts.first(config, "final_logit_softcapping")
    cap = None if cap is None else float(cap)
    scale, says_scale = facts.logit_scale(config)
    biased = "unembed.b_U" in evidence.weights

    def raw(scene: Scene, source: str) -> torch.Tensor:
        def make() -> torch.Tensor:
            if source == "embed":
                table = scene.whole("embed.W_E")
                assert table is not None
                w: torch.Tensor | None = table.T
            else:
                w = scene.whole("unembed.W_U")
            x = scene.input("ln_final" if source == "unnormed" else "unembed")
            assert w is not None
            return x @ w

        return scene.once(("raw", source), make)

    def by(
        factor: float = scale, limit: float | None = cap, *, bias: bool = True, source: str = "head"
    ) -> Callable[[Scene], Predicted]:
        def predict(scene: Scene) -> Predicted:
            y = raw(scene, source)
            b = scene.whole("unembed.b_U") if bias else None
            y = (y if b is None else y + b) * factor
            return {"logits": y if limit is None else limit * torch.tanh(y / limit)}

        return predict

    def proposals() -> Iterator[Proposal | Fitted]:
        if scale != 1.0:
            yield Proposal(
                "logit_scale_missing",
                f"are not scaled; the checkpoint says {says_scale}",
                by(1.0),
                implies=("logits_scaled", "scaled"),
            )
        before = "" if cap is None else " before they are capped"
        yield Fitted(
            "logits_scaled",
            lambda t: (
                f"are {number(t)} times the checkpoint's{before}: the head's weights, "
                "or what it returns, are scaled"
            ),
            lambda s, t: by(scale * t)(s),
            1.0,
            (0.5, 2.0, 1 / scale, evidence.dims.d_model**-0.5),
            implies=("scaled",),
        )
        if cap is not None:
            says = f"the checkpoint says {number(cap)}"
            yield Proposal("final_softcap_missing", f"are not capped; {says}", by(limit=None))
            yield Fitted(
                "final_softcap",
                lambda c: f"are capped at {number(c)}; {says}",
                lambda s, c: by(limit=c)(s),
                cap,
                _CAPS,
            )
        else:
            yield Fitted(
                "final_softcap",
                lambda c: f"are capped at {number(c)}; the checkpoint does not cap logits",
                lambda s, c: by(limit=c)(s),
                _UNCAPPED,
                _CAPS,
            )
        if biased:
            yield Proposal("bias_skipped", "leave out the head's bias", by(bias=False))
        if evidence.family.ln_final:
            yield Proposal(
                "norm_skipped",
                "are computed from the stream without the final norm",
                by(source="unnormed"),
            )
        if not evidence.reference.tied_unembed:
            yield Proposal(
                "head_tied",
                "are computed with the embedding; the checkpoint has a head of its own",
                by(source="embed"),
            )

    return Step("the head", by(), proposals())
