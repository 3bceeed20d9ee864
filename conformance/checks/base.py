"""What a check is, and what it sees."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from conformance import bounds
from conformance.compare import measure
from conformance.records import Comparison
from conformance.reference import CENTRED

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from conformance.implementations.subjects import LensModel
    from conformance.prompts import Prompt
    from conformance.recall import Recall
    from conformance.reference import Reference

#: What a subject's forward pass is: the reference's modes.
PassMode = Literal["plain", "blocks", "components", "processed"]


@dataclass(frozen=True)
class Pass:
    """One forward pass of a subject.

    Attributes:
        dtype: ``float64`` (promoted: same function) or the model's own (same precision).
        mode: how components are fed.
        prompt: on what.
    """

    dtype: str
    mode: PassMode
    prompt: Prompt

    @property
    def exact(self) -> bool:
        """Whether this pass judges *same function*."""
        return self.dtype == "float64"

    def __str__(self) -> str:
        return f"{self.prompt.name} [{self.dtype}, {self.mode}]"


@dataclass
class Context:
    """The two sides, as far as they are loaded."""

    reference: Reference
    subject: LensModel
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    tied_unembed: bool = False
    #: Comparisons that need not be made again, where one port is judged many times.
    recall: Recall | None = None


class Check(ABC):
    """One family of comparisons. An instance lives for one subject of one model."""

    name: ClassVar[str]
    #: The passes this check reads.
    modes: ClassVar[frozenset[PassMode]] = frozenset()
    #: Whether it reads the loaded weights (once, in float64).
    reads_weights: ClassVar[bool] = False

    def __init__(self) -> None:
        self.comparisons: list[Comparison] = []
        self.metrics: dict[str, Any] = {}

    def wants(self, run: Pass) -> bool:
        """Whether this check reads ``run``."""
        return run.mode in self.modes

    def weights(self, context: Context) -> Iterable[Comparison]:
        """Compare loaded weights; called once, before any forward pass."""
        return ()

    def site(
        self, context: Context, run: Pass, name: str, value: torch.Tensor
    ) -> Iterable[Comparison]:
        """Compare one site of one pass, as it fires."""
        return ()

    def finish(
        self,
        context: Context,
        run: Pass,
        logits: torch.Tensor,
        loss: torch.Tensor | None,
    ) -> Iterable[Comparison]:
        """Compare what the pass returned. ``loss`` is [batch, pos - 1], plain passes only."""
        return ()


def judge(
    context: Context, run: Pass, name: str, value: torch.Tensor, *, centre: bool = False
) -> Comparison:
    """One site of one pass, under the judgement of the pass's dtype.

    Args:
        centre: subtract each position's mean on both sides.
    """

    def compare() -> Comparison:
        return _judged(context, run, name, value, centre)

    return compare() if context.recall is None else context.recall(str(run), name, value, compare)


def _judged(
    context: Context, run: Pass, name: str, value: torch.Tensor, centre: bool
) -> Comparison:
    reference = context.reference
    truth = reference.truth(run.prompt.name, name)
    judgement: Literal["same_function", "same_precision"] = (
        "same_function" if run.exact else "same_precision"
    )
    if value.shape != truth.shape:
        return structure(
            name,
            f"shape {tuple(value.shape)}, the reference has {tuple(truth.shape)}",
            run.prompt.name,
        )
    loose = name.endswith("attn.scores") and context.subject.scores_up_to_a_constant
    found = measure(name, truth, value, run.prompt.valid, up_to_a_constant=loose, centre=centre)
    known_as = CENTRED if centre else name
    if run.exact:
        measured = found.rel_max
        allowed, source = bounds.same_function(reference.spread(run.prompt.name, known_as))
        note = ""
    else:
        own = reference.error(run.mode, run.prompt.name, known_as)
        measured = found.rel_rms
        allowed, warn, source = bounds.same_precision(own, run.dtype)
        note = "warning: over twice the reference's own error" if measured > warn else ""
    return Comparison(
        judgement=judgement,
        site=name,
        prompt=f"{run.prompt.name}" + ("" if run.mode == "plain" else f" ({run.mode})"),
        measured=measured,
        allowed=allowed,
        ok=measured <= allowed,  # NaN is not
        index=found.index,
        reference=found.reference,
        subject=found.subject,
        bound=source,
        note=note,
    )


def structure(site: str | None, note: str, prompt: str | None = None) -> Comparison:
    """Something that must exist, or must have a shape, and does not."""
    return Comparison(
        judgement="structure",
        site=site,
        prompt=prompt,
        measured=math.inf,
        allowed=0.0,
        ok=False,
        bound="present, with the promised shape",
        note=note,
    )
