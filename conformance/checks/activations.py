"""Every site of every layer, in an ordinary forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, Pass, PassMode, judge, structure

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from conformance.records import Comparison


class Activations(Check):
    """Each hook shows what the reference computes there, on every prompt, in both judgements.

    A hook that should fire and does not, or fires twice, is a failure of the port. Sites that
    the port is known not to expose are listed in the metrics, never counted as compared.
    """

    name: ClassVar[str] = "activations"
    stacks: ClassVar[bool] = True
    modes: ClassVar[frozenset[PassMode]] = frozenset({"plain"})

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, int] = {}

    def site(
        self, context: Context, run: Pass, name: str, value: torch.Tensor
    ) -> Iterable[Comparison]:
        self._seen[name] = self._seen.get(name, 0) + 1
        comparison = judge(context, run, name, value)
        if name.endswith("resid_post") and run.prompt.name == "long":
            layers = self.metrics.setdefault("resid_post_error", {}).setdefault(run.dtype, [])
            layers.append([comparison.measured, comparison.allowed])
        yield comparison

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
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
