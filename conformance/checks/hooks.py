"""Hooks: each is there, fires once, in order, in its shape; none outlives its context or changes
what it only looks at; caches are what fired, whole or in part; backward hooks show gradients.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from conformance.checks.base import Check, Context, agree, identical, is_ours, same, structure
from conformance.checks.hook_caches import caches
from conformance.checks.hook_runs import Fired, left_behind, raising, run, shaped_as_promised
from conformance.checks.hook_switches import switches
from conformance.checks.hook_table import (
    BEFORE,
    BEFORE_NORMS_LAST,
    BEFORE_POST_NORM,
    Published,
    is_site,
    out_of_order,
    published,
    shape,
)
from conformance.checks.state import hooks_of
from conformance.experiments.rows import prompt_of
from conformance.sites import computation_order, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from conformance.checks.hook_runs import HookList
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison


#: Hooks of a norm's insides: off the path, until somebody edits what they show.
_INSIDE_NORMS = (".hook_normalized", ".hook_scale")


class Hooks(Check):
    """What the library promises of its hooks, on a batch of two."""

    name: ClassVar[str] = "hooks"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        subject = context.subject
        self.metrics.update(context.scope.said())
        prompt = prompt_of(context.reference.dims, context.scope)
        two = replace(prompt, tokens=prompt.tokens.repeat(2, 1))
        two.tokens[1] = two.tokens[1].flip(0)
        table = published(context)
        points = subject.model.hook_dict
        names = [name for name in table if name in points]
        for name in table.keys() - set(names):
            yield structure(table[name].site, f"the library has no hook {name}")
        plain = None
        with self.port("the forward pass"), subject.session():
            plain = run(subject, two, [])
        if plain is None:
            return
        truth = context.reference.truth("sixteen", "logits")[0, : two.tokens.shape[1]]
        spread = context.reference.spread("sixteen", "logits")
        right = same(truth, plain[0], spread, site="logits", on="sixteen")
        yield right
        installed = hooks_of(subject)
        fired = Fired()
        with self.port("looking at every hook"), subject.session():
            logits = run(subject, two, fired.all(names))
            yield identical(plain, logits, site="logits", on="sixteen twice, looking at all hooks")
        for name, shown in fired.odd.items():
            yield structure(
                table[name].site, f"{name} shows a {shown}, not a tensor", "sixteen twice"
            )
        names = [name for name in names if name not in fired.odd]
        yield from _firing(context, two, fired, {n: table[n] for n in names})
        sites = {name: table[name].site for name in names}
        with self.port("hooks that return what they were given"), subject.session():
            same_again = run(subject, two, [(n, _same) for n in names])
            yield identical(plain, same_again, site="logits", on="sixteen twice, identity hooks")
        yield from self._copies(context, two, plain, sites)
        with self.port("caches"):
            yield from caches(context, two, prompt, fired, {n: table[n].site for n in fired.seen})
        if right.ok:  # the values of another function tell nothing of its hooks
            with self.port("backward hooks"):
                yield from self._backward(context, prompt, fired, table)
        yield from switches(self, context, two, plain, right=right.ok)
        with self.port("a hook that raises"):
            yield from raising(subject, two, plain, sites)
        yield from left_behind(subject, installed, table)

    def _copies(
        self, context: Context, prompt: Prompt, plain: torch.Tensor, sites: Mapping[str, str]
    ) -> Iterator[Comparison]:
        """Hooks that return a copy change no bit. Those inside a norm may change the last ones:
        the library says (by a warning) that an edit there makes it compute the norm its own way.
        If a run fails, which hook does it is found one by one.
        """
        spread = context.reference.spread("sixteen", "logits")
        inner = {n: s for n, s in sites.items() if n.endswith(_INSIDE_NORMS)}
        outer = {n: s for n, s in sites.items() if n not in inner}

        def compare(names: Iterable[str], site: str, exact: bool) -> Comparison:
            hooks: HookList = [(name, _copy) for name in names]
            on = "sixteen twice, hooks returning copies"
            with context.subject.session(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = run(context.subject, prompt, hooks)
            if exact:
                return identical(plain, value, site=site, on=on)
            # Of the other row, which is no prompt of the reference's, no spread is known.
            return same(plain[:1], value[:1], spread, site=site, on=on)

        for group, exact in ((outer, True), (inner, False)):
            if not group:
                continue
            try:
                found = compare(group, "logits", exact)
                if found.ok:
                    yield found
                    continue
            except Exception as error:
                if is_ours(error):
                    raise
            for name, site in group.items():
                with self.port(f"a copy returned at {name}", site):
                    yield compare([name], site, exact)

    def _backward(
        self, context: Context, prompt: Prompt, fired: Fired, table: Mapping[str, Published]
    ) -> Iterator[Comparison]:
        """Gradients that backward hooks show, against the reference's at the same site."""
        from conformance.implementations.base import shaped

        subject, stored = context.subject, context.experiment(self.name)
        names = [n for n in fired.seen if table[n].site in stored]
        shown, options = Fired(), subject.loss_options(prompt)
        with subject.session(grad=True):
            with subject.model.hooks(bwd_hooks=shown.all(names)):
                loss = subject.model(prompt.tokens, return_type="loss", **options)
                loss.backward()
            subject.model.zero_grad(set_to_none=True)
        for name in names:
            site = table[name].site
            on = "sixteen, backward hook"
            if shown.order.count(name) != 1:
                note = f"its backward hook fires {shown.order.count(name)} times"
                yield structure(site, note, on)
                continue
            convert = subject.layout(parse(site).kind)
            value = shown.copies[name] if convert is None else convert(shown.copies[name])
            laid_out: dict[str, torch.Tensor] = {}
            shaped(laid_out.__setitem__, prompt)(site, value)
            yield agree(stored, site, laid_out[site].reshape(-1), site=site, on=on)
        once = {n: table[n].site for n in names if shown.order.count(n) == 1}
        yield from self._gradient_cache(subject, prompt, once, shown)

    def _gradient_cache(
        self, subject: LensModel, prompt: Prompt, sites: Mapping[str, str], shown: Fired
    ) -> Iterator[Comparison]:
        """A cache with gradients holds what the backward hooks saw.

        Gradients flow backwards: of those that differ, the last site is nearest to the cause.
        """
        cache: Mapping[str, torch.Tensor] = {}
        wrong: dict[str, Comparison] = {}
        with self.port("run_with_cache(incl_bwd=True)"), subject.session(grad=True):
            cache = subject.model.run_with_cache(
                prompt.tokens,
                return_type="loss",
                incl_bwd=True,
                names_filter=list(sites),
                **subject.loss_options(prompt),
            )[1]
        subject.model.zero_grad(set_to_none=True)
        for name, site in sites.items() if cache else ():
            on = "sixteen, run_with_cache(incl_bwd=True)"
            if f"{name}_grad" not in cache:
                yield structure(site, f"the cache has no {name}_grad", on)
                continue
            found = identical(shown.copies[name], cache[f"{name}_grad"], site=site, on=on)
            if found.ok:
                yield found
            else:
                wrong[site] = found
        last = computation_order(list(wrong), subject.family.order)[-1:]
        yield from (wrong[site] for site in last)


def _same(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
    return tensor


def _copy(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
    return tensor.clone()


def _firing(
    context: Context, prompt: Prompt, fired: Fired, table: Mapping[str, Published]
) -> Iterator[Comparison]:
    """Once each, in order, in shape; and what was shown is not overwritten later on."""
    on = "sixteen twice"
    for name, hook in table.items():
        times = fired.order.count(name)
        if times != 1:
            yield structure(hook.site, f"{name} fires {times} times in a forward pass", on)
            continue
        if hook.axes is not None:
            promised = {shape(context, prompt, hook)}
            yield shaped_as_promised(hook.site, tuple(fired.seen[name].shape), promised, on)
        yield identical(
            fired.copies[name],
            fired.seen[name].detach(),
            site=hook.site,
            on=f"{on}, after the run",
            note="what a hook saw was overwritten later in the run",
        )
    points = context.subject.model.hook_dict
    same_point = {table[name].site: id(points[name]) for name in fired.seen}
    places = [table[n].site for n in dict.fromkeys(fired.order) if is_site(table[n].site)]
    fam = context.subject.family
    order = BEFORE_NORMS_LAST if fam.qk_norm_rotated else BEFORE
    order = BEFORE_POST_NORM if fam.post_norm else order
    for first, then in out_of_order(places, same_point, order):
        yield structure(first, f"fires after {then}, which is computed from it", on)
