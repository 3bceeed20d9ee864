"""Every site of every layer, in an ordinary forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from conformance.checks.base import Check, Context, Pass, PassMode, judge, structure
from conformance.profiles import BY_HEAD, STREAM, ByHead, ByLayer, Histograms, relative
from conformance.samples import PROMPTS, Sample
from conformance.sites import parse
from conformance.verdicts import first_divergence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conformance.records import Comparison
    from conformance.sites import Order


class Activations(Check):
    """Each hook shows what the reference computes there, on every prompt, in both judgements.

    A hook that should fire and does not, or fires twice, is a failure of the port. Sites that
    the port is known not to expose are listed in the metrics, never counted as compared.
    """

    name: ClassVar[str] = "activations"
    of_content: ClassVar[bool] = True
    modes: ClassVar[frozenset[PassMode]] = frozenset({"plain"})

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, int] = {}
        self._by_layer, self._by_head, self._sizes = ByLayer(), ByHead(), Histograms()
        self._sample: Sample | None = None

    def site(
        self, context: Context, run: Pass, name: str, value: torch.Tensor
    ) -> Iterable[Comparison]:
        self._seen[name] = self._seen.get(name, 0) + 1
        comparison = judge(context, run, name, value)
        yield comparison
        if context.recall is None and comparison.judgement != "structure":
            # Called inside a forward pass, whose promotion is none of ours.
            with torch._C.DisableTorchFunction():
                self._show(context, run, name, value, comparison)

    def _show(
        self, context: Context, run: Pass, name: str, value: torch.Tensor, comparison: Comparison
    ) -> None:
        """Keep what a report shows of a site besides its verdict."""
        reference, prompt, kind = context.reference, run.prompt, parse(name).kind
        if kind in STREAM:
            self._by_layer.see(run.dtype, kind, comparison)
        truth = reference.truth(prompt.name, name)
        if prompt.name == reference.prompts[0].name:
            differences = relative(name, truth, value, prompt.valid)
            self._sizes.see(run.dtype, name, differences)
            if run.exact and kind in BY_HEAD:
                self._by_head.see(name, differences, comparison.allowed)
        if not run.exact or prompt.name != _sampled(context):
            return
        if self._sample is None:
            layers = context.subject.dims.n_layers
            failing = self._failing_layer(context.subject.family.order)
            self._sample = Sample(prompt.name, prompt.tokens, layers, failing)
        if self._sample.wants(name):
            self._sample.see(name, truth, value)

    def _failing_layer(self, order: Order) -> int | None:
        site = first_divergence([c for c in self.comparisons if not c.ok], order)
        return None if site is None else parse(site).layer

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
        if self._sample is not None and run.exact and run.prompt.name == self._sample.prompt:
            truth = context.reference.logits(run.prompt.name, run.dtype)
            if truth.shape == logits.shape:
                self._sample.see_logits(truth, logits)
            self.metrics["sample"] = self._sample.plain(context.word)
        self.metrics["by_layer"] = self._by_layer.plain()
        self.metrics["by_head"] = self._by_head.plain()
        self.metrics["differences"] = self._sizes.plain()
        expected, hidden = context.subject.expected_hooks()
        self.metrics["not_exposed"] = hidden
        self.metrics["absent"] = context.subject.family.absent()
        self.metrics["sites"] = len(expected)
        for name in context.reference.sites:
            if name == "logits":
                continue
            fired = self._seen.pop(name, 0)
            if name not in expected:
                continue
            if fired != 1:
                hook = expected[name]
                what = "never fired" if fired == 0 else f"fired {fired} times"
                if fired == 0 and hook and hook not in context.subject.model.hook_dict:
                    what = "does not exist in this port"
                yield structure(name, f"hook {hook!r} {what}", str(run))
        for name, shown in context.subject.odd.items():
            if name in expected:
                yield structure(name, f"hook {expected[name]!r} shows a {shown}", str(run))
        for name in self._seen:
            yield structure(name, "fired, but the reference has no such site", str(run))
        self._seen.clear()


def _sampled(context: Context) -> str:
    """The prompt that a sample is of."""
    names = [prompt.name for prompt in context.reference.prompts]
    return next((name for name in PROMPTS if name in names), names[0])
