"""Runs side by side: a column for each version of TransformerLens and subject, and what changes.

Knows records only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from packaging.version import InvalidVersion, Version

from conformance.errors import RecordsError
from conformance.standing import Standing, in_order, standing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conformance.records import Header, Records, Verdict

By = Literal["architecture", "model"]
Change = Literal["better", "worse", "still wrong", "still right", "new", "new, wrong", "gone"]
_RIGHT = frozenset({"passed", "xpassed"})
_WRONG = frozenset({"failed", "crashed", "timeout", "oom", "xfailed"})
#: HookedTransformer came first, and TransformerBridge takes its place.
_SUBJECTS = ("hooked", "bridge")


class Column(NamedTuple):
    """One version of TransformerLens and one subject."""

    version: str
    subject: str

    @property
    def label(self) -> str:
        """As it heads a table, and is named on the command line."""
        return f"{self.version} {self.subject}"


class Case(NamedTuple):
    """One check on one model, whatever the column."""

    model: str
    check: str


@dataclass(frozen=True)
class Sides:
    """Verdicts of several runs, by column.

    Attributes:
        verdicts: the columns that apply to any model, in order, and what was found there.
        absent: columns that apply to no model, with the reason.
        notes: what a reader must know of the runs: cut short, made twice.
        headers: of each run, in the order of their start.
    """

    verdicts: Mapping[Column, Mapping[Case, Verdict]]
    absent: Mapping[Column, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    headers: Sequence[Header] = ()

    @property
    def columns(self) -> list[Column]:
        """From the oldest version to the newest."""
        return list(self.verdicts)

    @cached_property
    def models(self) -> Mapping[str, Verdict]:
        """Each model, trained weights first, with a verdict that knows its architecture."""
        found = {v.model: v for side in self.verdicts.values() for v in side.values()}
        return dict(sorted(found.items(), key=lambda item: (item[1].evidence != "real", item[0])))

    @cached_property
    def checks(self) -> list[str]:
        """Every check of any column, in the order of reports."""
        return in_order(case.check for side in self.verdicts.values() for case in side)

    def rows(self, by: By) -> dict[str, list[str]]:
        """Architectures, sorted, or models; each with its models."""
        if by == "model":
            return {model: [model] for model in self.models}
        rows: dict[str, list[str]] = {}
        for model, verdict in self.models.items():
            rows.setdefault(verdict.architecture or "architecture not recorded", []).append(model)
        return dict(sorted(rows.items()))

    def standing(self, column: Column, models: Sequence[str]) -> Standing:
        """What the verdicts on some models amount to in one column."""
        side = self.verdicts[column]
        found = [
            side[Case(model, check)]
            for model in models
            for check in self.checks
            if Case(model, check) in side
        ]
        return standing(found, self.checks, models)

    def named(self, label: str) -> Column:
        """The column of that label.

        Raises:
            RecordsError: there is none.
        """
        for column in self.columns:
            if column.label == label:
                return column
        known = ", ".join(f'"{column.label}"' for column in self.columns)
        raise RecordsError(f"no column {label!r}", f"the columns are {known}")


def side_by_side(runs: Sequence[Records]) -> Sides:
    """Put runs side by side.

    Runs of the same version fill the same columns; where two judged the same, the one started
    later counts, and a note says so.
    """
    found: dict[Column, dict[Case, Verdict]] = {}
    notes = []
    in_time = sorted(runs, key=lambda run: run.header.started)
    for run in in_time:
        version = run.header.versions.get("transformer-lens", "unknown")
        replaced: Counter[Column] = Counter()
        for verdict in run.verdicts:
            column = Column(version, verdict.subject)
            side = found.setdefault(column, {})
            case = Case(verdict.model, verdict.check)
            replaced[column] += case in side
            side[case] = verdict
        for column, count in replaced.items():
            if count:
                again = "1 verdict is" if count == 1 else f"{count} verdicts are"
                notes.append(f"{column.label}: {again} of a later run ({run.header.started})")
        if run.truncated or run.missing:
            how = "was cut short" if run.truncated else f"stopped {run.missing} verdicts early"
            notes.append(f"the run of {version} started {run.header.started} {how}")
    absent = {column: _excuse(side) for column, side in found.items()}
    columns = sorted(found, key=_place)
    return Sides(
        verdicts={column: found[column] for column in columns if absent[column] is None},
        absent={column: why for column in columns if (why := absent[column]) is not None},
        notes=notes,
        headers=[run.header for run in in_time],
    )


def _excuse(side: Mapping[Case, Verdict]) -> str | None:
    """Why a column applies to no model; None of one that does."""
    if any(verdict.outcome != "not_applicable" for verdict in side.values()):
        return None
    reason = next(iter(side.values())).reason or "no reason given"
    return reason.splitlines()[0]


def _place(column: Column) -> tuple[bool, Version, str, int, str]:
    try:
        version, unknown = Version(column.version), False
    except InvalidVersion:
        version, unknown = Version("0"), True
    known = column.subject in _SUBJECTS
    order = _SUBJECTS.index(column.subject) if known else len(_SUBJECTS)
    return unknown, version, column.version, order, column.subject


class Changed(NamedTuple):
    """What becomes of one case between two columns."""

    case: Case
    architecture: str
    change: Change
    before: str | None
    after: str | None


def changes(sides: Sides, old: Column, new: Column) -> list[Changed]:
    """What a user who moves from one column to another gets, case by case.

    A known defect is as wrong as a failure; what is not judged on either side is left out.
    """
    before, after = sides.verdicts[old], sides.verdicts[new]
    found = []
    for model, any_verdict in sides.models.items():
        for check in sides.checks:
            case = Case(model, check)
            was, now = (side[case].outcome if case in side else None for side in (before, after))
            change = _change(was, now)
            if change is not None:
                found.append(Changed(case, any_verdict.architecture, change, was, now))
    return found


def _change(was: str | None, now: str | None) -> Change | None:
    if now in _RIGHT:
        if was in _RIGHT:
            return "still right"
        return "better" if was in _WRONG else "new"
    if now in _WRONG:
        if was in _WRONG:
            return "still wrong"
        return "worse" if was in _RIGHT else "new, wrong"
    return "gone" if was in _RIGHT | _WRONG else None


def migrations(sides: Sides) -> list[tuple[Column, Column]]:
    """The moves that users make: from every other column to the last."""
    return [(column, sides.columns[-1]) for column in sides.columns[:-1]]
