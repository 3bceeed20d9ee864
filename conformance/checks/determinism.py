"""The same run twice is the same, bit for bit, and running leaves nothing behind.

Checks that ran before this one on the same port are part of what is judged: a port loaded anew
must agree with it, run for run and in everything it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, identical, structure
from conformance.checks.state import State, hooks_of, unequal
from conformance.experiments.rows import read_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison

#: Seeds of two runs: active dropout, or noise of any kind, differs between them.
_SEEDS = (1, 2)

#: What runs in between: another length, another batch, a mask, a whole context, an image.
_OTHERS = ("two", "padded_left", "long", "media")

Sites = dict[str, "torch.Tensor"]


class Determinism(Check):
    """Bit for bit the same: again, under another seed, after other prompts, with a cache, in a
    port loaded anew. Parameters, buffers, hooks, modes and configuration stay as they were."""

    name: ClassVar[str] = "determinism"
    of_content: ClassVar[bool] = True
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        subject, scope = context.subject, context.scope
        self.metrics.update(scope.said())
        reference = context.reference
        prompt = read_by(reference.family, reference.config, reference.dims, scope)
        before = State.of(subject)
        first: Sites = {}
        with self.port("the forward pass"):
            first = _run(subject, prompt, _SEEDS[0])
        if not first:
            return
        with self.port("the same forward pass again"):
            again = _run(subject, prompt, _SEEDS[1])
            yield from _alike(first, again, "again, under another seed")
        used = hooks_of(subject)  # HuggingFace installs some of its own in the first run
        with self.port("running with a cache"):
            yield from _cached(subject, prompt, first)
        for other in context.reference.prompts:
            if other.name in _OTHERS:
                with self.port(f"the forward pass on {other.name}"):
                    cut = scope.large and not subject.family.reads
                    subject.run(scope.cut(other) if cut else other, lambda *_: None)
        with self.port("the same forward pass after others"):
            yield from _alike(first, _run(subject, prompt, _SEEDS[0]), "after other prompts")
        after = State.of(subject)
        yield from after.changed_since(before, "by running")
        yield from unequal(used, hooks_of(subject), "number of hooks changed by running")
        yield from after.at_rest()
        if context.fresh is None:
            self.not_applicable("a port loaded anew", "the port cannot be loaded a second time")
            return
        fresh = context.fresh()
        with self.port("the forward pass of a port loaded anew"):
            yield from _alike(_run(fresh, prompt, _SEEDS[0]), first, "in a port loaded anew")
        yield from after.changed_since(State.of(fresh), "since loading")


def _run(subject: LensModel, prompt: Prompt, seed: int) -> Sites:
    import torch

    found: Sites = {}

    def keep(name: str, value: torch.Tensor) -> None:
        found[name] = value.clone()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found["logits"] = subject.run(prompt, keep)
    return found


def _alike(truth: Sites, values: Sites, when: str) -> Iterator[Comparison]:
    for site, value in truth.items():
        if site in values:
            yield identical(value, values[site], site=site, on=f"sixteen, {when}")
    for site in truth.keys() ^ values.keys():
        yield structure(site, f"fired in one of two runs only ({when})", "sixteen")


def _cached(subject: LensModel, prompt: Prompt, first: Sites) -> Iterator[Comparison]:
    """Caches of two runs, without and with gradients recorded, and the logits they come with."""
    import torch

    from conformance.implementations.base import at_each

    on = f"{prompt.name}, run_with_cache"
    sites = {name: site for site, name in subject.expected_hooks()[0].items()}
    caches = []
    for grad in (False, True):
        with subject.session(grad=grad):
            given, content = subject.content(prompt)
            logits, cache = subject.model.run_with_cache(
                content, **given, **subject.run_options(prompt)
            )
            if subject.family.pooled:
                logits = at_each(prompt, logits)
            kept = torch.is_grad_enabled() == grad
        if not kept:
            state = "on" if grad else "off"
            yield structure(None, f"gradients were {state} before the run, and not after", on)
        yield identical(first["logits"], logits.detach(), site="logits", on=on)
        caches.append({name: value.detach() for name, value in cache.items()})
    for name, value in caches[0].items():
        site = sites.get(name, name)
        if name in caches[1]:
            yield identical(value, caches[1][name], site=site, on=f"{on} twice")
    for name in caches[0].keys() ^ caches[1].keys():
        yield structure(sites.get(name, name), "in one of two caches only", on)
