"""What must hold between a port's own views of attention, entry by entry.

``activations`` compares each view with the reference's, where the reference has something to
compare with: not what a mask forbids, nor below its bound. Here a port's views are held against
each other: a pattern that leaks 1e-30 to the future, a mask that the scores do not show, a ``z``
that is not this pattern's mix of these values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from conformance.bounds import MASKED_BELOW
from conformance.checks.base import Check, Context, identical, same, structure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from conformance.diagnose.evidence import Scene, Weights
    from conformance.diagnose.formulas import Formula
    from conformance.experiments.store import Stored
    from conformance.families import Family
    from conformance.prompts import Prompt
    from conformance.records import Comparison

#: A short prompt, one with padding, and one past any sliding window (left out of large models).
_PROMPTS = ("sixteen", "padded_left", "long")
_LONG = "long"

_KINDS = (
    *("q", "k", "v", "q_normed", "k_normed", "v_normed", "rot_q", "rot_k"),
    *("scores", "pattern", "z"),
)

Views = dict[str, "torch.Tensor"]


class Patterns(Check):
    """Rows of a pattern sum to 1 (with attention sinks: to what the sink leaves); nothing above
    the diagonal, outside the window or on padding; scores = scale q.k under cap, alibi and mask;
    pattern = softmax(scores); z = pattern @ v. The same of a decoder's attention to its encoder,
    which has no mask but the encoder's padding.

    A view that the port does not show is the reference's here.
    """

    name: ClassVar[str] = "patterns"
    of_content: ClassVar[bool] = True
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        from conformance.diagnose.evidence import Weights

        scope = context.scope
        self.metrics.update(scope.said())
        hidden = context.subject.expected_hooks()[1]
        taken = {kind: why for kind, why in hidden.items() if kind.rpartition(".")[2] in _KINDS}
        if taken:
            self.metrics["taken_from_the_reference"] = taken
        made, weights = context.experiment(self.name), Weights(context.reference)
        if not any(f.attn for f in context.reference.family.every):
            self.not_applicable(self.name, "no layer has attention")
            return
        parts = [(i, part) for i in scope.layers for part in self._parts(context, i)]
        prompts = [p for p in context.reference.prompts if p.name in _PROMPTS]
        if not prompts:
            self.not_applicable(self.name, f"none of its prompts is here: {', '.join(_PROMPTS)}")
        for prompt in prompts:
            if scope.large and prompt.name == _LONG:
                continue
            shown: dict[str, Views] = {f"blocks.{i}.{part}": {} for i, part in parts}

            def keep(name: str, value: torch.Tensor, shown: dict[str, Views] = shown) -> None:
                at, _, kind = name.rpartition(".")
                if at in shown and kind in _KINDS:
                    shown[at][kind] = value.detach().clone()

            ran = False
            with self.port(f"the forward pass on {prompt.name}"):
                context.subject.run(prompt, keep)
                ran = True
            for layer, part in parts if ran else ():
                views = shown[f"blocks.{layer}.{part}"]
                missing = list(_missing(context, prompt, layer, part, views))
                yield from missing
                if not missing:
                    formula = _formula(context, made, layer, part)
                    yield from _Judged(
                        context, prompt, (layer, part), views, formula, weights
                    ).all()

    def _parts(self, context: Context, layer: int) -> Iterator[str]:
        """Which of a layer's attentions have scores, and why others have none."""
        own, absent = context.reference.family.of(layer), context.reference.family.absent(layer)
        if own.attn and "attn.scores" in absent:
            self.not_applicable(f"blocks.{layer}.attn", absent["attn.scores"])
        elif own.attn:
            yield "attn"
        if own.cross:
            yield "cross_attn"


def _missing(
    context: Context, prompt: Prompt, layer: int, part: str, views: Views
) -> Iterator[Comparison]:
    """Views that the port should show and does not, or not in the promised shape."""
    expected = context.subject.expected_hooks()[0]
    for kind in _KINDS:
        site = f"blocks.{layer}.{part}.{kind}"
        if site not in expected:
            continue
        truth = context.reference.truth(prompt.name, site)
        if kind not in views:
            yield structure(site, "never fired", prompt.name)
        elif views[kind].shape != truth.shape:
            note = f"shape {tuple(views[kind].shape)}, the reference has {tuple(truth.shape)}"
            yield structure(site, note, prompt.name)


class _Judged:
    """One layer's views on one prompt, of attention to its own stack or to the encoder."""

    def __init__(
        self,
        context: Context,
        prompt: Prompt,
        where: tuple[int, str],
        views: Views,
        formula: Formula,
        weights: Weights,
    ) -> None:
        self.context, self.prompt, self.formula = context, prompt, formula
        self.layer, self.part = where
        self.at, self._weights = f"blocks.{self.layer}.{self.part}", weights
        self.views = views
        self.own = self._scene(views)
        #: [batch, head (1), query, key (1)]: queries that are padding promise nothing.
        self.query = prompt.valid[:, None, :, None]

    def all(self) -> Iterator[Comparison]:
        yield from self.mask()
        yield self.rows()
        yield self.softmax()
        yield from self.scores()
        fam = self.context.reference.family
        absent, own = fam.absent(self.layer), fam.of(self.layer)
        elsewhere = own.v_norm or own.kv_from is not None
        if f"{self.part}.z" not in absent and (f"{self.part}.v" not in absent or elsewhere):
            yield self.mixed()

    def _view(self, kind: str) -> torch.Tensor:
        return self.own.truth(f"attn.{kind}")

    def _scene(self, views: Views) -> Scene:
        """The layer as ``views`` has it; what they lack is the reference's."""
        from conformance.diagnose.evidence import Evidence, Scene

        reference = self.context.reference

        own = reference.family.of(self.layer)
        if self.part != "attn":
            own = _without_positions(own)

        def value(prompt: str, site: str) -> torch.Tensor:
            at, _, kind = site.rpartition(".")
            if at != f"blocks.{self.layer}.attn":
                return reference.truth(prompt, site)
            # Formulas have one name for attention, whatever it reads.
            found = views.get(kind)
            return reference.truth(prompt, f"{self.at}.{kind}") if found is None else found

        evidence = Evidence(
            reference=reference,
            config=None,
            family=own,
            dims=reference.dims.of(self.layer),
            weights=self._weights,
            site=None,
            prompts=(self.prompt.name,),
            subject=lambda *_: None,
            subject_plain=lambda *_: None,
            truth=value,
            input=lambda *_: None,
        )
        return Scene(evidence, self.prompt.name, self.layer)

    def mask(self) -> Iterator[Comparison]:
        """Bit for bit nothing where the mask forbids."""
        import torch

        from conformance.diagnose.formulas import same_chunk

        pattern, valid = self._view("pattern"), self.prompt.valid
        window, chunk = self.formula.mask.window, self.formula.mask.chunk
        n = torch.arange(pattern.shape[-1])
        back = (n[:, None] - n[None, :])[None, None]
        forbidden = {"above the diagonal": back < 0} if self.formula.mask.causal else {}
        if window is not None:
            ahead = (back <= -window) & (not self.formula.mask.causal)
            forbidden[f"outside the window of {window}"] = (back >= window) | ahead
        if chunk is not None:
            forbidden[f"outside the chunk of {chunk}"] = ~same_chunk(self.prompt, chunk)
        if self.formula.mask.padding and not bool(valid.all()):
            forbidden["on padding"] = ~valid[:, None, None, :]
        for what, where in forbidden.items():
            weight = pattern.masked_fill(~(where & self.query), 0.0)
            yield identical(
                torch.zeros_like(weight),
                weight,
                site=f"{self.at}.pattern",
                on=self.prompt.name,
                note=f"attention {what}",
            )

    def rows(self) -> Comparison:
        """Each row sums to 1 less the share of the reference's sink."""
        import torch

        sums = self._view("pattern").sum(-1)
        due = torch.ones_like(sums)
        if self.formula.sinks:
            scores = self.context.reference.truth(self.prompt.name, f"{self.at}.scores").double()
            sink = self.own.weight("attn.sinks")
            assert sink is not None
            seen = scores.logsumexp(-1)
            due = (seen - torch.logaddexp(seen, sink[:, None])).exp()
        return self._same("pattern", due, sums, self.query[..., 0], "sum of each row")

    def softmax(self) -> Comparison:
        """The pattern is the softmax of the scores shown."""
        from conformance.diagnose.formulas import softmax

        due = softmax(self.own, self._view("scores"), sinks=self.formula.sinks)
        note = "pattern = softmax(scores)"
        return self._same("pattern", due, self._view("pattern"), self.query, note)

    def scores(self) -> Iterator[Comparison]:
        """Scaled products of the q and k shown, capped, with alibi, masked where they must be.

        Raises:
            AssertionError: the formula does not even give the reference's own scores, or masks
                what has weight there.
        """
        from conformance.diagnose.formulas import Stage, compute

        due = compute(self.own, self.formula, Stage.SCORES, Stage.SCORES)["attn.scores"]
        shown, keep = self._view("scores"), (due > MASKED_BELOW) & self.query
        yield identical(
            keep.expand(shown.shape),
            (shown > MASKED_BELOW) & self.query,
            site=f"{self.at}.scores",
            on=self.prompt.name,
            note="which scores the mask leaves open",
        )
        if self.context.subject.scores_up_to_a_constant:
            due, shown = (_centred(t, keep) for t in (due, shown))
        yield self._same("scores", due, shown, keep, "scores = scaled q.k", row_dims=2)
        truth = self.context.reference.truth(self.prompt.name, f"{self.at}.scores").double()
        again = compute(self._scene({}), self.formula, Stage.SCORES, Stage.SCORES)["attn.scores"]
        pattern = self.context.reference.truth(self.prompt.name, f"{self.at}.pattern")
        forbidden = pattern.masked_fill(keep | ~self.query, 0.0)
        right = self._same("scores", truth, again, keep, "", row_dims=2).ok
        if not right or bool(forbidden.any()):
            raise AssertionError(
                f"the formula of {self.at}.scores does not give the reference's own on "
                f"{self.prompt.name}: correct diagnose/facts.py"
            )

    def mixed(self) -> Comparison:
        """z is the mix of the values shown by the pattern shown."""
        from conformance.diagnose.formulas import values

        group = self.own.evidence.dims.group
        v = values(self.own, self.formula.clip).repeat_interleave(group, dim=2)
        due, keep = self.formula.mixed(self.own, v), self.prompt.valid[:, :, None, None]
        note = "z = pattern @ v" + (", normed" if self.formula.o_norm else "")
        return self._same("z", due, self._view("z"), keep, note, row_dims=2)

    def _same(
        self,
        kind: str,
        due: torch.Tensor,
        shown: torch.Tensor,
        keep: torch.Tensor,
        note: str,
        row_dims: int = 1,
    ) -> Comparison:
        site = f"{self.at}.{kind}"
        keep = keep.expand(due.shape)
        return same(
            due.masked_fill(~keep, 0.0),
            shown.masked_fill(~keep, 0.0),
            self.context.reference.spread(self.prompt.name, site),
            site=site,
            on=self.prompt.name,
            row_dims=row_dims,
            note=note,
        )


def _centred(t: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Each row less its mean over what counts."""
    kept = t.masked_fill(~keep, 0.0)
    return kept - kept.sum(-1, keepdim=True) / keep.sum(-1, keepdim=True).clamp_min(1)


def _without_positions(own: Family) -> Family:
    """A decoder's layer as its attention to the encoder is: nothing is rotated or normed."""
    return dataclasses.replace(own, rotary=False, qk_norm=None, qk_norm_rotated=False)


def _formula(context: Context, made: Stored, layer: int, part: str) -> Formula:
    from conformance.diagnose.facts import Buckets, Norm
    from conformance.diagnose.formulas import Formula, Mask

    fam, d = context.reference.family.of(layer), context.reference.dims
    alibi = "slopes" in made
    name = f"temperature/{layer}"
    floor, slope = made[name].tolist() if name in made else (0.0, 0.0)
    placed = made.facts["buckets"][layer]
    own = Formula(
        q_norm=None,
        k_norm=None,
        clip=made.facts["clip"],
        q_rope=None,
        k_rope=None,
        scale=float(made["scale"][layer]),
        cap=made.facts["cap"],
        slopes=made["slopes"] if alibi else None,
        mask=Mask(
            window=d.windows[layer],
            padding=not fam.sees_padding,
            chunk=d.chunk(layer),
            indexed=fam.indexed,
            causal=fam.causal,
        ),
        sinks=fam.sinks is not None,
        o_norm=Norm(made.facts["o_norm_eps"], centred=False, offset=0.0) if fam.o_norm else None,
        tiled=fam.tiled,
        temperature=(floor, slope) if floor else None,
        buckets=None if placed is None else Buckets(**placed),
    )
    if part == "attn":
        return own
    return dataclasses.replace(own, mask=Mask(causal=False), buckets=None)
