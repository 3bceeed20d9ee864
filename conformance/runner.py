"""One model after another: its reference once, its subjects each in a child, a verdict per case.

Every case gets exactly one verdict: the one its child sent, or one made here that says why it
sent none. Nothing passes silently: a child that ends well without a verdict is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conformance.errors import (
    CheckpointError,
    ConformanceError,
    DoesNotFit,
    ImplementationError,
    NotApplicable,
    RecordsError,
)
from conformance.footprint.fitting import require, with_tier
from conformance.footprint.shapes import of_name
from conformance.jobs import Job
from conformance.ledger.judging import expected
from conformance.records import Verdict, verdict_from_dict
from conformance.selection import Case
from conformance.spec import HubSource

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.isolation import Isolation, Outcome
    from conformance.jobs import Limit
    from conformance.records import Outcome as OutcomeName
    from conformance.spec import ModelSpec, Spec

#: Called with the model, the subject (None for the reference) and what it is doing.
Progress = Callable[[str, str | None, str], None]


@dataclass(frozen=True, slots=True)
class _Ending:
    """What becomes of the cases that got no verdict, and why."""

    outcome: OutcomeName
    reason: str
    peak_bytes: int | None = None
    duration_s: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Runner:
    """Reaches verdicts, running each model's reference and each of its subjects once.

    Args:
        spec: the whole ``models.toml``.
        cases: everything this process may be asked for; it decides what a subject's child runs.
        isolation: where children come from.
        cache: directory of checkpoints and reference traces.
        timeout: seconds for each job.
        progress: called as things happen.
        limit: the memories that a run must fit in; what does not is skipped. None for no limit.
    """

    def __init__(
        self,
        spec: Spec,
        cases: Sequence[Case],
        isolation: Isolation,
        *,
        cache: Path,
        timeout: float,
        progress: Progress | None = None,
        limit: Limit | None = None,
    ) -> None:
        self._limit = limit
        self._tiers = spec.tiers
        self._models = {model.id: model for model in spec.models}
        self._loaders = {name: subject.loader for name, subject in spec.subjects.items()}
        self._isolation = isolation
        self._cache = str(cache)
        self._timeout = timeout
        self._progress = progress
        self._checks: dict[tuple[str, str], list[str]] = {}
        for case in cases:
            self._checks.setdefault((case.model, case.subject), []).append(case.check)
        self._references: dict[str, _Ending | None] = {}
        self._reference_costs: dict[str, dict[str, Any]] = {}
        self._verdicts: dict[tuple[str, str], dict[str, Verdict]] = {}

    def verdict(self, case: Case) -> Verdict:
        """The verdict of a case; the first of a subject's cases runs all of them."""
        key = (case.model, case.subject)
        if key not in self._verdicts:
            self._verdicts[key] = self._run(self._models[case.model], case.subject)
        return self._verdicts[key][case.check]

    def _run(self, model: ModelSpec, subject: str) -> dict[str, Verdict]:
        checks = tuple(self._checks[model.id, subject])
        if model.id not in self._references:
            self._references[model.id] = self._run_reference(model)
        failed = self._references[model.id]
        if failed is not None:
            verdicts = {check: _without(failed, model, subject, check) for check in checks}
        else:
            verdicts = self._run_subject(model, subject, checks)
        return {check: expected(verdict, model) for check, verdict in verdicts.items()}

    def _run_reference(self, model: ModelSpec) -> _Ending | None:
        """None when the reference is there; otherwise what becomes of every case of the model."""
        mine = (checks for (name, _), checks in self._checks.items() if name == model.id)
        asked = dict.fromkeys(check for checks in mine for check in checks)
        if (too_large := self._known_too_large(model, tuple(asked))) is not None:
            return too_large
        jobs = (
            Job("checkpoint", model, self._cache),
            Job("reference", model, self._cache, checks=tuple(asked), limit=self._limit),
        )
        outcome = self._isolate(jobs, model, None)
        if isinstance(outcome, _Ending):
            return outcome
        if outcome.status == "ok":
            self._reference_costs[model.id] = {
                "reference_s": round(outcome.duration_s, 3),
                "reference_peak_bytes": outcome.peak_bytes,
            }
            return None
        what = "the checkpoint" if outcome.kind == "checkpoint" else "the reference"
        if outcome.is_a(NotApplicable):
            return _Ending("not_applicable", _said(outcome))
        if outcome.is_a(DoesNotFit):
            metrics = with_tier(outcome.facts, self._tiers)
            return _Ending("skipped", _said(outcome), metrics=metrics)
        if outcome.is_a(CheckpointError):
            return _Ending("error", f"no checkpoint: {_said(outcome)}")
        if outcome.status == "raised":
            reason = f"{what} failed: {outcome.details()}"
            return _Ending("error", reason, outcome.peak_bytes, outcome.duration_s)
        verb = {"timeout": "timed out", "oom": "ran out of memory"}.get(outcome.status, "crashed")
        return _Ending(
            outcome.status,
            f"{what} {verb}: {outcome.details()}",
            outcome.peak_bytes,
            outcome.duration_s,
        )

    def _known_too_large(self, model: ModelSpec, checks: tuple[str, ...]) -> _Ending | None:
        """Why a model of the hub is not even fetched, where its sizes are known here."""
        shape = of_name(model.source.hub) if isinstance(model.source, HubSource) else None
        if self._limit is None or shape is None:
            return None
        try:
            require(shape, model.dtype, checks, self._limit)
        except DoesNotFit as error:
            return _Ending("skipped", str(error), metrics=with_tier(error.facts, self._tiers))
        return None

    def _run_subject(
        self, model: ModelSpec, subject: str, checks: tuple[str, ...]
    ) -> dict[str, Verdict]:
        job = Job("subject", model, self._cache, subject, self._loaders.get(subject), checks)
        outcome = self._isolate((job,), model, subject)
        if isinstance(outcome, _Ending):
            return {check: _without(outcome, model, subject, check) for check in checks}
        ending = _ending_of_subject(outcome)
        verdicts, problems = _received(outcome.records, model, subject, checks)
        if problems and outcome.status == "ok":
            ending = replace(ending, reason="\n".join([ending.reason, *problems]))
        cost = {
            **self._reference_costs[model.id],
            "subject_s": round(outcome.duration_s, 3),
            "subject_peak_bytes": outcome.peak_bytes,
        }
        for check in checks:
            if check in verdicts:
                verdict = verdicts[check]
                peak = verdict.peak_bytes or outcome.peak_bytes
                metrics = {**with_tier(verdict.metrics, self._tiers), "cost": cost}
                verdicts[check] = replace(verdict, peak_bytes=peak, metrics=metrics)
            else:
                verdicts[check] = _without(ending, model, subject, check)
        return verdicts

    def _isolate(
        self, jobs: Sequence[Job], model: ModelSpec, subject: str | None
    ) -> Outcome | _Ending:
        report = self._progress

        def progress(text: str) -> None:
            if report is not None:
                report(model.id, subject, text)

        progress("starting")
        try:
            return self._isolation.run(jobs, timeout=self._timeout, progress=progress)
        except ConformanceError as error:
            return _Ending("error", str(error))


def _said(outcome: Outcome) -> str:
    """An exception's own words; raised on purpose, so they say more than a traceback."""
    return f"{outcome.message}\nhint: {outcome.hint}" if outcome.hint else outcome.message


def _ending_of_subject(outcome: Outcome) -> _Ending:
    def ending(name: OutcomeName, reason: str) -> _Ending:
        return _Ending(name, reason, outcome.peak_bytes, outcome.duration_s)

    if outcome.status == "ok":
        return ending("error", "the subject ran to its end, but the harness reached no verdict")
    if outcome.status != "raised":
        return ending(outcome.status, outcome.details())
    if outcome.is_a(NotApplicable):
        return ending("not_applicable", _said(outcome))
    if outcome.is_a(ImplementationError):
        return ending("failed", f"the port cannot be loaded or run: {outcome.details()}")
    return ending("error", f"the harness failed: {outcome.details()}")


def _without(ending: _Ending, model: ModelSpec, subject: str, check: str) -> Verdict:
    return Verdict(
        model=model.id,
        subject=subject,
        check=check,
        outcome=ending.outcome,
        architecture=model.architecture,
        evidence=model.evidence,
        dtype=model.dtype,
        reason=ending.reason,
        duration_s=ending.duration_s,
        peak_bytes=ending.peak_bytes,
        metrics=ending.metrics,
    )


def _received(
    records: Sequence[Mapping[str, Any]], model: ModelSpec, subject: str, checks: Sequence[str]
) -> tuple[dict[str, Verdict], list[str]]:
    """What a child sent, by check; and what was wrong with it."""
    verdicts: dict[str, Verdict] = {}
    problems: list[str] = []
    for record in records:
        try:
            verdict = verdict_from_dict(record)
        except RecordsError as error:
            problems.append(f"a verdict was malformed: {error.message}")
            continue
        got = Case(verdict.model, verdict.subject, verdict.check)
        if (got.model, got.subject) != (model.id, subject) or got.check not in checks:
            problems.append(f"a verdict nobody asked for: {got.id}")
        elif got.check in verdicts:
            problem = "the harness sent two verdicts for this check"
            failed = _Ending("error", problem, verdict.peak_bytes, verdict.duration_s)
            verdicts[got.check] = _without(failed, model, subject, got.check)
        else:
            verdicts[got.check] = replace(
                verdict,
                architecture=model.architecture,
                evidence=model.evidence,
                dtype=model.dtype,
            )
    return verdicts, problems
