"""Text for a terminal, from records alone: the table of a run, and why a verdict is what it is.

Everything reads without colour and at 80 columns.
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS
from conformance.records import (
    HARNESS_FAILED,
    NONCONFORMING,
    OUTCOMES,
    Comparison,
    JudgementSummary,
    Records,
    Stale,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.table import Table

#: The word that stands in a cell; capitals where a run is not all right.
WORDS: Mapping[str, str] = {
    "passed": "pass",
    "failed": "FAIL",
    "error": "ERROR",
    "crashed": "CRASH",
    "timeout": "TIMEOUT",
    "oom": "OOM",
    "skipped": "skip",
    "not_applicable": "n/a",
    "xfailed": "xfail",
    "xpassed": "XPASS",
}
_STYLES: Mapping[str, str] = {
    "passed": "green",
    "skipped": "dim",
    "not_applicable": "dim",
    "xfailed": "yellow",
    "error": "bold magenta",
}
_BAD_STYLE = "bold red"
#: What stands in a cell where there is no room for words.
MARKS: Mapping[str, str] = {
    "passed": ".",
    "failed": "F",
    "error": "E",
    "crashed": "C",
    "timeout": "T",
    "oom": "O",
    "skipped": "s",
    "not_applicable": "-",
    "xfailed": "x",
    "xpassed": "X",
}
_WIDTH = 80
#: What `models.toml` gives an entry that names no dtype.
_USUAL_DTYPE = "float32"
_SHOWN_COMPARISONS = 3
_JUDGEMENTS: Mapping[str, str] = {
    "same_function": "same function (promoted float64)",
    "same_precision": "same precision (as users run it)",
    "exact": "exact values",
    "structure": "structure",
}


def ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Trained weights first, then by name: workers finish in any order."""
    return sorted(verdicts, key=lambda v: (v.evidence != "real", v.model, v.subject))


def is_bad(verdict: Verdict) -> bool:
    """Whether a verdict makes a run fail."""
    return verdict.outcome in NONCONFORMING or verdict.outcome in HARNESS_FAILED


def exit_code(outcomes: Iterable[str], stale: Sequence[Stale] = ()) -> int:
    """0 all right, 1 a port does not conform or the ledger is stale, 3 the harness failed."""
    seen = set(outcomes)
    if seen & HARNESS_FAILED:
        return 3
    return 1 if seen & NONCONFORMING or stale else 0


def explain(
    verdict: Verdict,
    *,
    models: str | None = None,
    dtype: str | None = None,
    alike: Sequence[Verdict] = (),
) -> str:
    """Why a verdict is what it is, and the next command to run.

    Args:
        verdict: any verdict.
        models: the ``models.toml`` of the run, for the command; None where the default serves.
        dtype: the run's ``--dtype``, if it had one.
        alike: verdicts of the same model with the same reason, to be named only.
    """
    name = f"{verdict.model} / {verdict.subject} / {verdict.check}"
    weights = f"{verdict.evidence} weights"
    if verdict.commit:
        weights += f" at {verdict.commit[:8]}"
    judged_in = f"in {verdict.dtype}" if verdict.dtype else None
    source = ", ".join(filter(None, (verdict.architecture, weights, judged_in)))
    lines = [f"{WORDS[verdict.outcome]}: {name} ({source})"]
    if verdict.reason:
        lines += textwrap.indent(verdict.reason, "  ").splitlines()
    if verdict.first_divergence:
        lines.append(f"  first divergence: {verdict.first_divergence}")
    for judgement, summary in verdict.verdict.items():
        lines += _judgement(judgement, summary, verdict.worst)
    if alike:
        names = ", ".join(f"{other.subject} / {other.check}" for other in alike)
        lines += textwrap.wrap(
            f"the same: {names}", _WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    if is_bad(verdict):
        lines += [
            "  run it again:",
            *(f"    {command}" for command in _commands(verdict, models, dtype)),
        ]
    return "\n".join(lines)


def explanations(
    verdicts: Iterable[Verdict], *, models: str | None = None, dtype: str | None = None
) -> list[str]:
    """An explanation of everything that makes a run fail; what died together is told once."""
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for verdict in filter(is_bad, verdicts):
        # A reason of several lines is the end of a process, which several checks may share.
        shared = verdict.reason if "\n" in (verdict.reason or "") else None
        own = (verdict.subject, verdict.check) if shared is None else (shared,)
        groups.setdefault((verdict.model, verdict.outcome, *own), []).append(verdict)
    by_model: dict[str, list[str]] = {}
    for first, *alike in groups.values():
        text = explain(first, models=models, dtype=dtype, alike=alike)
        by_model.setdefault(first.model, []).append(text)
    return [text for texts in by_model.values() for text in texts]


def abridged(verdict: Verdict, shown: dict[str, str]) -> Verdict:
    """A verdict whose long reason is cut to a line if it was shown before, for another case.

    Args:
        verdict: any verdict.
        shown: reasons shown so far, and where; this verdict's is added to it.
    """
    reason = verdict.reason or ""
    if "\n" not in reason:
        return verdict
    first = shown.setdefault(reason, f"{verdict.model} / {verdict.subject} / {verdict.check}")
    if first == f"{verdict.model} / {verdict.subject} / {verdict.check}":
        return verdict
    return replace(verdict, reason=f"{reason.splitlines()[0]}\n(all of it under {first})")


def _judgement(judgement: str, summary: JudgementSummary, worst: Sequence[Comparison]) -> list[str]:
    title = _JUDGEMENTS.get(judgement, judgement)
    lines = [f"  {title}: {summary.failed} of {summary.compared} comparisons failed"]
    if not summary.failed:
        if summary.margin is not None:
            lines.append(
                f"    closest to its bound: {summary.site or 'the whole'}, "
                f"measured {_number(summary.measured)} of {_number(summary.allowed)} allowed"
            )
        return lines
    failed = [c for c in worst if c.judgement == judgement and not c.ok]
    for comparison in failed[:_SHOWN_COMPARISONS]:
        lines += _comparison(comparison)
    if not failed:
        lines.append(
            f"    worst at {summary.site or 'the whole'}: measured {_number(summary.measured)}, "
            f"allowed {_number(summary.allowed)}"
        )
    hidden = summary.failed - min(len(failed), _SHOWN_COMPARISONS)
    if failed and hidden > 0:
        lines.append(f"    and {hidden} more; the worst are in records.jsonl")
    return lines


def _comparison(comparison: Comparison) -> list[str]:
    where = comparison.site or "the whole"
    prompt = f", prompt {comparison.prompt}" if comparison.prompt else ""
    lines = [f"    {where}{prompt}"]
    allowed = comparison.allowed
    size = f"measured {_number(comparison.measured)}"
    if allowed is not None:
        size += f", allowed {_number(allowed)}"
        if allowed > 0 and comparison.measured > allowed:
            size += f": {comparison.measured / allowed:.3g} times too much"
    lines.append(f"      {size}")
    if comparison.index is not None:
        values = ""
        if comparison.reference is not None and comparison.subject is not None:
            values = (
                f": reference {_number(comparison.reference, 9)}, "
                f"subject {_number(comparison.subject, 9)}"
            )
        lines.append(f"      largest difference at {list(comparison.index)}{values}")
    if comparison.bound:
        lines += _wrapped(f"allowed because: {comparison.bound}")
    if comparison.note:
        lines += _wrapped(f"note: {comparison.note}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8, break_long_words=False
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "nothing" if value is None else f"{value:.{digits}g}"


def _commands(verdict: Verdict, models: str | None, dtype: str | None) -> list[str]:
    if dtype is None and verdict.dtype != _USUAL_DTYPE:
        dtype = verdict.dtype
    run = run_command(verdict.model, verdict.subject, [verdict.check], models, dtype)
    options = run.removeprefix("conformance run ")
    return [run, f"pytest --pyargs conformance.suite {options}"]


def run_command(
    model: str,
    subject: str,
    checks: Iterable[str],
    models: str | None = None,
    dtype: str | None = None,
) -> str:
    """The command that judges one port again.

    Args:
        model: its id.
        subject: its subject.
        checks: which checks.
        models: the ``models.toml``; None where the default serves.
        dtype: the one to run in; None for the model's own.
    """
    options = ["--model", model, "--subject", subject]
    if dtype is not None:
        options += ["--dtype", dtype]
    options += [part for check in checks for part in ("--check", check)]
    if models is not None:
        options = ["--models", models, *options]
    return f"conformance run {shlex.join(options)}"


def counts(outcomes: Mapping[str, int]) -> str:
    """``135 verdicts: 130 passed, 5 not applicable``."""
    total = sum(outcomes.values())
    listed = ", ".join(
        f"{outcomes[name]} {name.replace('_', ' ')}" for name in OUTCOMES if outcomes.get(name)
    )
    return f"{total} verdict{'' if total == 1 else 's'}" + (f": {listed}" if listed else "")


def table(verdicts: Sequence[Verdict], width: int = _WIDTH) -> Table:
    """Models and subjects down, checks across, a word in each cell.

    Where words have no room, columns are lettered, cells hold a mark, and a caption explains
    both. Subjects that apply to no model at all are left out; :func:`left_out` names them.
    """
    from rich.table import Table
    from rich.text import Text

    cells: dict[tuple[str, str], dict[str, Verdict]] = {}
    for verdict in ordered(verdicts):
        cells.setdefault((verdict.model, verdict.subject), {})[verdict.check] = verdict
    absent = _absent(verdicts)
    columns = _columns(verdicts)
    heads = _heads(columns, width)
    marked = heads != columns and all(len(head) == 1 for head in heads)
    shown_as = MARKS if marked else WORDS
    result = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1 if marked else 2, 0, 0),
        header_style="bold",
        caption=_caption(heads, columns, verdicts) if marked else None,
        caption_justify="left",
        caption_style="",
    )
    result.add_column("model", overflow="fold", min_width=12)
    result.add_column("subject", overflow="fold")
    for head in heads:
        result.add_column(head, no_wrap=True)
    previous = None
    for (model, subject), row in cells.items():
        if subject in absent:
            continue
        evidence = next(iter(row.values())).evidence
        shown = "" if model == previous else model + (" (real)" if evidence == "real" else "")
        result.add_row(
            Text(shown),
            Text(subject),
            *(
                Text(shown_as[row[name].outcome], _STYLES.get(row[name].outcome, _BAD_STYLE))
                if name in row
                else Text(" " if marked else "-", "dim")
                for name in columns
            ),
        )
        previous = model
    return result


def _columns(verdicts: Iterable[Verdict]) -> list[str]:
    seen = {verdict.check: None for verdict in verdicts}
    return [
        *(name for name in CHECKS if name in seen),
        *(name for name in seen if name not in CHECKS),
    ]


def _heads(columns: Sequence[str], width: int) -> list[str]:
    """The columns' names, short names, or letters: the first that fit."""
    names = 40
    if width >= names + sum(len(name) + 2 for name in columns):
        return list(columns)
    short = [_shortened(name) for name in columns]
    if width >= names - 5 + sum(max(len(name), 5) + 2 for name in short) or len(columns) > 26:
        return short
    return [chr(ord("a") + number) for number in range(len(columns))]


def _caption(heads: Sequence[str], columns: Sequence[str], verdicts: Iterable[Verdict]) -> str:
    seen = {verdict.outcome for verdict in verdicts}
    checks = "  ".join(f"{head}={name}" for head, name in zip(heads, columns, strict=True))
    marks = "  ".join(f"{MARKS[o]}={WORDS[o]}" for o in OUTCOMES if o in seen)
    return f"{checks}\n{marks}"


def _shortened(name: str) -> str:
    return name if len(name) <= 7 else f"{name[:6]}."


def _absent(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Subjects that are not applicable everywhere, with the reason first given."""
    reasons: dict[str, str] = {}
    present = set()
    for verdict in verdicts:
        if verdict.outcome == "not_applicable":
            reasons.setdefault(verdict.subject, verdict.reason or "no reason given")
        else:
            present.add(verdict.subject)
    return {subject: reason for subject, reason in reasons.items() if subject not in present}


def left_out(verdicts: Sequence[Verdict]) -> list[str]:
    """One line for each subject that :func:`table` leaves out."""
    return [
        f"{subject}: not applicable to any of these models ({reason.splitlines()[0]})"
        for subject, reason in _absent(verdicts).items()
    ]


def state(records: Records) -> str | None:
    """What is to be said of a run that did not reach every verdict; None of one that did."""
    if records.truncated:
        return (
            "TRUNCATED: the file has no footer, so the run was cut short; "
            "what is here was decided before."
        )
    if records.missing:
        asked = len(records.verdicts) + records.missing
        return (
            f"STOPPED EARLY: {records.missing} of {asked} verdicts were not reached; "
            "the run was interrupted or told to stop at a failure."
        )
    return None


def summary(records: Records) -> list[str]:
    """Closing lines: what was run, what came of it."""
    versions = records.header.versions
    libraries = ", ".join(
        f"{name} {versions[name]}"
        for name in ("transformer-lens", "transformers", "torch", "python")
        if name in versions
    )
    models: dict[str, str] = {v.model: v.evidence for v in records.verdicts}
    evidence = Counter(models.values())
    kinds = f"({evidence['real']} with trained weights, {evidence['twin']} twins)"
    dtype = f", all in {records.header.dtype}" if records.header.dtype else ""
    lines = [
        libraries,
        f"{len(models)} models {kinds}{dtype}",
        counts(Counter(v.outcome for v in records.verdicts)),
    ]
    if records.footer is not None:
        lines.append(f"finished in {_duration(records.footer.duration_s)}")
    if records.stale:
        lines.append(f"STALE: {len(records.stale)} of what the ledger expects no longer shows")
    said = state(records)
    return [*lines, said] if said else lines


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
