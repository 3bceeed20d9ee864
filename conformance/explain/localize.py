"""Where a port first goes wrong: the component, or the wiring between two sites, or the weights.

With every component fed the reference's own input nothing accumulates, so a site that differs is
wrong on its own; of those that depend on each other the first is the one. What agrees then but
not in an ordinary pass is wired wrongly.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance import profiles
from conformance.bounds import SAME, about
from conformance.explain import whereabouts
from conformance.explain.explanations import Location
from conformance.explain.localize_weights import Loaded, component, numbers, stem
from conformance.explain.survey import Survey, failures
from conformance.sites import computation_order, parse
from conformance.variants import ISOLATION_PROMPTS
from conformance.verdicts import first_divergence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from conformance.checks.base import PassMode
    from conformance.families import Family
    from conformance.implementations.lens_model import LensModel
    from conformance.records import Comparison

#: Site kind -> the kinds it is computed from within its component, nearest last.
_FROM: Mapping[str, tuple[str, ...]] = {
    "attn.q_normed": ("attn.q",),
    "attn.k_normed": ("attn.k",),
    "attn.rot_q": ("attn.q", "attn.q_normed"),
    "attn.rot_k": ("attn.k", "attn.k_normed"),
    "attn.scores": ("attn.q_normed", "attn.k_normed", "attn.rot_q", "attn.rot_k"),
    "attn.pattern": ("attn.scores",),
    "attn.z": ("attn.v", "attn.pattern"),
    "attn.out": ("attn.z",),
    "attn_out": ("attn.z", "attn.out"),
    "cross_attn.scores": ("cross_attn.q", "cross_attn.k"),
    "cross_attn.pattern": ("cross_attn.scores",),
    "cross_attn.z": ("cross_attn.v", "cross_attn.pattern"),
    "cross_attn_out": ("cross_attn.z",),
    "mlp.post": ("mlp.pre", "mlp.pre_linear"),
    "mlp.out": ("mlp.router_logits", "mlp.post"),
    "mlp_out": ("mlp.router_logits", "mlp.post", "mlp.out"),
    "resid_mid": ("attn_out",),
    "resid_cross": ("cross_attn_out",),
    "resid_post": ("attn_out", "resid_mid", "cross_attn_out", "resid_cross", "mlp_out"),
}

#: The same across components, for an ordinary pass.
_ACROSS: Mapping[str, tuple[str, ...]] = {
    "ln1": ("resid_pre",),
    "attn.q": ("resid_pre", "ln1"),
    "attn.k": ("resid_pre", "ln1"),
    "attn.v": ("resid_pre", "ln1"),
    "resid_mid": ("resid_pre", "attn_out"),
    "ln_cross": ("resid_mid",),
    "cross_attn.q": ("resid_mid", "ln_cross"),
    "resid_cross": ("resid_mid", "cross_attn_out"),
    "ln2": ("resid_pre", "resid_mid", "resid_cross"),
    "mlp.router_logits": ("resid_pre", "ln1", "resid_mid", "resid_cross", "ln2"),
    "mlp.pre": ("resid_pre", "ln1", "resid_mid", "resid_cross", "ln2"),
    "mlp.pre_linear": ("resid_pre", "ln1", "resid_mid", "resid_cross", "ln2"),
    "resid_post": ("resid_pre", "attn_out", "resid_mid", "resid_cross", "mlp_out"),
}

#: What makes a site, in words.
PARTS: Mapping[str, str] = {
    "embed": "token embedding",
    "pos_embed": "position embedding",
    "resid_pre": "residual stream into the block",
    "ln1": "norm before attention",
    "attn.q": "query projection",
    "attn.k": "key projection",
    "attn.v": "value projection",
    "attn.q_normed": "norm of the queries",
    "attn.k_normed": "norm of the keys",
    "attn.rot_q": "rotary embedding of the queries",
    "attn.rot_k": "rotary embedding of the keys",
    "attn.scores": "attention scores (scale, bias, softcap)",
    "attn.pattern": "softmax of the attention scores",
    "attn.z": "values weighted by the pattern",
    "attn.out": "output projection of attention",
    "attn_out": "output projection of attention",
    "resid_mid": "sum of the residual stream and attention",
    "ln_cross": "norm before attention to the encoder",
    "cross_attn.q": "query projection of attention to the encoder",
    "cross_attn.k": "key projection of the encoder's output",
    "cross_attn.v": "value projection of the encoder's output",
    "cross_attn.scores": "scores of attention to the encoder",
    "cross_attn.pattern": "softmax of the scores of attention to the encoder",
    "cross_attn.z": "the encoder's values weighted by the pattern",
    "cross_attn_out": "output projection of attention to the encoder",
    "resid_cross": "sum of the residual stream and attention to the encoder",
    "ln2": "norm before the MLP",
    "mlp.router_logits": "router",
    "mlp.pre": "up projection of the MLP",
    "mlp.pre_linear": "up projection of the MLP",
    "mlp.post": "activation of the MLP",
    "mlp.out": "down projection of the MLP",
    "mlp_out": "down projection of the MLP",
    "resid_post": "sum at the end of the block",
    "ln_encoder": "norm after the encoder",
    "ln_final": "final norm",
    "logits": "unembedding",
}
MASK = "attention mask"


@dataclass(frozen=True)
class Finding:
    """What localisation found.

    Attributes:
        location: the first difference; kind ``none`` if there is none.
        others: further ones that do not follow from it.
        site: the first diverging site of the forward pass, for diagnosis; None if there is none.
        prompt: the prompt that shows it.
        mode: the kind of pass in which the site is wrong.
        notes: what a reader should know besides.
        of_site: whether it is the error of the site itself: in a dtype, what many entries share
            of it, or a choice, may be judged besides.
    """

    location: Location
    others: tuple[Location, ...] = ()
    site: str | None = None
    prompt: str | None = None
    mode: PassMode = "plain"
    notes: tuple[str, ...] = ()
    of_site: bool = True


@dataclass
class Localizer:
    """Looks for the first difference in a :class:`~conformance.explain.survey.Survey`."""

    survey: Survey
    #: Prompts that precision is not isolated on: long ones take most of the time.
    sparing: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    @property
    def family(self) -> Family:
        return self.survey.exact.family

    def function(self) -> Finding | None:
        """A difference in promoted float64, weights included; None if there is none."""
        weights = failures(self.survey.weights())
        found = self._forward()
        if not weights:
            return found
        return self._with_weights(weights, found)

    def precision(self, used: LensModel) -> Finding | None:
        """A loss of precision in the dtype that users run; None if there is none."""
        names = [p.name for p in self.survey.reference.prompts]
        isolated = [n for n in names if n in ISOLATION_PROMPTS and n not in self.sparing]
        passes: list[tuple[PassMode, str]] = [
            *(("components", n) for n in isolated[:1]),
            *(("plain", n) for n in names),
            *((mode, n) for n in isolated for mode in _ISOLATED),
        ]
        for mode, prompt in passes:
            failed = failures(self.survey.run(mode, prompt, used))
            if not failed:
                continue
            if mode == "plain" and prompt in isolated:
                forced = failures(self.survey.run("components", prompt, used))
                mode, failed = ("components", forced) if forced else (mode, failed)
            return self._precise(mode, prompt, failed)
        return None

    # --- the forward pass ---

    def _forward(self) -> Finding | None:
        agreeing: list[str] = []
        for prompt in (p.name for p in self.survey.reference.prompts):
            failed = failures(self.survey.run("plain", prompt))
            if not failed:
                agreeing.append(prompt)
                continue
            if agreeing:
                self.notes.append(_contrast(prompt, agreeing))
            crash = next((c for c in failed if c.site is None), None)
            if crash is not None:
                return Finding(
                    Location(
                        "structure", prompt=prompt, sentence=crash.note, judgement="structure"
                    ),
                    prompt=prompt,
                    notes=tuple(self.notes),
                )
            return self._diverging(prompt, failed)
        return None

    def _diverging(self, prompt: str, failed: Sequence[Comparison]) -> Finding:
        forced = self.survey.run("components", prompt)
        wrong = {c.site: c for c in failures(forced) if c.site is not None}
        plain = {c.site: c for c in failed if c.site is not None}
        shown = {c.site for c in self.survey.run("plain", prompt) if c.site is not None}
        roots = self._roots(wrong, shown, forced=True)
        first = first_divergence(list(plain.values()), self.family.order)
        assert first is not None
        silent = [c for c in plain.values() if c.judgement == "structure"]
        if silent and first not in wrong:
            return self._silent(prompt, first, plain[first], silent)
        if roots and (first in wrong or self._sorted([first, roots[0]])[0] == roots[0]):
            others = self._others(roots, wrong, prompt)
            location = self._component(roots[0], roots, wrong, prompt)
            return Finding(
                location, others, roots[0], prompt, "components", notes=tuple(self.notes)
            )
        location = self._wiring(first, plain, shown, prompt)
        others = self._others(["", *roots], wrong, prompt)
        return Finding(location, others, first, prompt, "plain", notes=tuple(self.notes))

    def _sorted(self, sites: list[str]) -> list[str]:
        return computation_order(sites, self.family.order)

    def _roots(self, wrong: Mapping[str, Any], shown: set[str], *, forced: bool) -> list[str]:
        """Sites that are wrong though everything shown that they are computed from is right."""
        places = self._sorted(list(wrong))
        return [s for s in places if not any(a in wrong for a in self._before(s, shown, forced))]

    def _before(self, site: str, shown: set[str], forced: bool) -> set[str]:
        """The shown sites that a site is computed from, through those that are not shown."""
        where = parse(site)
        if where.layer is None:
            return set() if forced else self._before_global(site, shown)
        kinds = _FROM.get(where.kind, ())
        post = {"attn_out": self.family.ln1_post, "mlp_out": self.family.ln2_post}
        if forced and post.get(where.kind) is not None:
            return set()  # the norm after is a component of its own
        if not forced:
            kinds = _ACROSS.get(where.kind, kinds)
        found: set[str] = set()
        for kind in kinds:
            if kind in self.family.absent(where.layer):
                continue
            name = f"blocks.{where.layer}.{kind}"
            found |= {name} if name in shown else self._before(name, shown, forced)
        if forced:
            return found
        first_of_stack = where.layer in (0, self.family.encoder)
        if where.kind == "resid_pre":
            name = f"blocks.{where.layer - 1}.resid_post"
            found |= set(self.family.embeds) & shown if first_of_stack else {name} & shown
        if where.kind in ("attn.q", "attn.k") and self.family.shortformer:
            found |= {"pos_embed"} & shown
        if where.kind in ("cross_attn.k", "cross_attn.v"):
            found |= self._encoded(shown)
        return found

    def _encoded(self, shown: set[str]) -> set[str]:
        """What a decoder is given of its encoder."""
        last = f"blocks.{self.family.encoder - 1}.resid_post"
        return {"ln_encoder"} & shown or {last} & shown

    def _before_global(self, site: str, shown: set[str]) -> set[str]:
        last = f"blocks.{self.survey.exact.dims.n_layers - 1}.resid_post"
        encoded = f"blocks.{self.family.encoder - 1}.resid_post"
        found = {"ln_final": {last}, "logits": {"ln_final"}, "ln_encoder": {encoded}}
        return found.get(site, set()) & shown

    def _after(self, site: str, shown: set[str], forced: bool) -> list[str]:
        """Shown sites computed from this one directly."""
        return [name for name in shown if site in self._before(name, shown, forced)]

    def _others(
        self, roots: Sequence[str], wrong: Mapping[str, Comparison], prompt: str
    ) -> tuple[Location, ...]:
        seen = {parse(roots[0]).kind} if roots and roots[0] else set()
        others = []
        for root in roots[1:]:
            kind = parse(root).kind
            if kind not in seen:
                seen.add(kind)
                others.append(self._component(root, roots, wrong, prompt))
        return tuple(others[:4])

    def _component(
        self,
        site: str,
        roots: Sequence[str],
        wrong: Mapping[str, Comparison],
        prompt: str,
    ) -> Location:
        """A site that is wrong given the reference's own input of its component."""
        comparison = wrong[site]
        where = parse(site)
        same = [parse(r).layer for r in roots if r and parse(r).kind == where.kind]
        layers = tuple(sorted(layer for layer in same if layer is not None))
        location = Location(
            kind="wiring" if where.component == "wiring" else "component",
            site=site,
            component=component(site),
            part=self.part(site),
            layers=layers if 0 < len(layers) < self.survey.exact.dims.n_layers else None,
            prompt=prompt,
            **numbers(comparison),
        )
        if where.component == "wiring":
            shown = set(self.survey.reference.sites)
            location = dataclasses.replace(location, between=self._between(site, wrong, shown))
        hook_only = self._is_hook_only(site, wrong, forced=True)
        if comparison.judgement == "structure":
            value = self.survey.values("components", prompt, {site}).get(site)
            like = None if value is None else self._shows_another(site, prompt, value)
            text = comparison.note + (
                f"; it shows what the reference has at {like}" if like else ""
            )
            part = "a hook; what is computed from it agrees" if hook_only else location.part
            return dataclasses.replace(location, kind="structure", sentence=text, part=part)
        return self._located(location, prompt, "components", hook_only)

    def _is_hook_only(self, site: str, wrong: Mapping[str, Any], *, forced: bool) -> bool:
        shown = set(self.survey.exact.expected_hooks()[0])
        after = self._after(site, shown, forced)
        return bool(after) and not any(name in wrong for name in after)

    def _located(
        self, location: Location, prompt: str, mode: PassMode, hook_only: bool
    ) -> Location:
        """Heads, positions and rows; and what the values look like."""
        site = location.site
        assert site is not None
        values = self.survey.values(mode, prompt, {site})
        truth = self.survey.reference.truth(prompt, site)
        value = values.get(site)
        if value is None or value.shape != truth.shape:
            return location
        words = []
        if hook_only:
            location = dataclasses.replace(location, part="a hook")
            words.append("only the hook is wrong: what is computed from it agrees")
        like = self._shows_another(site, prompt, value)
        if like is not None:
            words.append(f"it shows what the reference has at {like}")
        spot = whereabouts.find(
            site,
            truth,
            value,
            self.survey.prompt(prompt).valid,
            location.allowed or 0.0,
            self.survey.exact.dims,
            self._router(site, prompt),
        )
        tokens = self._tokens(spot, prompt) if site == "embed" else ""
        if (spot.sentence or tokens) and like is None:
            words.append(tokens or spot.sentence)
        again = profiles.relative(site, truth, value, self.survey.prompt(prompt).valid).max()
        loose = site.endswith("attn.scores") and self.survey.exact.scores_up_to_a_constant
        if not hook_only and not loose and not _near(float(again), location.measured):
            words.append("the port does not give the same result twice (dropout?)")
        layers = "" if parse(site).layer is None else self._layer_words(location.layers)
        return dataclasses.replace(
            location,
            part=MASK if spot.masked else location.part,
            heads=spot.heads,
            positions=spot.positions,
            rows=spot.rows,
            sentence="; ".join([*([layers] if layers else []), *words]),
        )

    def _tokens(self, spot: whereabouts.Whereabouts, prompt: str) -> str:
        """Which tokens' embeddings are wrong, if not all of them are."""
        if spot.positions is None:
            return ""
        tokens = self.survey.prompt(prompt).tokens
        found = sorted({int(t) for t in tokens[:, list(spot.positions)].reshape(-1)})
        return f"{whereabouts.count('token', found)} only"

    def _router(self, site: str, prompt: str) -> torch.Tensor | None:
        layer = parse(site).layer
        name = f"blocks.{layer}.mlp.router_logits"
        if layer is None or name not in self.survey.reference.sites:
            return None
        return self.survey.reference.truth(prompt, name)

    def _layer_words(self, layers: tuple[int, ...] | None) -> str:
        if layers is None:
            n = self.survey.exact.dims.n_layers
            return "in every layer" if n > 1 else ""
        windows = self.survey.exact.dims.windows
        text = f"in {whereabouts.count('layer', layers)}"
        local = {i for i, w in enumerate(windows) if w is not None}
        if local and set(layers) == local and len(local) < len(windows):
            text += ", the ones with a sliding window"
        elif local and set(layers) == set(range(len(windows))) - local:
            text += ", the ones without a sliding window"
        return text

    def _shows_another(self, site: str, prompt: str, value: torch.Tensor) -> str | None:
        """Another of the reference's sites in this layer that the value is."""
        layer = parse(site).layer
        truths = {
            name: self.survey.reference.truth(prompt, name)
            for name in self.survey.reference.sites
            if name != site and parse(name).layer == layer
        }
        return whereabouts.same_as(value, truths)

    def part(self, site: str) -> str:
        """What makes a site, with what this port does not show on the way to it."""
        kind = parse(site).kind
        text = PARTS[kind]
        if kind == "mlp.pre" and self.family.gated:
            text = "gate projection of the MLP"
        if kind in ("mlp_out", "mlp.out") and self.family.moe:
            text = "experts of the MLP, or how they are weighted"
        if kind == "attn_out" and self.family.ln1_post:
            text = "norm after attention"
        if kind == "mlp_out" and self.family.ln2_post:
            text = "norm after the MLP"
        _, hidden = self.survey.exact.expected_hooks()
        on_the_way = [k for k in _chain(kind) if k in hidden and k not in self.family.absent()]
        if on_the_way:
            text += f"; or what this port does not show: {', '.join(on_the_way)}"
        return text

    # --- wiring ---

    def _wiring(
        self,
        first: str,
        plain: Mapping[str, Comparison],
        shown: set[str],
        prompt: str,
    ) -> Location:
        location = Location(
            kind="wiring",
            site=first,
            part=f"what leads to the {PARTS[parse(first).kind]}",
            between=self._between(first, plain, shown),
            layers=None if parse(first).layer is None else (parse(first).layer or 0,),
            prompt=prompt,
            **numbers(plain[first]),
        )
        fed = self._fed(first, prompt)
        if plain[first].judgement == "structure":
            return dataclasses.replace(location, kind="structure", sentence=plain[first].note)
        hook_only = self._is_hook_only(first, plain, forced=False)
        located = self._located(location, prompt, "plain", hook_only)
        if hook_only:
            return located
        said = "every component agrees when it is given the reference's own input"
        sentence = "; ".join(t for t in (said, fed, located.sentence) if t)
        return dataclasses.replace(located, sentence=sentence)

    def _between(
        self, site: str, wrong: Mapping[str, Any], shown: set[str]
    ) -> tuple[str, str] | None:
        before = [s for s in self._before(site, shown, False) if s not in wrong]
        return (self._sorted(before)[-1], site) if before else None

    def _fed(self, site: str, prompt: str) -> str:
        """What the component of a site takes as its input, if it is another of the sites."""
        name = component(site)
        if name is None:
            return ""
        own = self.survey.values("plain", prompt, (), inputs=True).get(f"in:{name}")
        right = self.survey.reference.input(prompt, name)
        if own is None or right is None or own.numel() != right.numel():
            return ""
        own = own.reshape(right.shape).double()
        if float((own - right).abs().max()) <= SAME * float(right.abs().max()):
            return ""
        layer = parse(site).layer
        truths = {
            s: self.survey.reference.truth(prompt, s)
            for s in self.survey.reference.sites
            if parse(s).axes[-1] == "d_model" and parse(s).layer in (layer, (layer or 0) - 1, None)
        }
        truths = {s: t.reshape(right.shape) for s, t in truths.items() if t.numel() == own.numel()}
        got, want = whereabouts.same_as(own, truths), whereabouts.same_as(right, truths)
        if got is not None:
            instead = f", where the reference's takes {want}" if want else ""
            return f"{name} takes {got} as its input{instead}"
        return f"{name} is given another input than the reference's"

    def _silent(
        self,
        prompt: str,
        first: str,
        comparison: Comparison,
        silent: Sequence[Comparison],
    ) -> Finding:
        names = [c.site for c in silent if c.site is not None]
        sentence = comparison.note + (f"; so do {len(names) - 1} more" if len(names) > 1 else "")
        location = Location(
            "structure",
            site=first,
            component=component(first),
            part="a hook",
            prompt=prompt,
            judgement="structure",
            sentence=sentence,
        )
        return Finding(location, (), first, prompt, "plain", notes=tuple(self.notes))

    # --- weights ---

    def _with_weights(self, failed: list[Comparison], found: Finding | None) -> Finding:
        """Weights first if they are why the forward pass differs, or if it does not."""
        loaded = Loaded(self.survey, failed)
        first, *rest = loaded.kinds()
        if found is None:
            weights = dataclasses.replace(
                first, sentence=f"{first.sentence}; every forward pass agrees"
            )
            return Finding(weights, tuple(rest[:3]), None, notes=tuple(self.notes))
        telling = loaded.behind(found.site)
        if telling is None and found.location.kind == "structure" and found.site is None:
            telling = first
        if telling is None:
            return dataclasses.replace(found, others=(*found.others, first))
        others = [w for w in rest if stem(w.site or "") != stem(telling.site or "")]
        return dataclasses.replace(
            found,
            location=dataclasses.replace(telling, prompt=found.prompt),
            others=(found.location, *found.others, *others)[:5],
        )

    # --- precision ---

    def _precise(self, mode: PassMode, prompt: str, failed: Sequence[Comparison]) -> Finding:
        wrong = {c.site: c for c in failed if c.site is not None}
        if not wrong:
            note = failed[0].note
            return Finding(
                Location("structure", prompt=prompt, judgement="structure", sentence=note),
                prompt=prompt,
            )
        shown = set(self.survey.reference.sites)
        site = (self._roots(wrong, shown, forced=mode != "plain") or self._sorted(list(wrong)))[0]
        comparison = wrong[site]
        layers = sorted(
            {
                layer
                for s in wrong
                if parse(s).kind == parse(site).kind and (layer := parse(s).layer) is not None
            }
        )
        own = (comparison.allowed or math.nan) / _fail_ratio()
        # What entries share, or a choice, says itself what it is.
        of_site = not comparison.note or comparison.note.startswith("warning")
        location = Location(
            kind="precision",
            site=site,
            component=component(site),
            part=self.part(site),
            layers=tuple(layers) if 0 < len(layers) < self.survey.exact.dims.n_layers else None,
            prompt=prompt,
            sentence=(
                f"relative rms error {comparison.measured:.2e}, "
                f"{comparison.measured / own:.3g} times the larger of the reference's own error "
                "there and its floor"
                if of_site
                else f"{comparison.measured:.2e} (allowed {comparison.allowed:.2e}) is "
                f"{comparison.note}"
            ),
            **numbers(comparison),
        )
        notes = tuple(self.notes)
        return Finding(location, (), site, prompt, mode, notes=notes, of_site=of_site)


_ISOLATED: tuple[PassMode, ...] = ("components", "blocks")


def _fail_ratio() -> float:
    from conformance.bounds import SAME_PRECISION_FAIL

    return SAME_PRECISION_FAIL


def _chain(kind: str) -> tuple[str, ...]:
    """The kinds just before a kind, within its component."""
    near = _FROM.get(kind, ())
    return tuple(k for k in near if k not in ("attn.q", "attn.k"))


def _contrast(prompt: str, agreeing: Sequence[str]) -> str:
    padded = prompt.startswith("padded") and not any(a.startswith("padded") for a in agreeing)
    why = " (padding)" if padded else " (its length)" if prompt == "long" else ""
    verb = "agrees" if len(agreeing) == 1 else "agree"
    return f"prompt {prompt} shows it{why}; {', '.join(agreeing)} {verb}"


def _near(a: float, b: float | None) -> bool:
    return b is None or about(a, b) or not math.isfinite(a + b)
