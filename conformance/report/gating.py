"""What a gate found, as text: only what changed, and the command that shows each again."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from conformance.gate import differences, still_failing
from conformance.report.terminal import run_command
from conformance.standing import in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conformance.gate import Finding, Run

#: How many lines each kind of finding that does not block may take.
_SHOWN = 10
#: How findings of a kind are counted; others take an s.
_COUNTED = {
    "INCOMPLETE": ("problem of the files", "problems of the files"),
    "ANOTHER FAILURE": ("failure of another kind", "failures of another kind"),
    "UNEXPECTED PASS": ("unexpected pass", "unexpected passes"),
    "STALE ENTRY": ("stale entry of the ledger", "stale entries of the ledger"),
    "UNCOVERED": ("architecture not covered", "architectures not covered"),
    "NOT EXECUTED": ("check no longer executed", "checks no longer executed"),
}
_QUIET = {"known defect": "now listed as a known defect"}


def lines(
    found: Sequence[Finding], run: Run, baseline: Run, models: str | None = None
) -> list[str]:
    """The whole text.

    Args:
        found: by the gate.
        run: the run that is judged.
        baseline: the run that was kept.
        models: the ``models.toml`` for commands; None where the default serves.
    """
    changed = differences(run, baseline)
    text = [f"baseline and run differ: {', '.join(changed)}", ""] if changed else []
    for group in grouped(f for f in found if f.blocks):
        text += [*_blocking(group, models), ""]
    quiet: dict[str, list[Finding]] = {}
    for finding in found:
        if not finding.blocks:
            quiet.setdefault(finding.kind, []).append(finding)
    for kind, findings in quiet.items():
        text += [*_quiet(kind, findings), ""]
    return [*text, *_conclusion(found, run, baseline)]


def grouped(found: Iterable[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several checks of one port are told together."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in found:
        port = (f.case.model, f.case.subject) if f.case else ()
        groups.setdefault((f.kind, f.change, f.detail, *port), []).append(f)
    return list(groups.values())


def title(group: Sequence[Finding]) -> str:
    """One line: what kind of finding, where, and what changed."""
    return f"{group[0].kind}: {_where(group)}{group[0].change}"


def command(group: Sequence[Finding], models: str | None = None) -> str | None:
    """What shows a group of findings again; None of findings on a whole run."""
    case = group[0].case
    if case is None:
        return None
    return run_command(case.model, case.subject, _checks(group), models)


def _checks(group: Sequence[Finding]) -> list[str]:
    return in_order(f.case.check for f in group if f.case)


def _where(group: Sequence[Finding]) -> str:
    case = group[0].case
    if case is None:
        return ""
    checks = _checks(group)
    many = f"{len(checks)} checks: " if len(checks) > 1 else ""
    return f"{case.model} / {case.subject} / {many}{', '.join(checks)}: "


def _blocking(group: Sequence[Finding], models: str | None) -> list[str]:
    text = [title(group), *textwrap.indent(group[0].detail, "  ").splitlines()]
    again = command(group, models)
    return text if again is None else [*text, f"  {again}"]


def _quiet(kind: str, found: Sequence[Finding]) -> list[str]:
    groups = grouped(found)
    text = [f"{_QUIET.get(kind, kind)}: {_verdicts(len(found))}"]
    for group in groups[:_SHOWN]:
        text.append(f"  {_where(group)}{group[0].change}")
        if kind == "known defect":
            text += textwrap.indent(group[0].detail, "    ").splitlines()
    if len(groups) > _SHOWN:
        rest = sum(map(len, groups[_SHOWN:]))
        text.append(f"  and {_verdicts(rest)} more")
    return text


def _verdicts(count: int) -> str:
    return "1 verdict" if count == 1 else f"{count} verdicts"


def _conclusion(found: Sequence[Finding], run: Run, baseline: Run) -> list[str]:
    compared = f"{_verdicts(len(run.verdicts))} against {len(baseline.verdicts)} of the baseline"
    text = []
    if count := still_failing(run, baseline):
        text = [f"as in the baseline, {_verdicts(count)} did not pass; that alone does not block"]
    blocking = Counter(f.kind for f in found if f.blocks)
    if not blocking:
        return [*text, f"gate: passed: nothing blocks ({compared})"]
    said = ", ".join(f"{count} {_named(kind, count)}" for kind, count in blocking.items())
    return [*text, f"gate: FAILED: {said} ({compared})"]


def _named(kind: str, count: int) -> str:
    one, many = _COUNTED.get(kind, (kind.lower(), f"{kind.lower()}s"))
    return one if count == 1 else many
