"""Runs with hooks: what they saw, and what is left when they are over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from conformance.checks.base import identical, structure
from conformance.checks.state import hooks_of
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from conformance.checks.hook_table import Published
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt

    HookList = list[tuple[str, Callable[..., Any]]]


class _Stop(Exception):
    """Raised by a hook of ours, inside a forward pass."""


@dataclass
class Fired:
    """What hooks saw in one run.

    Attributes:
        order: hook names, as they fired.
        seen: name -> the tensor itself; ``copies``: as it was when it fired.
        odd: name -> what was shown that is no tensor.
    """

    order: list[str] = field(default_factory=list)
    seen: dict[str, torch.Tensor] = field(default_factory=dict)
    copies: dict[str, torch.Tensor] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)

    def look(self, name: str) -> Callable[..., None]:
        """A hook that looks."""

        def hook(tensor: torch.Tensor, hook: Any) -> None:
            if not isinstance(tensor, torch.Tensor):
                self.odd[name] = type(tensor).__name__
                return
            self.order.append(name)
            self.seen[name], self.copies[name] = tensor, tensor.detach().clone()

        return hook

    def all(self, names: Iterable[str]) -> HookList:
        return [(name, self.look(name)) for name in names]


def run(subject: LensModel, prompt: Prompt, hooks: HookList) -> torch.Tensor:
    """Logits of a forward pass with hooks."""
    logits: torch.Tensor = subject.model.run_with_hooks(
        prompt.tokens, fwd_hooks=hooks, **subject.run_options(prompt)
    )
    return logits


def shaped_as_promised(
    site: str, found: tuple[int, ...], promised: set[tuple[int, ...]], on: str
) -> Comparison:
    """Whether a hook shows one of the shapes that the library promises."""
    if found not in promised:
        wanted = " or ".join(map(str, sorted(promised)))
        return structure(site, f"shows {found}, promised is {wanted}", on)
    return Comparison("exact", site, on, 0.0, 0.0, True, bound="the promised shape")


def raising(
    subject: LensModel, prompt: Prompt, plain: torch.Tensor, sites: Mapping[str, str]
) -> Iterator[Comparison]:
    """After a hook has raised, in each way of putting it there, a run is as it was."""

    def stop(tensor: torch.Tensor, hook: Any) -> None:
        raise _Stop

    model, options = subject.model, subject.run_options(prompt)
    names = list(sites)
    hooks = [*Fired().all(names), (names[-1], stop)]
    raised = 0
    with subject.session():
        try:
            model.run_with_hooks(prompt.tokens, fwd_hooks=hooks, **options)
        except _Stop:
            raised += 1
        try:
            with model.hooks(fwd_hooks=hooks):
                model(prompt.tokens, **options)
        except _Stop:
            raised += 1
        on = "sixteen twice, after a hook raised"
        if raised < 2:
            yield structure(sites[names[-1]], "what a hook raises does not reach its caller", on)
        yield identical(plain, model(prompt.tokens, **options), site="logits", on=on)


def left_behind(
    subject: LensModel, before: Mapping[str, int], table: Mapping[str, Published]
) -> Iterator[Comparison]:
    """No hook outlives what put it there."""
    after = hooks_of(subject)
    left = sorted(n for n in after if after[n] > before.get(n, 0))
    points = {id(p): n for n, p in subject.model.hook_dict.items()}
    names = {**{n: n for n in left}}
    for name, module in subject.model.named_modules():
        if name in names and id(module) in points:
            names[name] = points[id(module)]
    for name in left:
        hook = table.get(names[name])
        yield structure(hook.site if hook else names[name], "a hook outlives its context")
    level = getattr(subject.model, "context_level", 0)
    yield Comparison(
        "exact",
        None,
        "after all runs with hooks",
        float(len(left) + abs(level)),
        0.0,
        not left and not level,
        bound="no hook left, no context open",
    )
