"""Hypotheses, and how they are put to the test.

A :class:`Step` is one formula of the forward pass: what stands between right inputs and a site
that diverges. Its ``right`` version must reproduce the reference before any other is believed. A
:class:`Proposal` is a wrong version; a :class:`Fitted` one has a parameter that the data choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from conformance.bounds import UNEXPLAINED, same_number
from conformance.diagnose.evidence import Scene
from conformance.diagnose.fit import apart, counted, fitted, number, written
from conformance.explain.explanations import Cause
from conformance.sites import parse

if TYPE_CHECKING:
    from conformance.diagnose.evidence import Evidence

#: Kind of site -> its value, as a formula has it.
Predicted = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Proposal:
    """One way in which a formula may be wrong.

    Attributes:
        hypothesis: a stable id.
        statement: what the subject then does, as a clause after the site's name.
        predict: the values that it gives, from the reference's.
        implies: ids that say the same in more general words: left out if this one holds.
        site: where it acts, if that is not the site that diverges.
        variant: not tried where another version of the same hypothesis holds.
    """

    hypothesis: str
    statement: str
    predict: Callable[[Scene], Predicted]
    implies: tuple[str, ...] = ()
    site: str | None = None
    variant: bool = False


@dataclass(frozen=True)
class Fitted:
    """A family of wrong formulas with one parameter.

    Attributes:
        state: value -> the clause.
        predict: the values for a value of the parameter.
        right: the checkpoint's value.
        starts: where to begin looking.
        positive: whether the parameter is.
    """

    hypothesis: str
    state: Callable[[float], str]
    predict: Callable[[Scene, float], Predicted]
    right: float
    starts: tuple[float, ...]
    positive: bool = True
    implies: tuple[str, ...] = ()
    site: str | None = None
    variant: bool = False


@dataclass(frozen=True)
class Step:
    """One formula.

    Attributes:
        name: in words, ``the rotation of queries and keys``.
        right: the checkpoint's own version.
        proposals: wrong versions.
    """

    name: str
    right: Callable[[Scene], Predicted]
    proposals: Iterable[Proposal | Fitted]


@dataclass
class Court:
    """Tests proposals against one piece of evidence."""

    evidence: Evidence
    scenes: list[Scene] = field(init=False)

    def __post_init__(self) -> None:
        assert self.evidence.site is not None
        self.site = self.evidence.site
        site = parse(self.site)
        self.kind, self.layer = site.kind, site.layer
        fam = self.evidence.family
        self._loose = fam.alibi
        scenes = [Scene(self.evidence, name, self.layer) for name in self.evidence.prompts]
        # A formula that is wrong fails at once on a short prompt that shows the divergence.
        shown = {s.name: self._distance(s, self.kind, s.truth(self.kind)) for s in scenes}
        self.scenes = sorted(
            scenes,
            key=lambda s: (
                shown[s.name] <= self.evidence.allowed(s.name, self.site),
                s.prompt.tokens.numel(),
            ),
        )

    def _full(self, kind: str) -> str:
        return kind if self.layer is None else f"blocks.{self.layer}.{kind}"

    def _name(self, scene: Scene, kind: str) -> str:
        full = self._full(kind)
        return full if full in self.evidence.reference.sites else kind

    def _distance(self, scene: Scene, kind: str, value: torch.Tensor) -> float:
        subject = scene.subject(kind)
        if subject is None:
            return math.inf
        return self._apart(scene, kind, subject, value)

    def _apart(self, scene: Scene, kind: str, subject: torch.Tensor, value: torch.Tensor) -> float:
        return apart(
            self._name(scene, kind),
            scene.truth(kind),
            subject,
            value,
            scene.prompt.valid,
            loose=self._loose and kind == "attn.scores",
        )

    def _allowed(self, scene: Scene, kind: str) -> float:
        return self.evidence.allowed(scene.name, self._name(scene, kind))

    def reproduces_reference(self, step: Step) -> bool:
        """Whether the right formula gives the reference's own values, to the bound."""
        try:
            for scene in self.scenes:
                for kind, value in step.right(scene).items():
                    distance = self._apart(scene, kind, scene.truth(kind), value)
                    if not distance <= self._allowed(scene, kind):
                        return False
        except KeyError:
            return False
        return True

    def causes(self, step: Step) -> list[Cause]:
        """The proposals of a step that reproduce the subject."""
        found: list[Cause] = []
        for proposal in step.proposals:
            if proposal.variant and any(c.hypothesis == proposal.hypothesis for c in found):
                continue
            cause = self._try(proposal) if isinstance(proposal, Proposal) else self._fit(proposal)
            if cause is not None:
                found.append(cause)
                self.implied.update(proposal.implies)
        return found

    implied: set[str] = field(default_factory=set)

    def _try(self, proposal: Proposal) -> Cause | None:
        residual = without = 0.0
        compared = False
        for scene in self.scenes:
            for kind, value in proposal.predict(scene).items():
                site = self._name(scene, kind)
                if site != self.site and not self.evidence.shows(site):
                    continue
                distance = self._distance(scene, kind, value)
                if not distance <= self._allowed(scene, kind):
                    return None
                compared = compared or site == self.site
                residual = max(residual, distance)
                without = max(without, self._distance(scene, kind, scene.truth(kind)))
        if not compared or residual > UNEXPLAINED * without:
            return None
        site = proposal.site or self.site
        return Cause(
            proposal.hypothesis,
            f"{site} {proposal.statement}",
            site,
            residual,
            without,
            exact=True,
        )

    def _fit(self, family: Fitted) -> Cause | None:
        scene = self.scenes[0]
        if not all(bool(v.isfinite().any()) for v in family.predict(scene, family.right).values()):
            return None
        subject, truth = scene.subject(self.kind), scene.truth(self.kind)
        if subject is None or subject.shape != truth.shape:
            return None
        keep = counted(self.site, truth, scene.prompt.valid, subject)
        rows = subject - truth
        if not bool(keep.any()) or not bool(rows[keep].isfinite().all()):
            return None

        def entries(value: torch.Tensor) -> torch.Tensor:
            if self._loose and self.kind == "attn.scores":
                total = value.where(keep, value.new_zeros(())).sum(-1, keepdim=True)
                value = value - total / keep.sum(-1, keepdim=True).clamp_min(1)
            return value[keep]

        def predict(value: float) -> torch.Tensor:
            return entries(family.predict(scene, value)[self.kind])

        starts = (family.right, *family.starts)
        for value in fitted(predict, entries(subject), starts, positive=family.positive):
            for choice in written(value):
                if same_number(choice, family.right):
                    continue
                cause = self._try(
                    Proposal(
                        family.hypothesis,
                        family.state(choice),
                        lambda s, choice=choice: family.predict(s, choice),  # type: ignore[misc]
                        site=family.site,
                    )
                )
                if cause is not None:
                    return cause
        return None


__all__ = ["Court", "Fitted", "Predicted", "Proposal", "Step", "number"]
