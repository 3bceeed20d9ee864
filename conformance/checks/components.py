"""Teacher-forced isolation: every component on the reference's own input.

Errors do not accumulate here, so the component that is wrong names itself. Norms, attention and
MLP are isolated in one pass (each is fed the truth), whole blocks, the final norm and the
unembedding in another. If every component agrees alone and the whole does not, the wiring
between them is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, Pass, PassMode, judge, structure
from conformance.checks.sharing import SharedJudge
from conformance.profiles import ByLayer
from conformance.sites import BLOCK_KINDS, parse
from conformance.variants import ISOLATION_PROMPTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from conformance.records import Comparison

#: Sites that a mode does not isolate: sums of the residual stream are the block's business.
_WIRING = ("resid_pre",)


class Components(Check):
    """Each component computes the reference's output from the reference's input."""

    name: ClassVar[str] = "components"
    modes: ClassVar[frozenset[PassMode]] = frozenset({"blocks", "components"})

    def __init__(self) -> None:
        super().__init__()
        self._compared = 0
        self._judge: SharedJudge | None = None
        self._by_layer = ByLayer()

    def wants(self, run: Pass) -> bool:
        return super().wants(run) and run.prompt.name in ISOLATION_PROMPTS

    def site(
        self, context: Context, run: Pass, name: str, value: torch.Tensor
    ) -> Iterable[Comparison]:
        if name.endswith(_WIRING):
            return
        self._compared += 1
        comparison = judge(context, run, name, value)
        yield self._placed(run, name, comparison)
        if self._judge is None:
            self._judge = SharedJudge(context, run)
        yield from self._judge.see(name, value, comparison.ok)

    def _placed(self, run: Pass, name: str, comparison: Comparison) -> Comparison:
        """The comparison, remembered under its component. Of a pass that feeds blocks only sums
        of the residual stream count: what is inside a block is not alone there."""
        part = parse(name).component
        if part == "wiring":
            self._by_layer.see(run.dtype, "block", comparison)
        elif run.mode == "components" or parse(name).layer is None:
            self._by_layer.see(run.dtype, part, comparison)
        return comparison

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
        if run.mode == "components":  # the unembedding is fed the truth in either mode
            yield self._placed(run, "logits", judge(context, run, "logits", logits))
        self.metrics["by_layer"] = self._by_layer.plain()
        expected, _ = context.subject.expected_hooks()
        due = sum(not name.endswith(_WIRING) for name in expected)
        if self._compared < due:
            yield structure(None, f"only {self._compared} of {due} sites fired", str(run))
        self._compared = 0
        self._judge = None
        missing = [
            name
            for name in _expected_components(context)
            if name not in context.subject.components()
        ]
        for name in missing:
            yield structure(name, "the port has no module for this component", str(run))


def _expected_components(context: Context) -> list[str]:
    from conformance.implementations.base import BLOCK_COMPONENTS

    fam, layers = context.subject.family, range(context.subject.dims.n_layers)
    # A port that shows none of a component's sites may wrap the block whole.
    hidden = set(context.subject.expected_hooks()[1])
    kinds = [k for k in BLOCK_KINDS if k.name not in fam.absent()]
    shown = {k.component for k in kinds if k.name not in hidden}
    whole = {k.component for k in kinds if k.name in hidden} - shown
    parts = [part for part in BLOCK_COMPONENTS if part not in whole]
    last = ["ln_final"] if fam.ln_final else []
    last += ["ln_encoder"] if fam.encoder_ln_final else []
    names = [*last, "unembed", *(f"blocks.{i}" for i in layers)]
    for part in parts:
        names += [f"blocks.{i}.{part}" for i in layers if getattr(fam.of(i), part) is not None]
    return names
