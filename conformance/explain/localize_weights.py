"""Which loaded weight is not the checkpoint's: matrix, head, row, element; and where it shows."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.explain import whereabouts
from conformance.explain.explanations import Location
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from conformance.explain.survey import Survey
    from conformance.families import Family
    from conformance.records import Comparison
    from conformance.weights import Weight

#: How a weight shows first: its name without the layer -> site kind.
_SHOWS: Mapping[str, str] = {
    "embed.W_E": "embed",
    "embed.ln.w": "embed",
    "embed.ln.b": "embed",
    "embed_ln.w": "embed",
    "embed_ln.b": "embed",
    "pos_embed.W_pos": "pos_embed",
    "ln_final.w": "ln_final",
    "ln_final.b": "ln_final",
    "unembed.W_U": "logits",
    "unembed.b_U": "logits",
    **{f"attn.{x}_{u}": f"attn.{u.lower()}" for x in ("W", "b", "_W", "_b") for u in "QKV"},
    "attn.W_O": "attn.out",
    "attn.b_O": "attn.out",
    "attn.sinks": "attn.pattern",
    "attn.q_norm.w": "attn.q_normed",
    "attn.k_norm.w": "attn.k_normed",
    "ln1.w": "ln1",
    "ln1.b": "ln1",
    "ln2.w": "ln2",
    "ln2.b": "ln2",
    "ln1_post.w": "attn_out",
    "ln1_post.b": "attn_out",
    "ln2_post.w": "mlp_out",
    "ln2_post.b": "mlp_out",
    "mlp.W_gate": "mlp.pre",
    "mlp.b_gate": "mlp.pre",
    "mlp.W_in": "mlp.pre_linear",
    "mlp.b_in": "mlp.pre_linear",
    "mlp.W_out": "mlp.out",
    "mlp.b_out": "mlp.out",
    "mlp.W_router": "mlp.router_logits",
    "mlp.b_router": "mlp.router_logits",
}
#: Names of the properties that people read, as opposed to HuggingFace's ``model.layers.0...``.
_ACCESSOR = re.compile(r"model\.(blocks\.|[Wb]_)")
_AXES: Mapping[str, tuple[str, ...]] = {
    "W_Q": ("head", "d_model", "d_head"),
    "W_K": ("head", "d_model", "d_head"),
    "W_V": ("head", "d_model", "d_head"),
    "W_O": ("head", "d_head", "d_model"),
    "b_Q": ("head", "d_head"),
    "b_K": ("head", "d_head"),
    "b_V": ("head", "d_head"),
    "W_in": ("d_model", "d_mlp"),
    "W_gate": ("d_model", "d_mlp"),
    "W_out": ("d_mlp", "d_model"),
    "W_E": ("token", "d_model"),
    "W_U": ("d_model", "token"),
    "W_pos": ("position", "d_model"),
}


@dataclass
class Loaded:
    """The weights that failed their check.

    Args:
        failed: comparisons of the weights check, in its order; at least one.
    """

    survey: Survey
    failed: Sequence[Comparison]
    _sources: dict[str, str] = field(default_factory=dict)
    _expected: dict[str, Weight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from conformance.weights import canonical

        subject = self.survey.exact
        self._parameters = self.survey.reference.parameters()
        self._expected = canonical(self._parameters, subject.family, subject.dims)
        for name, weight in self._expected.items():
            self._sources.setdefault(weight.source, name)
        self._port = subject.convention(self._expected)

    def kinds(self) -> list[Location]:
        """One location for each kind of weight, the most telling first."""
        best: dict[str, Comparison] = {}
        for comparison in sorted(self.failed, key=self._rank):
            name = comparison.site or ""
            shown = self.shown_by(name)
            best.setdefault(stem(shown or name), comparison)
        found = list(best.values())
        if self._rank(found[0]) < _ACCESSOR_RANK:  # accessors show what the parameters hold
            found = [c for c in found if self._rank(c) < _ACCESSOR_RANK]
        return [self._location(c) for c in found]

    def behind(self, site: str | None) -> Location | None:
        """The weight that shows at this site first; None if that is right."""
        if site is None:
            return None
        telling = [c for c in sorted(self.failed, key=self._rank) if self._may_show(c, site)]
        if not telling:
            return None
        tied = [c for c in self.failed if c.site == "embed.W_E"]
        if self.survey.reference.tied_unembed and telling[0].site == "unembed.W_U" and tied:
            location = self._location(tied[0])
            text = f"{location.sentence}; the unembedding is the same parameter"
            return dataclasses.replace(location, sentence=text)
        return self._location(telling[0])

    def _may_show(self, comparison: Comparison, site: str) -> bool:
        name = comparison.site or ""
        if _ACCESSOR.match(name):
            return False
        return self.shown_by(name) == site

    def shown_by(self, name: str) -> str | None:
        """The site at which a weight shows first, by either side's name; None for an accessor."""
        if _ACCESSOR.match(name):
            return None
        return shown_by(self._sources.get(name, name), self.survey.exact.family)

    def _rank(self, comparison: Comparison) -> int:
        """A weight by TransformerLens's name, a raw parameter, an accessor, a fact."""
        name = comparison.site or ""
        if _ACCESSOR.match(name):
            return _ACCESSOR_RANK
        if not name:
            return _ACCESSOR_RANK + 1
        named = shown_by(name, self.survey.exact.family) is not None
        return 0 if named and comparison.judgement == "exact" else 1 if named else 2

    def _location(self, comparison: Comparison) -> Location:
        name = comparison.site or ""
        sentence, spot = comparison.note, whereabouts.Whereabouts()
        part = "a parameter that the forward pass uses"
        if _ACCESSOR.match(name):
            alone = all(_ACCESSOR.match(c.site or "") for c in self.failed)
            part = "an accessor" + ("; the parameters themselves agree" if alone else "")
        pair = self._pair(name)
        if pair is not None and pair[0].shape == pair[1].shape:
            spot = whereabouts.matrix(*pair, _axes(name, pair[0].ndim))
            sentence = spot.sentence or comparison.note
        alike = sorted({c.site for c in self.failed if c.site and stem(c.site) == stem(name)})
        layers = sorted({_layer(s) for s in alike} - {None}, key=lambda x: x or 0)
        if len(alike) > 1:
            sentence += f"; {len(alike)} weights of this kind differ"
        site = self.shown_by(name)
        return Location(
            kind="weights",
            site=name or None,
            component=None if site is None else component(site),
            part=part,
            layers=tuple(x for x in layers if x is not None) or None,
            heads=spot.heads,
            rows=spot.rows,
            sentence=sentence,
            **numbers(comparison),
        )

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The checkpoint's weight and the port's, by the port's name or HuggingFace's."""
        subject = self.survey.exact
        named: dict[str, torch.Tensor] = {}
        with contextlib.suppress(Exception):  # what the port raises is a comparison of its own
            named = subject.named_weights()
        if name in self._port and name in named:
            expected, found = self._port[name].tensor, named[name]
            group = subject.dims.group
            repeated = group > 1 and expected.shape[:1] == found.shape[:1] == (
                subject.dims.n_heads,
            )
            if repeated and name.endswith(("W_K", "W_V", "b_K", "b_V")):
                return expected[::group], found[::group]
            return expected, found
        raw = subject.raw_parameters()
        if name in self._parameters and name in raw:
            return self._parameters[name], raw[name]
        if _ACCESSOR.match(name):
            return self._accessed(name.removeprefix("model."))
        return None

    def _accessed(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What an accessor should give, and what it gives."""
        from conformance.checks.weights import _accessor_value

        subject = self.survey.exact
        get = dict(subject.accessors()).get(name)
        try:
            found = None if get is None else get()
        except Exception:
            return None  # the comparison's note says what it raised
        for grouped in (False, True):
            expected = _accessor_value(name, self._port, subject.dims, grouped=grouped)
            if expected is not None and found is not None and expected[0].shape == found.shape:
                return expected[0], found.detach()
        return None


_ACCESSOR_RANK = 3


def shown_by(weight: str, fam: Family) -> str | None:
    """The site at which a weight of TransformerLens's name shows first; None if unknown."""
    layer = _layer(weight)
    prefix = "" if layer is None else f"blocks.{layer}."
    tail = weight.removeprefix(prefix)
    kind = _SHOWS.get(tail)
    if tail.startswith("mlp.experts."):
        kind = "mlp.out"
    if kind == "mlp.pre_linear" and not fam.gated:
        kind = "mlp.pre"
    if kind == "attn.out" and not fam.ln1_post:
        kind = "attn_out"
    if kind == "mlp.out" and not fam.ln2_post:
        kind = "mlp_out"
    return None if kind is None else prefix + kind


def stem(name: str) -> str:
    """A name without its numbers."""
    return ".".join("*" if p.isdigit() else p for p in name.split("."))


def component(site: str) -> str | None:
    """The component that makes a site: ``blocks.3.attn``; None for sums of the stream."""
    where = parse(site)
    if where.component == "wiring":
        return None
    return where.component if where.layer is None else f"blocks.{where.layer}.{where.component}"


def numbers(c: Comparison) -> dict[str, Any]:
    """What a location keeps of a comparison."""
    return {
        "measured": c.measured,
        "allowed": c.allowed,
        "index": c.index,
        "reference": c.reference,
        "subject": c.subject,
        "judgement": c.judgement,
    }


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _axes(name: str, ndim: int) -> tuple[str, ...]:
    known = _AXES.get(name.rsplit(".", 1)[-1].lstrip("_"), ())
    if len(known) == ndim:
        return known
    if len(known) == ndim - 1:  # an accessor's, stacked over layers
        return ("layer", *known)
    return ("expert", "row", "column")[3 - ndim :] if ndim <= 3 else ("axis",) * ndim
