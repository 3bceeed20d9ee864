"""The names that people know, with the verdicts they rest on. From records alone."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.records import HARNESS_FAILED, NONCONFORMING
from conformance.report.terminal import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conformance.records import Name, Records, Verdict

#: The worse of two outcomes comes first.
_WORST_FIRST = (
    *("error", "crashed", "oom", "timeout", "failed", "xpassed", "xfailed", "skipped"),
    *("passed", "not_applicable"),
)
_BAD = NONCONFORMING | HARNESS_FAILED
_WIDTH = 80


@dataclass(frozen=True, slots=True)
class NameVerdict:
    """A name and what came of it.

    Attributes:
        name: as recorded.
        outcomes: subject -> the worst outcome of its checks; empty where nothing was judged.
        commit: that of the weights, where they were the name's own.
    """

    name: Name
    outcomes: Mapping[str, str]
    commit: str | None = None

    @property
    def evidence(self) -> str:
        """``twin: gpt2-twin``, ``real at 0123abcd`` or ``not judged``."""
        if self.name.evidence == "twin":
            return f"twin: {self.name.model}"
        if self.name.evidence is None:
            return "not judged"
        return f"real at {self.commit[:8]}" if self.commit else "real"


def worst(outcomes: Iterable[str]) -> str:
    """The outcome that a reader must know of first."""
    return min(outcomes, key=_WORST_FIRST.index)


def judged(records: Records) -> list[NameVerdict]:
    """Every name of the run, in the order of ``models.toml``."""
    by_model: dict[str, list[Verdict]] = {}
    for verdict in records.verdicts:
        by_model.setdefault(verdict.model, []).append(verdict)
    found = []
    for name in records.names:
        verdicts = by_model.get(name.model or "", [])
        subjects = dict.fromkeys(sorted(v.subject for v in verdicts))
        found.append(
            NameVerdict(
                name,
                {s: worst(v.outcome for v in verdicts if v.subject == s) for s in subjects},
                next((v.commit for v in verdicts if v.commit), None),
            )
        )
    return found


def subjects_of(found: Sequence[NameVerdict]) -> list[str]:
    """The subjects that apply to any of the names."""
    return sorted({s for v in found for s, o in v.outcomes.items() if o != "not_applicable"})


def rows(found: Sequence[NameVerdict]) -> tuple[list[str], list[list[str]]]:
    """A table of the names that were judged: its header, and a row each."""
    subjects = subjects_of(found)
    listed = [
        [
            each.name.hub,
            each.name.architecture,
            each.evidence,
            *(WORDS[each.outcomes[s]] if s in each.outcomes else "" for s in subjects),
        ]
        for each in found
        if each.name.evidence
    ]
    return ["name", "architecture", "evidence", *subjects], listed


def not_judged(found: Iterable[NameVerdict]) -> dict[str, list[str]]:
    """Reason -> the names that are not judged for it."""
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each.name.evidence is None:
            reasons.setdefault(each.name.reason or "no reason given", []).append(each.name.hub)
    return reasons


def short(records: Records) -> list[str]:
    """For a terminal: how many names got which verdict, and which of them do not conform."""
    found = judged(records)
    lines = []
    for subject in subjects_of(found):
        counts = Counter(v.outcomes[subject] for v in found if subject in v.outcomes)
        said = ", ".join(f"{counts[o]} {WORDS[o]}" for o in _WORST_FIRST if counts[o])
        lines.append(f"names, {subject}: {said}")
        for outcome in _WORST_FIRST:
            names = [v.name.hub for v in found if v.outcomes.get(subject) == outcome]
            if names and outcome in _BAD:
                lines += _wrapped(f"{WORDS[outcome]}: {' '.join(names)}")
    if count := sum(v.name.evidence is None for v in found):
        lines.append(f"names not judged: {count}; report.md says why")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
