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
    from collections.abc import Iterable, Mapping

    import torch

    from conformance.implementations.lens_model import LensModel
    from conformance.records import Comparison
    from conformance.sites import SiteKind

#: Sites that a mode does not isolate: sums of the residual stream are the block's business.
_WIRING = ("resid_pre",)


class Components(Check):
    """Each component computes the reference's output from the reference's input."""

    name: ClassVar[str] = "components"
    of_content: ClassVar[bool] = True
    modes: ClassVar[frozenset[PassMode]] = frozenset({"blocks", "components"})

    def __init__(self) -> None:
        super().__init__()
        self._compared = 0
        self._judge: SharedJudge | None = None
        self._sums: range | None = None
        self._by_layer = ByLayer()

    def wants(self, run: Pass) -> bool:
        return super().wants(run) and run.prompt.name in ISOLATION_PROMPTS

    def site(
        self, context: Context, run: Pass, name: str, value: torch.Tensor
    ) -> Iterable[Comparison]:
        if not self._isolated(context, run, name):
            return
        self._compared += 1
        comparison = judge(context, run, name, value)
        yield self._placed(run, name, comparison)
        if self._judge is None:
            self._judge = SharedJudge(context, run)
        yield from self._judge.see(name, value, comparison.ok)

    def _isolated(self, context: Context, run: Pass, name: str) -> bool:
        """Whether a site is one component's, or one block's, alone in this pass."""
        site = parse(name)
        if name.endswith(_WIRING):
            return False
        if run.mode != "components" or site.layer is None or site.component != "wiring":
            return True
        if self._sums is None:
            self._sums = _summed(context.subject)
        return site.layer in self._sums

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
        due = sum(self._isolated(context, run, name) for name in expected)
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
    fam, layers = context.subject.family, range(context.subject.dims.n_layers)
    last = ["ln_final"] if fam.ln_final else []
    last += ["ln_encoder"] if fam.encoder_ln_final else []
    wrapped = _wrapped(context.subject)
    own = [name for name in _parts(context.subject) if name not in wrapped]
    last += ["unembed"] if fam.unembed else []
    return [*last, *(f"blocks.{i}" for i in layers), *own]


def _parts(subject: LensModel) -> list[str]:
    """Every component of every block."""
    from conformance.implementations.base import BLOCK_COMPONENTS

    fam, layers = subject.family, range(subject.dims.n_layers)
    return [
        f"blocks.{i}.{part}"
        for part in BLOCK_COMPONENTS
        for i in layers
        if getattr(fam.of(i), part) is not None
    ]


def _wrapped(subject: LensModel) -> set[str]:
    """Components of which the port shows no site: it may wrap the block whole."""
    fam, layers = subject.family, range(subject.dims.n_layers)
    hidden = subject.expected_hooks()[1]
    kinds = [k for k in BLOCK_KINDS if k.name not in fam.absent()]
    shown = {k.component for k in kinds if k.name not in hidden}
    whole = {k.component for k in kinds if k.name in hidden} - shown
    by_layer = {f"blocks.{i}.{k.component}" for i in layers for k in kinds if _in(hidden, i, k)}
    return by_layer | {f"blocks.{i}.{part}" for i in layers for part in whole}


def _in(hidden: Mapping[str, str], layer: int, kind: SiteKind) -> bool:
    return f"blocks.{layer}.{kind.name}" in hidden


def _summed(subject: LensModel) -> range:
    """The layers whose sums are of components that were each fed the truth: those before the
    first that the port wraps whole."""
    wrapped = _wrapped(subject)
    found = [int(name.split(".")[1]) for name in _parts(subject) if name in wrapped]
    return range(min(found, default=subject.dims.n_layers))
