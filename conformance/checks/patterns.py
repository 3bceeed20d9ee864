"""What must hold between a port's own views of attention, entry by entry.

``activations`` compares each view with the reference's, where the reference has something to
compare with: not what a mask forbids, nor below its bound. Here a port's views are held against
each other: a pattern that leaks 1e-30 to the future, a mask that the scores do not show, a ``z``
that is not this pattern's mix of these values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.bounds import MASKED_BELOW
from conformance.checks.base import Check, Context, identical, same, structure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from conformance.diagnose.evidence import Scene, Weights
    from conformance.diagnose.formulas import Formula
    from conformance.experiments.store import Stored
    from conformance.prompts import Prompt
    from conformance.records import Comparison

#: A short prompt, one with padding, and one past any sliding window (left out of large models).
_PROMPTS = ("sixteen", "padded_left", "long")
_LONG = "long"

_KINDS = ("q", "k", "v", "q_normed", "k_normed", "rot_q", "rot_k", "scores", "pattern", "z")

Views = dict[str, "torch.Tensor"]


class Patterns(Check):
    """Rows of a pattern sum to 1 (with attention sinks: to what the sink leaves); nothing above
    the diagonal, outside the window or on padding; scores = scale q.k under cap, alibi and mask;
    pattern = softmax(scores); z = pattern @ v.

    A view that the port does not show is the reference's here.
    """

    name: ClassVar[str] = "patterns"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        from conformance.diagnose.evidence import Weights

        scope = context.scope
        self.metrics.update(scope.said())
        hidden = context.subject.expected_hooks()[1]
        taken = {kind: why for kind, why in hidden.items() if kind.removeprefix("attn.") in _KINDS}
        if taken:
            self.metrics["taken_from_the_reference"] = taken
        made, weights = context.experiment(self.name), Weights(context.reference)
        if not any(f.attn for f in context.reference.family.every):
            self.not_applicable(self.name, "no layer has attention")
            return
        prompts = [p for p in context.reference.prompts if p.name in _PROMPTS]
        if not prompts:
            self.not_applicable(self.name, f"none of its prompts is here: {', '.join(_PROMPTS)}")
        for prompt in prompts:
            if scope.large and prompt.name == _LONG:
                continue
            shown: dict[str, Views] = {f"blocks.{i}.attn": {} for i in scope.layers}

            def keep(name: str, value: torch.Tensor, shown: dict[str, Views] = shown) -> None:
                at, _, kind = name.rpartition(".")
                if at in shown and kind in _KINDS:
                    shown[at][kind] = value.detach().clone()

            ran = False
            with self.port(f"the forward pass on {prompt.name}"):
                context.subject.run(prompt, keep)
                ran = True
            attended = [i for i in scope.layers if context.subject.family.of(i).attn]
            for layer in attended if ran else ():
                views = shown[f"blocks.{layer}.attn"]
                missing = list(_missing(context, prompt, layer, views))
                yield from missing
                if not missing:
                    formula = _formula(context, made, layer)
                    yield from _Judged(context, prompt, layer, views, formula, weights).all()


def _missing(context: Context, prompt: Prompt, layer: int, views: Views) -> Iterator[Comparison]:
    """Views that the port should show and does not, or not in the promised shape."""
    expected = context.subject.expected_hooks()[0]
    for kind in _KINDS:
        site = f"blocks.{layer}.attn.{kind}"
        if site not in expected:
            continue
        truth = context.reference.truth(prompt.name, site)
        if kind not in views:
            yield structure(site, "never fired", prompt.name)
        elif views[kind].shape != truth.shape:
            note = f"shape {tuple(views[kind].shape)}, the reference has {tuple(truth.shape)}"
            yield structure(site, note, prompt.name)


class _Judged:
    """One layer's views on one prompt."""

    def __init__(
        self,
        context: Context,
        prompt: Prompt,
        layer: int,
        views: Views,
        formula: Formula,
        weights: Weights,
    ) -> None:
        self.context, self.prompt, self.layer, self.formula = context, prompt, layer, formula
        self.at, self._weights = f"blocks.{layer}.attn", weights
        self.views = views
        self.own = self._scene(views)
        #: [batch, head (1), query, key (1)]: queries that are padding promise nothing.
        self.query = prompt.valid[:, None, :, None]

    def all(self) -> Iterator[Comparison]:
        yield from self.mask()
        yield self.rows()
        yield self.softmax()
        yield from self.scores()
        if not {"attn.v", "attn.z"} & set(self.context.reference.family.absent(self.layer)):
            yield self.mixed()

    def _view(self, kind: str) -> torch.Tensor:
        return self.own.truth(f"attn.{kind}")

    def _scene(self, views: Views) -> Scene:
        """The layer as ``views`` has it; what they lack is the reference's."""
        from conformance.diagnose.evidence import Evidence, Scene

        reference = self.context.reference

        def value(prompt: str, site: str) -> torch.Tensor:
            found = views.get(site.rpartition(".")[2])
            return reference.truth(prompt, site) if found is None else found

        evidence = Evidence(
            reference=reference,
            config=None,
            family=reference.family.of(self.layer),
            dims=reference.dims,
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
            forbidden[f"outside the window of {window}"] = back >= window
        if chunk is not None:
            forbidden[f"outside the chunk of {chunk}"] = ~same_chunk(self.prompt, chunk)
        if not bool(valid.all()):
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
            AssertionError: the formula does not even give the reference's own scores.
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
        if not self._same("scores", truth, again, keep, "", row_dims=2).ok:
            raise AssertionError(
                f"the formula of {self.at}.scores does not give the reference's own on "
                f"{self.prompt.name}: correct diagnose/facts.py"
            )

    def mixed(self) -> Comparison:
        """z is the mix of the values shown by the pattern shown."""
        from conformance.diagnose.formulas import values

        group = self.context.reference.dims.group
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


def _formula(context: Context, made: Stored, layer: int) -> Formula:
    from conformance.diagnose.facts import Norm
    from conformance.diagnose.formulas import Formula, Mask

    fam, d = context.reference.family.of(layer), context.reference.dims
    alibi = "slopes" in made
    name = f"temperature/{layer}"
    floor, slope = made[name].tolist() if name in made else (0.0, 0.0)
    return Formula(
        q_norm=None,
        k_norm=None,
        clip=made.facts["clip"],
        q_rope=None,
        k_rope=None,
        scale=float(made["scale"][layer]),
        cap=made.facts["cap"],
        slopes=made["slopes"] if alibi else None,
        mask=Mask(
            window=d.windows[layer], chunk=d.chunk(layer), indexed=fam.indexed, causal=fam.causal
        ),
        sinks=fam.sinks is not None,
        o_norm=Norm(made.facts["o_norm_eps"], centred=False, offset=0.0) if fam.o_norm else None,
        tiled=fam.tiled,
        temperature=(floor, slope) if floor else None,
    )
