"""What the ledger lists and runs no longer show. Pure: from the spec and verdicts alone.

An expected failure is stale where every case it covers was judged and none failed as it says. A
case that was not run, or could not be, or that failed in a way nobody expects, proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS
from conformance.ledger.judging import expected, failing, holds
from conformance.records import Stale, Verdict
from conformance.spec import EVERY_CHECK, named, runs

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from conformance.records import Records
    from conformance.spec import Defect, ModelSpec, Showing, Spec

Case = tuple[str, str, str]


@dataclass(frozen=True)
class Run:
    """What was judged with one set of versions, as it was before any ledger was applied."""

    versions: Mapping[str, str]
    verdicts: Mapping[Case, Verdict]

    def judged(self, spec: Spec) -> dict[Case, Verdict]:
        """The verdicts with the ledger applied as it is now; models no longer listed are left."""
        models = {model.id: model for model in spec.models}
        return {
            case: expected(verdict, models[verdict.model], self.versions)
            for case, verdict in self.verdicts.items()
            if verdict.model in models
        }


def merged(records: Iterable[Records]) -> list[Run]:
    """One run for each set of versions and dtype; of a case judged twice, the later counts."""
    found: dict[tuple[str, ...], Run] = {}
    for one in sorted(records, key=lambda one: one.header.started):
        versions = one.header.versions
        known = tuple(versions.get(name, "") for name in ("transformer-lens", "transformers"))
        key = (*known, one.header.dtype or "")
        before = found[key].verdicts if key in found else {}
        verdicts = {(v.model, v.subject, v.check): unlisted(v) for v in one.verdicts}
        found[key] = Run(versions, {**before, **verdicts})
    return [found[key] for key in sorted(found)]


def unlisted(verdict: Verdict) -> Verdict:
    """A recorded verdict as it was before a ledger was applied."""
    outcome = verdict.outcome
    if outcome == "xfailed":
        return replace(verdict, outcome="failed")
    return replace(verdict, outcome="passed") if outcome == "xpassed" else verdict


@dataclass(frozen=True)
class Leftover:
    """A ``shows`` entry of which something is stale.

    Attributes:
        defect: which ``[[defect]]``.
        showing: which of its ``shows``.
        whole: nothing it covers fails as it says; then ``names`` are all of its names.
        names: models (ids, globs) and architectures of which none fails as it says.
        kinds: kinds of site at which nothing fails any more.
    """

    defect: int
    showing: int
    whole: bool
    names: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class _Found(Enum):
    """What the cases of one name in one run come to."""

    SHOWN = "fails as listed"
    OTHERWISE = "fails, but not as anybody expects"
    UNKNOWN = "not all were judged, and none fails as listed"
    GONE = "all were judged, and none fails as listed"


def stale(spec: Spec, records: Iterable[Records]) -> tuple[Stale, ...]:
    """What of the ledger is stale, as a record says it."""
    if spec.ledger is None:
        return ()
    ledger, found = spec.ledger, []
    for left in leftovers(spec, merged(records)):
        defect = ledger.defects[left.defect]
        showing = defect.shows[left.showing]
        fixed = Stale(
            file=ledger.path.name,
            line=ledger.line(left.defect, left.showing),
            subject=showing.subject,
            check=showing.check,
            link=defect.link,
            what="entry" if left.whole else "models",
            names=left.names,
        )
        if left.names:
            found.append(fixed)
        if left.kinds:
            found.append(replace(fixed, what="kinds", names=left.kinds))
    return tuple(found)


def leftovers(spec: Spec, made: Sequence[Run]) -> tuple[Leftover, ...]:
    """Every ``shows`` entry of which something is stale, in the ledger's order.

    Args:
        spec: the models and their ledger.
        made: the runs; what any of them shows is not stale.
    """
    judged = [(run, run.judged(spec)) for run in made]
    found = []
    for position, defect in enumerate(spec.ledger.defects if spec.ledger else ()):
        mine = [_in_dtype(defect, v) for run, v in judged if holds(defect, run.versions)]
        for number, showing in enumerate(defect.shows):
            cover = _cover(defect, showing, spec.models, mine)
            left = _left(position, number, cover, showing, mine)
            if left.names or left.kinds:
                found.append(left)
    return tuple(found)


def divided(spec: Spec, made: Sequence[Run]) -> Iterator[tuple[int, int, str, Run, Run]]:
    """Names whose failure one run shows and another, of other versions, no longer does.

    Yields:
        the defect, its showing, the name, a run that shows it and one that does not.
    """
    judged = [(run, run.judged(spec)) for run in made]
    for position, defect in enumerate(spec.ledger.defects if spec.ledger else ()):
        mine = [(run, _in_dtype(defect, v)) for run, v in judged if holds(defect, run.versions)]
        for number, showing in enumerate(defect.shows):
            cover = _cover(defect, showing, spec.models, [verdicts for _, verdicts in mine])
            for name, cases in cover.items():
                found = {_found(cases, showing, verdicts): run for run, verdicts in mine}
                if _Found.SHOWN in found and _Found.GONE in found:
                    yield position, number, name, found[_Found.SHOWN], found[_Found.GONE]


def _in_dtype(defect: Defect, verdicts: Mapping[Case, Verdict]) -> Mapping[Case, Verdict]:
    """Those that were reached in a dtype the entry is about."""
    if defect.dtype is None:
        return verdicts
    return {case: v for case, v in verdicts.items() if v.dtype in (None, *defect.dtype)}


def _cover(
    defect: Defect,
    showing: Showing,
    models: Sequence[ModelSpec],
    made: Sequence[Mapping[Case, Verdict]],
) -> dict[str, tuple[Case, ...]]:
    """Each name that a ``shows`` entry gives, with the cases it covers.

    An entry bound to dtypes covers the models whose own dtype is one of them, and those that a run
    judged in one of them.
    """
    elsewhere = {v.model for verdicts in made for v in verdicts.values() if v.dtype}
    checks = CHECKS if showing.check == EVERY_CHECK else (showing.check,)
    return {
        name: tuple(
            (model.id, showing.subject, check)
            for model in covered
            if runs(model, showing.subject)
            and (defect.dtype is None or model.dtype in defect.dtype or model.id in elsewhere)
            for check in checks
        )
        for name, covered in named(showing, models)
    }


def _left(
    position: int,
    number: int,
    cover: Mapping[str, tuple[Case, ...]],
    showing: Showing,
    made: Sequence[Mapping[Case, Verdict]],
) -> Leftover:
    gone = []
    for name, cases in cover.items():
        found = {_found(cases, showing, verdicts) for verdicts in made}
        if _Found.GONE in found and found <= {_Found.GONE, _Found.UNKNOWN}:
            gone.append(name)
    if len(gone) == len(cover):
        return Leftover(position, number, whole=True, names=tuple(gone))
    cases = tuple(case for covered in cover.values() for case in covered)
    return Leftover(position, number, False, tuple(gone), _unshown(cases, showing, made))


def _unshown(
    cases: Sequence[Case], showing: Showing, made: Sequence[Mapping[Case, Verdict]]
) -> tuple[str, ...]:
    """The kinds at which nothing fails, although in some run every case was judged."""
    shown: set[str] = set()
    complete = False
    for verdicts in made:
        found = [_of_case(case, showing, verdicts) for case in cases]
        if _Found.OTHERWISE in found:
            return ()
        complete |= _Found.UNKNOWN not in found and bool(found)
        for case, state in zip(cases, found, strict=True):
            if state is _Found.SHOWN:
                shown.update(failing(verdicts[case]))
    return tuple(kind for kind in showing.kinds or () if kind not in shown) if complete else ()


def _found(cases: Sequence[Case], showing: Showing, verdicts: Mapping[Case, Verdict]) -> _Found:
    found: set[_Found] = set()
    for _, group in groupby(cases, key=lambda case: case[0]):
        of_model = tuple(group)
        if showing.check == EVERY_CHECK and any(_passes(case, verdicts) for case in of_model):
            found.add(_Found.GONE)  # it was to fail every check
        else:
            found.add(_worst({_of_case(case, showing, verdicts) for case in of_model}))
    return _worst(found or {_Found.UNKNOWN})


def _worst(found: Container[_Found]) -> _Found:
    return next(state for state in _Found if state in found)


def _passes(case: Case, verdicts: Mapping[Case, Verdict]) -> bool:
    return case in verdicts and verdicts[case].outcome in ("passed", "xpassed")


def _of_case(case: Case, showing: Showing, verdicts: Mapping[Case, Verdict]) -> _Found:
    verdict = verdicts.get(case)
    if verdict is None:
        return _Found.UNKNOWN
    if verdict.outcome == "not_applicable":
        # A check that came to nothing gives its reasons; a port that is not there gives none.
        return _Found.GONE if verdict.metrics.get("not_applicable") else _Found.UNKNOWN
    if _passes(case, verdicts):
        return _Found.GONE
    if verdict.outcome != "xfailed":
        return _Found.OTHERWISE if verdict.outcome == "failed" else _Found.UNKNOWN
    if showing.kinds is not None:
        # Another entry's failure may come first; this one's shows at its own kinds.
        shown = not set(showing.kinds).isdisjoint(failing(verdict))
    else:
        shown = showing.first_divergence in (None, verdict.first_divergence)
    return _Found.SHOWN if shown else _Found.GONE
