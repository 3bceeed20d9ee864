"""Hooks: each is there, fires once, in order, in its shape; none outlives its context or changes
what it only looks at; caches are what fired, whole or in part; backward hooks show gradients.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from conformance.checks.base import Check, Context, agree, identical, is_ours, same, structure
from conformance.checks.hook_caches import caches
from conformance.checks.hook_runs import Fired, left_behind, raising
from conformance.checks.hook_table import (
    SWITCHES,
    Published,
    is_site,
    out_of_order,
    published,
    shape,
)
from conformance.checks.state import hooks_of
from conformance.experiments.rows import prompt_of
from conformance.records import Comparison
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from conformance.checks.hook_runs import HookList
    from conformance.implementations.subjects import LensModel
    from conformance.prompts import Prompt


#: Hooks of a norm's insides: off the path, until somebody edits what they show.
_INSIDE_NORMS = (".hook_normalized", ".hook_scale")


class Hooks(Check):
    """What the library promises of its hooks, on a batch of two."""

    name: ClassVar[str] = "hooks"
    runs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        #: Whether the logits are right: the values of another function tell nothing of its hooks.
        self._right = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        subject = context.subject
        self.metrics.update(context.scope.said())
        prompt = prompt_of(context.reference.dims, context.scope)
        two = replace(prompt, tokens=prompt.tokens.repeat(2, 1))
        two.tokens[1] = two.tokens[1].flip(0)
        table = published(context)
        names = [name for name in table if name in subject.model.hook_dict]
        for name in table.keys() - set(names):
            yield structure(table[name].site, f"the library has no hook {name}")
        plain = None
        with self.port("the forward pass"), subject.session():
            plain = self._run(subject, two, [])
        if plain is None:
            return
        truth = context.reference.truth("sixteen", "logits")[0, : two.tokens.shape[1]]
        spread = context.reference.spread("sixteen", "logits")
        right = same(truth, plain[0], spread, site="logits", on="sixteen")
        yield right
        self._right = right.ok
        installed = hooks_of(subject)
        fired = Fired()
        with self.port("looking at every hook"), subject.session():
            logits = self._run(subject, two, fired.all(names))
            yield identical(plain, logits, site="logits", on="sixteen twice, looking at all hooks")
        yield from _firing(context, two, fired, {n: table[n] for n in names})
        sites = {name: table[name].site for name in names}
        with self.port("hooks that return what they were given"), subject.session():
            same_again = self._run(subject, two, [(n, _same) for n in names])
            yield identical(plain, same_again, site="logits", on="sixteen twice, identity hooks")
        yield from self._copies(context, two, plain, sites)
        with self.port("caches"):
            yield from caches(context, two, prompt, fired, {n: table[n].site for n in fired.seen})
        if self._right:
            with self.port("backward hooks"):
                yield from self._backward(context, prompt, fired, table)
        yield from self._switches(context, two, plain)
        with self.port("a hook that raises"):
            yield from raising(subject, two, plain, sites)
        yield from left_behind(subject, installed, table)

    def _run(self, subject: LensModel, prompt: Prompt, hooks: HookList) -> torch.Tensor:
        logits: torch.Tensor = subject.model.run_with_hooks(
            prompt.tokens, fwd_hooks=hooks, **subject.run_options(prompt)
        )
        return logits

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
                value = self._run(context.subject, prompt, hooks)
            if exact:
                return identical(plain, value, site=site, on=on)
            return same(plain, value, spread, site=site, on=on)

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
        shown, options = Fired(), subject.run_options(prompt)
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

    def _switches(
        self, context: Context, prompt: Prompt, plain: torch.Tensor
    ) -> Iterator[Comparison]:
        """Hooks that fire only when asked for: refused, or there with the promised shape."""
        subject = context.subject
        layers = range(subject.dims.n_layers)
        for switch, hooks in SWITCHES.items():
            set_to = getattr(subject.model, f"set_{switch}", None)
            if set_to is None:
                self.not_applicable(switch, "the library has no such switch")
                continue
            try:
                set_to(True)
            except (NotImplementedError, ValueError, AssertionError) as refused:
                self.not_applicable(switch, f"{type(refused).__name__}: {refused}")
                continue
            names = {
                f"blocks.{layer}.{hook}": axes for layer in layers for hook, axes in hooks.items()
            }
            try:
                with self.port(f"{switch}"), subject.session():
                    yield from self._switched(context, prompt, switch, names, plain)
            finally:
                set_to(False)

    def _switched(
        self,
        context: Context,
        prompt: Prompt,
        switch: str,
        names: Mapping[str, tuple[str, ...]],
        unswitched: torch.Tensor,
    ) -> Iterator[Comparison]:
        subject, fired = context.subject, Fired()
        spread = context.reference.spread("sixteen", "logits")
        on = f"sixteen twice, {switch}"
        known = [n for n in names if n in subject.model.hook_dict]
        for name in names.keys() - set(known):
            yield structure(name, f"the library has no hook {name}", on)
        plain = self._run(subject, prompt, [])
        looked = self._run(subject, prompt, fired.all(known))
        yield identical(plain, looked, site="logits", on=on)
        yield same(unswitched, plain, spread, site="logits", on=on)
        for name in known:
            times = fired.order.count(name)
            if times != 1:
                yield structure(name, f"fires {times} times", on)
                continue
            hook = Published(name, names[name])
            shapes = {shape(context, prompt, hook, grouped=g) for g in (False, True)}
            shown = fired.copies[name]
            compared = _shaped(name, tuple(shown.shape), shapes, on)
            yield compared
            if compared.ok and self._right:
                yield from self._shows(context, name, shown[0])

    def _shows(self, context: Context, name: str, shown: torch.Tensor) -> Iterator[Comparison]:
        """What attention or the MLP reads: the residual stream before their norm, for each head.

        Args:
            shown: [pos, d_model] or [pos, head, d_model].
        """
        _, layer, hook = name.split(".", 2)
        if hook == "attn.hook_result":
            return  # lens judges it
        reference = context.reference
        absent = reference.family.absent()
        kind = "resid_mid" if hook == "hook_mlp_in" and "resid_mid" not in absent else "resid_pre"
        site = f"blocks.{layer}.{kind}"
        truth = reference.truth("sixteen", site)[0, : len(shown)]
        if shown.ndim > truth.ndim:
            truth = truth[:, None].expand(shown.shape)
        spread = reference.spread("sixteen", site)
        yield same(truth, shown, spread, site=name, on="sixteen", note=f"shows another than {kind}")


def _same(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
    return tensor


def _copy(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
    return tensor.clone()


def _shaped(
    site: str, found: tuple[int, ...], promised: set[tuple[int, ...]], on: str
) -> Comparison:
    if found not in promised:
        wanted = " or ".join(map(str, sorted(promised)))
        return structure(site, f"shows {found}, promised is {wanted}", on)
    return Comparison("exact", site, on, 0.0, 0.0, True, bound="the promised shape")


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
            yield _shaped(hook.site, tuple(fired.seen[name].shape), promised, on)
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
    for first, then in out_of_order(places, same_point):
        yield structure(first, f"fires after {then}, which is computed from it", on)
