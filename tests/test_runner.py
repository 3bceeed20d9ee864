"""How a child's end becomes exactly one verdict per case; no process is started here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import fake_model

from conformance import errors
from conformance.isolation import Isolation, IsolationError, Outcome
from conformance.records import Verdict
from conformance.runner import Runner
from conformance.selection import Case
from conformance.spec import Spec, SubjectSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conformance.isolation import Progress, Status
    from conformance.jobs import Job

CHECKS = ("weights", "logits")


class FakeIsolation:
    """Answers instead of running; remembers what it was asked."""

    def __init__(self, answer: Callable[[Sequence[Job]], Outcome]) -> None:
        self.asked: list[Sequence[Job]] = []
        self._answer = answer

    def run(
        self, jobs: Sequence[Job], *, timeout: float, progress: Progress | None = None
    ) -> Outcome:
        self.asked.append(jobs)
        assert timeout == 5
        if progress is not None:
            progress("at work")
        return self._answer(jobs)


def record(check: str, subject: str = "bridge", model: str = "m", **fields: Any) -> dict[str, Any]:
    return dataclasses.asdict(Verdict(model, subject, check, **{"outcome": "passed", **fields}))


def raised(error: errors.ConformanceError | Exception, **fields: Any) -> Outcome:
    bases = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    hint = error.hint if isinstance(error, errors.ConformanceError) else None
    message = error.message if isinstance(error, errors.ConformanceError) else str(error)
    cause = f"{type(error).__name__}: {message}"
    return Outcome("raised", cause=cause, error_bases=bases, message=message, hint=hint, **fields)


def ended(status: Status, kind: str) -> Outcome:
    return Outcome(status, kind=kind, cause="no words")


OK = Outcome("ok", peak_bytes=1000)
FINE = Outcome("ok", records=tuple(record(check) for check in CHECKS), peak_bytes=2000)


def runner(
    subject: Outcome = FINE, reference: Outcome = OK, subjects: Sequence[str] = ("bridge",)
) -> tuple[Runner, FakeIsolation, list[tuple[str, str | None, str]]]:
    def answer(jobs: Sequence[Job]) -> Outcome:
        return subject if jobs[0].kind == "subject" else reference

    isolation = FakeIsolation(answer)
    said: list[tuple[str, str | None, str]] = []
    made = Runner(
        Spec(
            models=(fake_model("m"),),
            subjects={"mine": SubjectSpec(loader="package.module:function")},
            path=Path("models.toml"),
            sha256="0" * 64,
        ),
        [Case("m", name, check) for name in subjects for check in CHECKS],
        cast("Isolation", isolation),
        cache=Path("/cache"),
        timeout=5,
        progress=lambda *said_now: said.append(said_now),
    )
    return made, isolation, said


def verdicts(subject: Outcome = FINE) -> list[Verdict]:
    made, _, _ = runner(subject)
    return [made.verdict(Case("m", "bridge", check)) for check in CHECKS]


def test_the_reference_runs_once_and_each_subject_once() -> None:
    made, isolation, said = runner(subjects=("bridge", "mine"))
    for subject in ("bridge", "mine"):
        for check in CHECKS:
            made.verdict(Case("m", subject, check))
    assert [[job.kind for job in jobs] for jobs in isolation.asked] == [
        ["checkpoint", "reference"],
        ["subject"],
        ["subject"],
    ]
    bridge, mine = isolation.asked[1][0], isolation.asked[2][0]
    assert (bridge.subject, bridge.loader, bridge.checks) == ("bridge", None, CHECKS)
    assert (mine.subject, mine.loader) == ("mine", "package.module:function")
    assert mine.cache == "/cache"
    assert ("m", None, "at work") in said
    assert ("m", "mine", "at work") in said


def test_a_verdict_that_was_sent_is_taken_and_completed() -> None:
    first, _ = verdicts()
    assert first.outcome == "passed"
    assert (first.architecture, first.evidence) == ("GPT2LMHeadModel", "twin")
    assert first.peak_bytes == 2000


@pytest.mark.parametrize(
    ("reference", "outcome", "reason"),
    [
        (
            Outcome("crashed", kind="reference", cause="SIGILL"),
            "crashed",
            "the reference crashed: SIGILL",
        ),
        (
            Outcome("timeout", kind="reference", cause="no end"),
            "timeout",
            "the reference timed out",
        ),
        (
            Outcome("oom", kind="reference", cause="killed"),
            "oom",
            "the reference ran out of memory",
        ),
        (
            Outcome("crashed", kind="checkpoint", cause="SIGILL"),
            "crashed",
            "the checkpoint crashed",
        ),
        (
            raised(errors.CheckpointError("wrong hash", "delete it"), kind="checkpoint"),
            "error",
            "no checkpoint: wrong hash\nhint: delete it",
        ),
        (
            raised(errors.ImplementationError("cannot load", "look"), kind="reference"),
            "error",
            "the reference failed: ImplementationError: cannot load",
        ),
        (
            raised(errors.NotApplicable("too new", "update"), kind="reference"),
            "not_applicable",
            "too new\nhint: update",
        ),
    ],
)
def test_without_a_reference_every_case_says_so(
    reference: Outcome, outcome: str, reason: str
) -> None:
    made, isolation, _ = runner(reference=reference, subjects=("bridge", "mine"))
    for subject in ("bridge", "mine"):
        for check in CHECKS:
            verdict = made.verdict(Case("m", subject, check))
            assert verdict.outcome == outcome
            assert (verdict.reason or "").startswith(reason)
            assert (verdict.subject, verdict.check) == (subject, check)
    assert len(isolation.asked) == 1


@pytest.mark.parametrize(
    ("subject", "outcome", "reason"),
    [
        (OK, "error", "the harness reached no verdict"),
        (Outcome("crashed", cause="SIGSEGV"), "crashed", "SIGSEGV"),
        (Outcome("timeout", cause="no end after 5 s"), "timeout", "no end after 5 s"),
        (Outcome("oom", cause="MemoryError"), "oom", "MemoryError"),
        (raised(errors.NotApplicable("gone in 4.0", "use 3.9")), "not_applicable", "gone in 4.0"),
        (
            raised(errors.ImplementationError("no weight", "look")),
            "failed",
            "the port cannot be loaded or run: ImplementationError: no weight",
        ),
        (raised(errors.FamilyError("unknown", "describe it")), "error", "the harness failed"),
        (raised(errors.TraceError("damaged", "remove it")), "error", "the harness failed"),
        (raised(ZeroDivisionError("by zero")), "error", "the harness failed: ZeroDivisionError"),
    ],
)
def test_without_a_verdict_the_end_of_the_subject_decides(
    subject: Outcome, outcome: str, reason: str
) -> None:
    for verdict in verdicts(subject=subject):
        assert verdict.outcome == outcome
        assert reason in (verdict.reason or "")


def test_a_crash_keeps_the_verdicts_sent_before() -> None:
    crash = Outcome("crashed", records=(record("weights"),), cause="SIGABRT", duration_s=2)
    first, second = verdicts(subject=crash)
    assert (first.outcome, second.outcome) == ("passed", "crashed")
    assert second.duration_s == 2


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (record("weights", model="other"), "a verdict nobody asked for: other/bridge/weights"),
        (record("loss"), "a verdict nobody asked for: m/bridge/loss"),
        ({"model": "m"}, "a verdict was malformed"),
    ],
)
def test_a_verdict_that_is_not_ours_counts_for_nothing(sent: dict[str, Any], problem: str) -> None:
    outcome = Outcome("ok", records=(sent, record("logits")))
    first, second = verdicts(subject=outcome)
    assert (first.outcome, second.outcome) == ("error", "passed")
    assert problem in (first.reason or "")


def test_two_verdicts_for_one_check_are_an_error() -> None:
    outcome = Outcome("ok", records=(record("weights"), record("weights"), record("logits")))
    first, second = verdicts(subject=outcome)
    assert (first.outcome, second.outcome) == ("error", "passed")
    assert first.reason == "the harness sent two verdicts for this check"


def test_when_no_process_can_be_had_it_is_the_harness_that_failed() -> None:
    def refuse(jobs: Sequence[Job]) -> Outcome:
        raise IsolationError("cannot fork", "free memory")

    made, isolation, _ = runner()
    isolation._answer = refuse
    verdict = made.verdict(Case("m", "bridge", "weights"))
    assert verdict.outcome == "error"
    assert "cannot fork" in (verdict.reason or "")
