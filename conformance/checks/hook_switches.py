"""Hooks that fire only when the library is asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checks.base import Check, Context, identical, same, structure
from conformance.checks.hook_runs import Fired, run, shaped_as_promised
from conformance.checks.hook_table import SWITCHES, Published, shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from conformance.prompts import Prompt
    from conformance.records import Comparison


def switches(
    check: Check, context: Context, prompt: Prompt, plain: torch.Tensor, *, right: bool
) -> Iterator[Comparison]:
    """Each of :data:`SWITCHES`: refused, or its hooks fire and show what they promise.

    Args:
        plain: the logits without any switch.
        right: whether those are the reference's; if not, values are not compared.
    """
    subject = context.subject
    layers = range(subject.dims.n_layers)
    for switch, hooks in SWITCHES.items():
        set_to = getattr(subject.model, f"set_{switch}", None)
        if set_to is None:
            check.not_applicable(switch, "the library has no such switch")
            continue
        names = {
            f"blocks.{i}.{hook}": axes
            for i in layers
            for hook, axes in hooks.items()
            if (subject.family.of(i).mlp if hook == "hook_mlp_in" else subject.family.of(i).attn)
        }
        if not names:
            check.not_applicable(switch, "no layer has what it would show")
            continue
        try:
            set_to(True)
        except (NotImplementedError, ValueError, AssertionError) as refused:
            check.not_applicable(switch, f"{type(refused).__name__}: {refused}")
            continue
        try:
            with check.port(switch), subject.session():
                try:
                    yield from _switched(context, prompt, switch, names, plain, right)
                except NotImplementedError as refused:  # some adapters refuse only when they run
                    check.not_applicable(switch, f"{type(refused).__name__}: {refused}")
        finally:
            set_to(False)


def _switched(
    context: Context,
    prompt: Prompt,
    switch: str,
    names: Mapping[str, tuple[str, ...]],
    unswitched: torch.Tensor,
    right: bool,
) -> Iterator[Comparison]:
    subject, fired = context.subject, Fired()
    spread = context.reference.spread("sixteen", "logits")
    on = f"sixteen twice, {switch}"
    points = subject.model.hook_dict
    known = [n for n in names if n in points]
    for name in names.keys() - set(known):
        yield structure(name, f"the library has no hook {name}", on)
    plain = run(subject, prompt, [])
    looked = run(subject, prompt, fired.all(known))
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
        compared = shaped_as_promised(name, tuple(shown.shape), shapes, on)
        yield compared
        if compared.ok and right:
            yield from _shows(context, name, shown[0])


def _shows(context: Context, name: str, shown: torch.Tensor) -> Iterator[Comparison]:
    """What attention or the MLP reads: the residual stream before their norm, for each head.

    Args:
        shown: [pos, d_model] or [pos, head, d_model].
    """
    _, layer, hook = name.split(".", 2)
    if hook == "attn.hook_result":
        return  # lens judges it
    reference = context.reference
    absent = reference.family.absent(int(layer))
    kind = "resid_mid" if hook == "hook_mlp_in" and "resid_mid" not in absent else "resid_pre"
    site = f"blocks.{layer}.{kind}"
    truth = reference.truth("sixteen", site)[0, : len(shown)]
    if shown.ndim > truth.ndim:
        truth = truth[:, None].expand(shown.shape)
    spread = reference.spread("sixteen", site)
    yield same(truth, shown, spread, site=name, on="sixteen", note=f"shows another than {kind}")
