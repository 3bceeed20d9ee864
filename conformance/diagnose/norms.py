"""Norms: eps, centring, offset, weights and biases, or none at all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from conformance.diagnose import facts
from conformance.diagnose.registry import Fitted, Proposal, Step, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.facts import Norm
    from conformance.diagnose.registry import Predicted

EPSILONS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)

#: Kind of site -> the norm that produces it.
COMPONENTS = {
    "ln1": "ln1",
    "ln2": "ln2",
    "attn_out": "ln1_post",
    "mlp_out": "ln2_post",
    "ln_encoder": "ln_encoder",
    "ln_final": "ln_final",
    "embed": "embed_ln",
}
#: Component -> what a family calls its path, where that is another name.
_FIELDS = {"ln_encoder": "encoder_ln_final"}


def component(evidence: Evidence, kind: str) -> str | None:
    """The norm whose output a kind of site shows, if it shows one's."""
    name = COMPONENTS.get(kind)
    if name is None or getattr(evidence.family, _FIELDS.get(name, name)) is None:
        return None
    return name


def norm_step(evidence: Evidence, kind: str, name: str, layer: int | None) -> Step:
    """The formula of a norm."""
    rule = facts.norm(evidence.config, evidence.family)

    def x(scene: Scene) -> torch.Tensor:
        if name == "embed_ln":
            return scene.once("rows", lambda: _rows(scene))
        return scene.input(name)

    def own(scene: Scene, what: str) -> torch.Tensor | None:
        if layer is None:
            return scene.whole(f"{name}.{what}")
        return scene.weight(f"{name}.{what}")

    def by(changed: Norm) -> Callable[[Scene], Predicted]:
        return lambda s: {kind: changed(x(s), own(s, "w"), own(s, "b"))}

    def proposals() -> Iterator[Proposal | Fitted]:
        yield Fitted(
            "norm_eps",
            lambda eps: (
                f"behaves as if eps were {number(eps)}; the checkpoint says {number(rule.eps)}"
            ),
            lambda s, eps: by(dataclasses.replace(rule, eps=eps))(s),
            rule.eps,
            EPSILONS,
            implies=("scaled",),
        )
        yield Proposal(
            "norm_centring",
            "does not subtract the mean: it is an RMSNorm, the checkpoint's is a LayerNorm"
            if rule.centred
            else "subtracts the mean: it is a LayerNorm, the checkpoint's is an RMSNorm",
            by(dataclasses.replace(rule, centred=not rule.centred)),
        )
        prefix = name if layer is None else f"blocks.{layer}.{name}"
        if f"{prefix}.w" in evidence.weights:
            yield Proposal(
                "norm_offset",
                "multiplies by its weight; the checkpoint's norms multiply by 1 + weight"
                if rule.offset
                else "multiplies by 1 + weight; the checkpoint's norms multiply by the weight",
                by(dataclasses.replace(rule, offset=1.0 - rule.offset)),
            )
            yield Proposal(
                "norm_weight_skipped",
                "normalises, but does not multiply by its weight",
                lambda s: {kind: rule(x(s), None, own(s, "b"))},
            )
        if f"{prefix}.b" in evidence.weights:
            yield Proposal(
                "bias_skipped",
                "leaves out the norm's bias",
                lambda s: {kind: rule(x(s), own(s, "w"))},
            )
        yield Proposal(
            "norm_skipped",
            "is the norm's input: the norm is left out",
            lambda s: {kind: x(s)},
            implies=("hook_shows_other",),
        )
        yield Proposal(
            "norm_variance",
            "divides by the standard deviation of a sample (n - 1)",
            lambda s: {kind: _sample(rule, x(s), own(s, "w"), own(s, "b"))},
        )
        yield from _other_weights(evidence, kind, name, layer, rule, x)
        yield from _other_input(evidence, kind, name, rule, own)

    return Step(f"the norm {name}", by(rule), proposals())


def _rows(scene: Scene) -> torch.Tensor:
    table = scene.whole("embed.W_E")
    assert table is not None
    return table[scene.prompt.tokens]


def _sample(
    rule: Norm, x: torch.Tensor, w: torch.Tensor | None, b: torch.Tensor | None
) -> torch.Tensor:
    if rule.centred:
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().sum(-1, keepdim=True) / (x.shape[-1] - 1) + rule.eps).sqrt()
    if w is not None:
        y = y * (rule.offset + w)
    return y if b is None else y + b


def _other_weights(
    evidence: Evidence,
    kind: str,
    name: str,
    layer: int | None,
    rule: Norm,
    x: Callable[[Scene], torch.Tensor],
) -> Iterator[Proposal]:
    """The weights of another norm of the block, or of the same norm of another block."""
    if layer is None:
        return

    def using(prefix: str) -> Callable[[Scene], Predicted]:
        return lambda s: {kind: rule(x(s), s.whole(f"{prefix}.w"), s.whole(f"{prefix}.b"))}

    for other in ("ln1", "ln1_post", "ln2", "ln2_post"):
        prefix = f"blocks.{layer}.{other}"
        if other != name and f"{prefix}.w" in evidence.weights:
            yield Proposal("norm_shared", f"uses the weights of {prefix}", using(prefix))
    for at in range(evidence.dims.n_layers):
        prefix = f"blocks.{at}.{name}"
        if at != layer and f"{prefix}.w" in evidence.weights:
            yield Proposal("weights_of_layer", f"uses the weights of {prefix}", using(prefix))


def _other_input(
    evidence: Evidence,
    kind: str,
    name: str,
    rule: Norm,
    own: Callable[[Scene, str], torch.Tensor | None],
) -> Iterator[Proposal]:
    """The MLP's norm reads the stream before or after attention."""
    if name != "ln2":
        return

    def reading(get: Callable[[Scene], torch.Tensor]) -> Callable[[Scene], Predicted]:
        return lambda s: {kind: rule(get(s), own(s, "w"), own(s, "b"))}

    if evidence.family.parallel:
        yield Proposal(
            "sequential",
            "reads the stream after attention; the checkpoint's attention and MLP are parallel",
            reading(lambda s: s.truth("resid_pre") + s.truth("attn_out")),
        )
    else:
        yield Proposal(
            "parallel",
            "reads the stream before attention; the checkpoint's MLP comes after attention",
            reading(lambda s: s.truth("resid_pre")),
        )
    yield Proposal(
        "residual_missing",
        "reads attention's output without the residual stream",
        reading(lambda s: s.truth("attn_out")),
    )
