"""What the verdicts on one port, or on all ports of an architecture, amount to: one standing.

Knows records only; versions, badges and compatibility tables all say it in these words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from conformance.records import Verdict

CONFORMS, NOT_APPLICABLE, NOT_RUN = "conforms", "n/a", "not run"
KNOWN_DEFECT = "known defect"
#: A verdict's outcome -> the state of its check, the worst first.
_STATES: Mapping[str, str] = {
    "failed": "fails",
    "crashed": "crashes",
    "timeout": "times out",
    "oom": "runs out of memory",
    "error": "not judged",
    "xpassed": "unexpected pass",
    "xfailed": KNOWN_DEFECT,
    "skipped": "skipped",
    "not_applicable": NOT_APPLICABLE,
    "passed": CONFORMS,
}
#: Every state of a standing, the worst first. What was not run hides what might be wrong with it.
STATES: tuple[str, ...] = (
    *(s for s in _STATES.values() if s not in (NOT_APPLICABLE, CONFORMS)),
    NOT_RUN,
    CONFORMS,
    NOT_APPLICABLE,
)
#: States that mean "this port does not conform".
WRONG: frozenset[str] = frozenset(STATES[:4])
#: A longer list of checks that were not run is counted.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """The states of the checks of some models, under one subject.

    Attributes:
        state: the worst of them; one of :data:`STATES`.
        checks: state -> check -> of how many models.
        judged: models that were tried: run, and not excused as a whole.
        models: models that could have been judged.
    """

    state: str
    checks: Mapping[str, Mapping[str, int]]
    judged: int
    models: int

    @property
    def words(self) -> str:
        """The standing in a table's cell, read without colour."""
        if not self.judged:
            return self.state
        parts = [] if self.state != CONFORMS else [CONFORMS]
        parts += [self._listed(s) for s in STATES[: STATES.index(CONFORMS)] if s in self.checks]
        if NOT_APPLICABLE in self.checks:
            parts.append(self._listed(NOT_APPLICABLE))
        if self.judged < self.models:
            parts.append(f"{self.judged} of {self.models} models judged")
        return "; ".join(parts)

    def _listed(self, state: str) -> str:
        checks = self.checks[state]
        if state == NOT_RUN and len(checks) > _NAMED:
            return f"{state}: {len(checks)} checks"
        return f"{state}: {counted(checks, self.judged)}"


def counted(checks: Mapping[str, int], models: int) -> str:
    """``hooks; lens, patching in 2 of 3 models``: checks, by how many of the models they are of."""
    by_count: dict[int, list[str]] = {}
    for check in in_order(checks):
        by_count.setdefault(checks[check], []).append(check)
    return "; ".join(
        ", ".join(names) + ("" if count == models else f" in {count} of {models} models")
        for count, names in sorted(by_count.items(), reverse=True)
    )


def in_order(checks: Iterable[str]) -> list[str]:
    """Checks as reports order them; those this version does not know come last."""
    known = {check: place for place, check in enumerate(CHECKS)}
    return sorted(set(checks), key=lambda check: (known.get(check, len(known)), check))


def standing(
    verdicts: Iterable[Verdict],
    checks: Collection[str] | None = None,
    models: Collection[str] | None = None,
) -> Standing:
    """What verdicts on one subject amount to.

    Args:
        verdicts: of one subject, on one or more models.
        checks: all that should have been run on each model; those of the verdicts by default.
        models: all that could have been judged; those of the verdicts by default.
    """
    by_model: dict[str, dict[str, Verdict]] = {model: {} for model in models or ()}
    for verdict in verdicts:
        by_model.setdefault(verdict.model, {})[verdict.check] = verdict
    tried = [found for found in by_model.values() if not _excused(found)]
    seen = {check for found in tried for check in found}
    counts: dict[str, Counter[str]] = {}
    for check in in_order({*seen, *(checks or ())}):
        for found in tried:
            state = _STATES[found[check].outcome] if check in found else NOT_RUN
            counts.setdefault(state, Counter())[check] += 1
    if counts:
        worst = next(state for state in STATES if state in counts)
    else:
        worst = NOT_APPLICABLE if any(by_model.values()) else NOT_RUN
    ordered = {state: dict(counts[state]) for state in STATES if state in counts}
    return Standing(worst, ordered, len(tried), len(by_model))


def _excused(found: Mapping[str, Verdict]) -> bool:
    """Whether nothing of a model was to be judged: it was never run, or does not apply."""
    return all(v.outcome == "not_applicable" for v in found.values())
