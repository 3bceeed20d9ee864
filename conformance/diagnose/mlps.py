"""MLPs: activations, gates, and mixtures of experts with their routers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from conformance.bounds import same_number
from conformance.diagnose import facts
from conformance.diagnose.facts import ACTIVATIONS, TEN_DIGITS
from conformance.diagnose.registry import Fitted, Proposal, Step, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.diagnose.evidence import Evidence, Scene
    from conformance.diagnose.registry import Predicted

#: Pairs of experts that are tried for having changed places.
_PAIRS = 300
_CLAMPS = (1.0, 5.0, 6.0, 7.0, 10.0)
#: A limit that nothing feels.
UNLIMITED = 1e12


def post_step(evidence: Evidence) -> Step | None:
    """The formula of the activation, ``mlp.post`` from ``mlp.pre``."""
    fam = evidence.family
    try:
        own = facts.activation(evidence.config, fam)
    except KeyError:
        return None

    def by(
        name: str, *, swapped: bool = False, gate: bool = True, normed: bool = True
    ) -> Callable[[Scene], Predicted]:
        act = ACTIVATIONS[name]

        def predict(scene: Scene) -> Predicted:
            pre = scene.truth("mlp.pre")
            up = scene.truth("mlp.pre_linear") if fam.gated else None
            if up is not None and swapped:
                pre, up = up, pre
            neurons = act(pre) if up is None or not gate else act(pre) * up
            if fam.down_norm and normed:
                w, b = (scene.weight(f"mlp.down_norm.{part}") for part in "wb")
                neurons = facts.norm(evidence.config, fam)(neurons, w, b)
            return {"mlp.post": neurons}

        return predict

    def limited(scene: Scene, limit: float) -> Predicted:
        value = by(own)(scene)["mlp.post"]
        return {"mlp.post": value.clamp(max=limit)}

    def proposals() -> Iterator[Proposal | Fitted]:
        for name in ACTIVATIONS:
            if name != own:
                yield Proposal(
                    "activation",
                    f"applies {name}; the checkpoint says {own}",
                    by(name),
                    implies=("hook_shows_other",) if name == "no activation" else (),
                    variant=name == TEN_DIGITS,
                )
        if fam.gated:
            yield Proposal(
                "gate_up_swapped",
                "activates the up projection and not the gate",
                by(own, swapped=True),
            )
            yield Proposal(
                "gate_skipped", "is not multiplied by the up projection", by(own, gate=False)
            )
        if fam.down_norm:
            yield Proposal("norm_skipped", "is not normalised", by(own, normed=False))
        yield from _clamps(evidence, limited, own, by)

    return Step("the MLP's activation", by(own), proposals())


def _clamps(
    evidence: Evidence,
    limited: Callable[[Scene, float], Predicted],
    own: str,
    by: Callable[[str], Callable[[Scene], Predicted]],
) -> Iterator[Proposal]:
    """Activations clamped at the largest (smallest) value that the subject shows."""
    assert evidence.site is not None
    shown = [evidence.subject(name, evidence.site) for name in evidence.prompts]
    found = [t for t in shown if t is not None and t.numel()]
    if not found:
        return
    top, bottom = max(float(t.max()) for t in found), min(float(t.min()) for t in found)

    def both(scene: Scene) -> Predicted:
        return {"mlp.post": by(own)(scene)["mlp.post"].clamp(bottom, top)}

    says = "the checkpoint's is not"
    yield Proposal(
        "activation_clamped",
        f"is clamped to at most {number(top)}; {says}",
        lambda s: limited(s, top),
    )
    if bottom < 0 and same_number(bottom, -top):
        yield Proposal(
            "activation_clamped", f"is clamped to plus and minus {number(top)}; {says}", both
        )


# --- experts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experts:
    """A mixture of experts, y = sum over chosen experts e of weight_e expert_e(x).

    Attributes:
        k: experts a token.
        normalised: weights of the chosen sum to one; else a softmax over all experts.
        order: weights of the chosen, largest first, or as permuted: ``reversed``; or ``alike``.
        places: which expert's weights stand in each place.
        activation: of the gate.
        alpha, limit: of gpt-oss' activation, or None: the gate times sigmoid(alpha gate), both
            clamped to ``limit``, times 1 + up.
        shift: added to up.
        swapped: gate and up change places.
        biased: experts add their biases.
        inside: the weight multiplies the expert's input, not its output.
        scores: how logits become weights.
        shared: the expert that every token uses is weighted by its gate, added as it is, or
            left out.
    """

    k: int
    normalised: bool
    activation: str
    alpha: float | None
    limit: float | None
    shift: float
    order: Literal["ranked", "reversed", "alike", "one"] = "ranked"
    places: tuple[int, int] | None = None
    swapped: bool = False
    biased: bool = True
    inside: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    shared: Literal["gated", "plain", "none"] = "gated"


def experts_rule(evidence: Evidence) -> Experts:
    """The checkpoint's own mixture.

    Raises:
        KeyError: it is of a kind that has no formula here.
    """
    config, fam = evidence.config, evidence.family
    k = facts.first(config, "num_experts_per_tok", "experts_per_token")
    if k is None:
        raise KeyError("how many experts a token has is not stated")
    oss = fam.expert_layout == "interleaved_in_out"
    return Experts(
        k=int(k),
        normalised=bool(facts.first(config, "norm_topk_prob", default=True)),
        activation=facts.activation(config, fam),
        alpha=float(facts.first(config, "swiglu_alpha", default=1.702)) if oss else None,
        limit=float(facts.first(config, "swiglu_limit", default=7.0)) if oss else None,
        shift=1.0 if oss else 0.0,
    )


def _chosen(logits: torch.Tensor, rule: Experts) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and numbers of the chosen experts, [token, k] each."""
    top, at = logits.topk(rule.k, dim=-1)
    if rule.scores == "sigmoid":
        weights = top.sigmoid()
        if rule.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
    elif rule.normalised:
        weights = top.softmax(-1)
    else:
        weights = logits.softmax(-1).gather(-1, at)
    if rule.order == "reversed":
        weights = weights.flip(-1)
    elif rule.order == "alike":
        weights = torch.full_like(weights, 1 / rule.k)
    elif rule.order == "one":
        weights = torch.ones_like(weights)
    return weights, at


def _expert(scene: Scene, rule: Experts, where: str, x: torch.Tensor) -> torch.Tensor:
    def part(name: str) -> torch.Tensor | None:
        return scene.weight(f"{where}.{name}")

    def through(w: torch.Tensor | None, b: torch.Tensor | None, t: torch.Tensor) -> torch.Tensor:
        assert w is not None
        y = t @ w
        return y if b is None or not rule.biased else y + b

    gate = through(part("W_gate"), part("b_gate"), x)
    up = through(part("W_in"), part("b_in"), x)
    if rule.swapped:
        gate, up = up, gate
    if rule.limit is not None:
        gate, up = gate.clamp(max=rule.limit), up.clamp(-rule.limit, rule.limit)
    if rule.alpha is not None:
        gate = gate * torch.sigmoid(rule.alpha * gate)
    else:
        gate = ACTIVATIONS[rule.activation](gate)
    return through(part("W_out"), part("b_out"), gate * (up + rule.shift))


def _mixture(scene: Scene, rule: Experts, kind: str) -> Predicted:
    x = scene.input("mlp")
    tokens = x.reshape(-1, x.shape[-1])
    logits = scene.truth("mlp.router_logits")
    weights, at = _chosen(logits, rule)
    total = torch.zeros_like(tokens)
    # What an expert computes does not depend on how experts are chosen and weighted.
    inner = (rule.activation, rule.alpha, rule.limit, rule.shift, rule.swapped, rule.biased)
    for e in sorted(set(at.flatten().tolist())):
        rows, ranks = (at == e).nonzero(as_tuple=True)
        place = e
        if rule.places is not None and e in rule.places:
            place = rule.places[1 - rule.places.index(e)]
        w = weights[rows, ranks, None]
        if rule.inside:
            part = _expert(scene, rule, f"mlp.experts.{place}", tokens[rows] * w)
        else:
            whole = scene.once(
                ("expert", place, inner),
                lambda place=place: _expert(  # type: ignore[misc]
                    scene, rule, f"mlp.experts.{place}", tokens
                ),
            )
            part = whole[rows] * w
        total.index_add_(0, rows, part)
    if scene.evidence.family.shared and rule.shared != "none":
        part = _expert(scene, rule, "mlp.shared", tokens)
        gate = scene.weight("mlp.W_shared")
        if gate is not None and rule.shared == "gated":
            part = part * torch.sigmoid(tokens @ gate)
        total = total + part
    return {kind: total.reshape(x.shape)}


def experts_step(evidence: Evidence, kind: str) -> Step | None:
    """The formula of a mixture of experts."""
    try:
        rule = experts_rule(evidence)
    except KeyError:
        return None
    n = evidence.dims.n_experts

    def by(**changes: Any) -> Callable[[Scene], Predicted]:
        changed = dataclasses.replace(rule, **changes)
        return lambda s: _mixture(s, changed, kind)

    def proposals() -> Iterator[Proposal | Fitted]:
        sums = "sum to one" if rule.normalised else "come from a softmax over all experts"
        other = "come from a softmax over all experts" if rule.normalised else "sum to one"
        yield Proposal(
            "router_renormalisation",
            f"weights the chosen experts with weights that {other}; the checkpoint's {sums}",
            by(normalised=not rule.normalised),
        )
        for k in range(max(1, rule.k - 2), min(n, rule.k + 2) + 1):
            if k == rule.k:
                continue
            for normalised in (rule.normalised, not rule.normalised):
                how = "" if normalised == rule.normalised else f", with weights that {other}"
                yield Proposal(
                    "router_top_k",
                    f"chooses {k} experts a token{how}; the checkpoint says {rule.k}",
                    by(k=k, normalised=normalised),
                )
        if rule.k > 1:
            yield Proposal(
                "router_weights_order",
                "gives the weights of the chosen experts to one another, in reverse order",
                by(order="reversed"),
            )
            yield Proposal("router_uniform", "weights the chosen experts alike", by(order="alike"))
        yield Proposal("router_uniform", "adds the chosen experts unweighted", by(order="one"))
        for normalised in (True, False):
            yield Proposal(
                "router_sigmoid",
                "weights the chosen experts by a sigmoid; the checkpoint's is a softmax",
                by(scores="sigmoid", normalised=normalised),
            )
        yield Proposal(
            "router_weight_inside", "multiplies each expert's input by its weight", by(inside=True)
        )
        yield Proposal("gate_up_swapped", "activates each expert's up projection", by(swapped=True))
        if evidence.family.shared:
            yield Proposal(
                "shared_expert_dropped", "leaves out the shared expert", by(shared="none")
            )
            yield Proposal(
                "shared_expert_not_weighted",
                "adds the shared expert without its gate's weight",
                by(shared="plain"),
            )
        yield from _activations(evidence, rule, by)
        for pair in _pairs(n):
            yield Proposal(
                "experts_swapped",
                f"has experts {pair[0]} and {pair[1]} in each other's place",
                by(places=pair),
            )

    return Step("the mixture of experts", by(), proposals())


def _activations(
    evidence: Evidence, rule: Experts, by: Callable[..., Callable[[Scene], Predicted]]
) -> Iterator[Proposal | Fitted]:
    if rule.limit is not None and rule.alpha is not None:
        limit, alpha = rule.limit, rule.alpha
        yield Proposal(
            "swiglu_limit",
            f"does not clamp the experts' activations; the checkpoint's limit is {number(limit)}",
            by(limit=UNLIMITED),
        )
        yield Fitted(
            "swiglu_limit",
            lambda t: (
                f"clamps the experts' activations to {number(t)}; "
                f"the checkpoint's limit is {number(limit)}"
            ),
            lambda s, t: by(limit=t)(s),
            limit,
            _CLAMPS,
        )
        yield Fitted(
            "swiglu_alpha",
            lambda t: (
                f"scales the experts' sigmoid by {number(t)}; the checkpoint says {number(alpha)}"
            ),
            lambda s, t: by(alpha=t)(s),
            alpha,
            (1.0, 1.5, 2.0),
        )
        yield Proposal(
            "swiglu_shift", "does not add 1 to the experts' up projection", by(shift=0.0)
        )
        yield Proposal("bias_skipped", "leaves out the experts' biases", by(biased=False))
        return
    for name in ACTIVATIONS:
        if name != rule.activation:
            yield Proposal(
                "activation",
                f"applies {name} inside experts; the checkpoint says {rule.activation}",
                by(activation=name),
                variant=name == TEN_DIGITS,
            )


def _pairs(n: int) -> Iterator[tuple[int, int]]:
    """Pairs of experts, neighbours first."""
    found = [(i, i + gap) for gap in range(1, n) for i in range(n - gap)]
    yield from found[: max(_PAIRS, 0)]


def router_step(evidence: Evidence) -> Step:
    """The formula of a router's logits."""

    def by(*, biased: bool = True, raw: bool = False) -> Callable[[Scene], Predicted]:
        def predict(scene: Scene) -> Predicted:
            w, b = scene.weight("mlp.W_router"), scene.weight("mlp.b_router")
            assert w is not None
            x = scene.truth("resid_mid") if raw else scene.input("mlp")
            y = x.reshape(-1, x.shape[-1]) @ w
            return {"mlp.router_logits": y if b is None or not biased else y + b}

        return predict

    def proposals() -> Iterator[Proposal]:
        yield Proposal("bias_skipped", "leaves out the router's bias", by(biased=False))
        if not evidence.family.parallel:
            yield Proposal(
                "norm_skipped", "reads the residual stream without its norm", by(raw=True)
            )

    return Step("the router's logits", by(), proposals())
