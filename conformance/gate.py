"""A run against a kept one: what blocks, and what else changed. Knows records only.

Each rule looks at both runs and yields findings; :data:`RULES` lists them, and a caller may add
rules that know more (a ledger, a list of architectures).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from conformance.checks.names import CHECKS
from conformance.records import EXECUTED, HARNESS_FAILED, NONCONFORMING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conformance.records import Records, Verdict

MISSING = "missing"
_BAD = (NONCONFORMING | HARNESS_FAILED) - {"xpassed"}
_REASON_LINES = 3
#: A verdict that is neither executed nor an error leaves what it should have checked unknown.
_SILENT = frozenset({"skipped", "not_applicable", MISSING})


class Case(NamedTuple):
    """What has one verdict."""

    model: str
    subject: str
    check: str


@dataclass(frozen=True)
class Run:
    """One of the two runs.

    Attributes:
        role: ``run`` or ``baseline``, for messages.
        records: what the file holds.
        selected: whether a verdict takes part in the comparison.
    """

    role: str
    records: Records
    selected: Callable[[Verdict], bool] = lambda verdict: True

    @cached_property
    def verdicts(self) -> Mapping[Case, Verdict]:
        """By case; those that take part."""
        return {
            Case(v.model, v.subject, v.check): v for v in self.records.verdicts if self.selected(v)
        }

    def outcome(self, case: Case) -> str:
        """The outcome of a case, ``missing`` where there is none."""
        return self.verdicts[case].outcome if case in self.verdicts else MISSING


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a rule found.

    Attributes:
        kind: of finding, in capitals if it blocks.
        change: what changed, or what is wrong, in words.
        case: where; None for the whole run.
        detail: why the verdict is what it is now.
        blocks: whether it fails the gate.
    """

    kind: str
    change: str
    case: Case | None = None
    detail: str = ""
    blocks: bool = True


Rule = Callable[[Run, Run], Iterable[Finding]]


def complete(run: Run, baseline: Run) -> Iterator[Finding]:
    """Both files are whole: neither cut short, nor stopped early, nor at odds with itself."""
    for side in (baseline, run):
        for problem in _problems(side.records):
            yield Finding("INCOMPLETE", f"the {side.role} {problem}")
    if not any(v.outcome in EXECUTED for v in baseline.verdicts.values()):
        yield Finding("INCOMPLETE", "the baseline judged nothing of what is compared here")


def _problems(records: Records) -> Iterator[str]:
    if records.footer is None:
        yield "was cut short: its file has no footer"
        return
    cases = Counter((v.model, v.subject, v.check) for v in records.verdicts)
    if any(count > 1 for count in cases.values()):
        yield "holds more than one verdict of a case: its file is damaged"
    if (records.missing or 0) > 0:
        yield f"stopped early: it lacks {records.missing} of the verdicts it was to reach"
    counted = Counter(v.outcome for v in records.verdicts)
    if counted != Counter(records.footer.outcomes):
        yield "does not hold the verdicts that its footer counts: its file is damaged"


def regressions(run: Run, baseline: Run) -> Iterator[Finding]:
    """What passed and does not any more, be it for want of a verdict."""
    for case, verdict in baseline.verdicts.items():
        now = run.outcome(case)
        if verdict.outcome == "passed" and now in _BAD | _SILENT:
            yield _finding("REGRESSION", case, run, baseline)


def unexpected_passes(run: Run, baseline: Run) -> Iterator[Finding]:
    """What the ledger expects to fail and passes: its entry must go, whatever the baseline was."""
    for case, verdict in run.verdicts.items():
        if verdict.outcome == "xpassed":
            yield _finding("UNEXPECTED PASS", case, run, baseline)


def new_failures(run: Run, baseline: Run) -> Iterator[Finding]:
    """Failures and errors of what did not pass before, but did not fail so either."""
    for case, verdict in run.verdicts.items():
        before = baseline.outcome(case)
        if verdict.outcome not in _BAD or before == "passed":
            continue
        if before not in _BAD:
            yield _finding("NEW FAILURE", case, run, baseline)
        elif _signature(verdict) != _signature(baseline.verdicts[case]):
            yield _finding("ANOTHER FAILURE", case, run, baseline)


def stale_entries(run: Run, baseline: Run) -> Iterator[Finding]:
    """What the ledger lists and the run no longer showed: nothing says so if it comes back."""
    for stale in run.records.stale:
        yield Finding("STALE ENTRY", stale.describe())


def uncovered(architectures: Iterable[str], version: str) -> Rule:
    """A rule: the installed TransformerLens supports these, and nothing judges them.

    Args:
        architectures: that are neither covered nor excused.
        version: of TransformerLens.
    """

    def rule(run: Run, baseline: Run) -> Iterator[Finding]:
        for name in architectures:
            yield Finding(
                "UNCOVERED",
                f"{name}: transformer-lens {version} supports it, and models.toml has neither a "
                "[[model]] of it nor a [[gap]] that says why",
            )

    return rule


def not_executed(run: Run, baseline: Run) -> Iterator[Finding]:
    """Checks that the baseline executed, without passing, and the run did not."""
    for case, verdict in baseline.verdicts.items():
        executed = verdict.outcome in EXECUTED and verdict.outcome != "passed"
        if executed and run.outcome(case) in _SILENT:
            yield _finding("NOT EXECUTED", case, run, baseline)


def improvements(run: Run, baseline: Run) -> Iterator[Finding]:
    """What passes now and did not, and what is new; none of it blocks."""
    for case, verdict in run.verdicts.items():
        before = baseline.outcome(case)
        if before == MISSING and verdict.outcome not in _BAD | {"xpassed"}:
            yield _finding("new", case, run, baseline, blocks=False)
        elif verdict.outcome == "passed" and before != "passed":
            yield _finding("better", case, run, baseline, blocks=False)


def newly_known(run: Run, baseline: Run) -> Iterator[Finding]:
    """What the ledger has come to expect: not right, and no regression that nobody looked at."""
    for case, verdict in run.verdicts.items():
        known = verdict.outcome == "xfailed"
        if known and baseline.outcome(case) not in ("xfailed", MISSING):
            yield _finding("known defect", case, run, baseline, blocks=False)


RULES: tuple[Rule, ...] = (
    complete,
    regressions,
    new_failures,
    unexpected_passes,
    stale_entries,
    not_executed,
    newly_known,
    improvements,
)


def gate(run: Run, baseline: Run, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """Everything that the rules find, in their order; empty if nothing changed.

    Cases come by model, subject and place of the check: the order of lines in a file, which
    workers decide, does not show.
    """
    return [f for rule in rules for f in sorted(rule(run, baseline), key=_place)]


def _place(finding: Finding) -> tuple[bool, str, str, int, str]:
    case = finding.case
    if case is None:
        return False, "", "", 0, ""
    known = CHECKS.index(case.check) if case.check in CHECKS else len(CHECKS)
    return True, case.model, case.subject, known, case.check


def still_failing(run: Run, baseline: Run) -> int:
    """How many cases fail, or are errors, just as they did before."""
    before = baseline.verdicts
    return sum(
        v.outcome in _BAD and c in before and _signature(v) == _signature(before[c])
        for c, v in run.verdicts.items()
    )


def differences(run: Run, baseline: Run) -> Sequence[str]:
    """In what the two runs' surroundings differ; versions first."""
    new, old = run.records.header, baseline.records.header
    found = []
    for package in sorted({*new.versions, *old.versions}):
        was, now = (h.versions.get(package, "not recorded") for h in (old, new))
        if was != now:
            found.append(f"{package} {was} -> {now}")
    if new.models_toml_sha256 != old.models_toml_sha256:
        found.append("models.toml was changed")
    if new.seeds != old.seeds:
        found.append("other seeds")
    return found


def _signature(verdict: Verdict) -> tuple[str, str | None]:
    return verdict.outcome, verdict.first_divergence


def _finding(kind: str, case: Case, run: Run, baseline: Run, *, blocks: bool = True) -> Finding:
    verdict = run.verdicts.get(case)
    words = [s.outcome(case).replace("_", " ") for s in (baseline, run)]
    detail = [] if verdict is None else _why(verdict)
    return Finding(kind, " -> ".join(words), case, "\n".join(detail), blocks)


def _why(verdict: Verdict) -> list[str]:
    reason = (verdict.reason or "").splitlines()
    if verdict.outcome == "xfailed" or verdict.first_divergence is None:
        return reason[: 1 if verdict.outcome == "xfailed" else _REASON_LINES]
    return [f"first divergence: {verdict.first_divergence}", *reason[:_REASON_LINES]]
