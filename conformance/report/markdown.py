"""``report.md``: what a run found, as a page that opens anywhere. From records alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checks.names import CHECKS
from conformance.records import read
from conformance.report import REPORT
from conformance.report.names import judged, not_judged, rows
from conformance.report.tables import fenced, table
from conformance.report.terminal import (
    WORDS,
    abridged,
    explain,
    is_bad,
    left_out,
    ordered,
    state,
    summary,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from conformance.records import Records, Verdict


def write_page(records_file: Path) -> None:
    """Write ``report.md`` beside a records file."""
    text = page(read(records_file))
    records_file.with_name(REPORT).write_text(text, encoding="utf-8")


def page(records: Records) -> str:
    """The whole page: does it conform, the table, what does not and why, logits, cost."""
    verdicts = ordered(records.verdicts)
    bad = [v for v in verdicts if is_bad(v)]
    expected = [v for v in verdicts if v.outcome == "xfailed"]
    lines = ["# Conformance report", "", _headline(records, bad), ""]
    lines += [f"- {line}" for line in summary(records)]
    lines += [f"- {line}" for line in left_out(verdicts)]
    lines += [f"- started {records.header.started} on {records.header.platform}", ""]
    lines += ["## Verdicts", "", *matrix(verdicts), ""]
    if bad:
        shown: dict[str, str] = {}
        lines += ["## What does not conform", ""]
        for verdict in bad:
            lines += [*fenced(explain(abridged(verdict, shown))), ""]
    if records.stale:
        lines += ["## Stale expected failures", "", _STALE, ""]
        lines += [*(f"- {one.describe()}" for one in records.stale), ""]
    if expected:
        lines += ["## Expected failures", "", *_expected(expected), ""]
    if doubts := _contradictions(verdicts):
        lines += ["## References that contradict themselves", "", *doubts, ""]
    if excused := _excused(verdicts):
        lines += ["## Not applicable", "", _EXCUSED, "", *excused, ""]
    if records.names:
        lines += ["## Names", "", *_names(records), ""]
    lines += measured(verdicts)
    return "\n".join(lines)


def measured(verdicts: Sequence[Verdict], heading: str = "##") -> list[str]:
    """The figures of a run: how close, logits, cost."""
    return [
        *(f"{heading} How close", "", _CLOSE, "", *_margins(verdicts), ""),
        *(f"{heading} Logits", "", _LOGITS, "", *_logits(verdicts), ""),
        *(f"{heading} Cost", "", _COST, "", *_cost(verdicts), ""),
    ]


_EXCUSED = (
    "Invariants that an architecture makes meaningless, or that a port cannot show; the rest of "
    "their check was judged."
)

_STALE = (
    "The ledger lists them, everything they cover was judged, and nothing fails as they say. "
    "`conformance ledger update` proposes what to take out."
)
_NAMES = (
    "The worst verdict of all checks. *twin* is that of a tiny model with the configuration class "
    "of the name, *real* that of its own weights."
)
#: More names than this are folded.
_MANY = 20

_CLOSE = (
    "The measurement that came nearest to its bound, as a fraction of it (1 would fail). "
    "*Same function* is judged in promoted float64, *same precision* in the dtype that users run, "
    "against the reference's own error; `docs/verdicts.md` says where the bounds come from."
)
_LOGITS = (
    "Subject against reference, both in the dtype that users run; the largest or worst over all "
    "prompts. These figures are reported; the verdicts decide."
)
_COST = (
    "Wall time and peak resident memory of the process that ran the reference (next to nothing if "
    "its trace was there already) and of the one that ran the subject."
)


def _headline(records: Records, bad: Sequence[Verdict]) -> str:
    said = state(records)
    if said:
        return f"**{said}**"
    if not bad and records.stale:
        return (
            "**Every port that was judged conforms**, expected failures aside; "
            "**but the ledger of expected failures is stale.**"
        )
    if not bad:
        return "**Every port that was judged conforms**, expected failures aside."
    models = sorted({f"{v.model} ({v.subject})" for v in bad})
    return f"**Does not conform: {', '.join(models)}.**"


def _grouped(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], dict[str, Verdict]]:
    """Model and subject -> check -> verdict; ports to which nothing applies are left out."""
    groups: dict[tuple[str, str], dict[str, Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.model, verdict.subject), {})[verdict.check] = verdict
    return {
        port: row
        for port, row in groups.items()
        if any(verdict.outcome != "not_applicable" for verdict in row.values())
    }


def _contradictions(verdicts: Iterable[Verdict]) -> list[str]:
    found = {
        (verdict.model, line): None
        for verdict in verdicts
        for line in verdict.metrics.get("reference_contradicts_itself", ())
    }
    return [f"- {model}: {line}" for model, line in found]


def _excused(verdicts: Iterable[Verdict]) -> list[str]:
    """One line for each reason, with the ports it holds for."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for verdict in verdicts:
        for what, reason in verdict.metrics.get("not_applicable", {}).items():
            port = f"{verdict.model} {verdict.subject}"
            found.setdefault((verdict.check, what, reason), []).append(port)
    return [
        f"- {check}, {what}: {' '.join(reason.split())} ({', '.join(ports)})"
        for (check, what, reason), ports in sorted(found.items())
    ]


def matrix(verdicts: Sequence[Verdict]) -> list[str]:
    """Models and subjects down, checks across, a word in each cell."""
    checks = [c for c in CHECKS if any(v.check == c for v in verdicts)]
    rows = []
    for (model, subject), row in _grouped(verdicts).items():
        first = next(iter(row.values()))
        cells = [WORDS[row[c].outcome] if c in row else "" for c in checks]
        rows.append([model, first.architecture, first.evidence, subject, *cells])
    return table(["model", "architecture", "weights", "subject", *checks], rows)


def _names(records: Records) -> list[str]:
    """Names with their verdicts; folded where they are many."""
    found = judged(records)
    header, listed = rows(found)
    lines = [_NAMES, ""]
    if len(listed) > _MANY:
        summary = f"<details><summary>{len(listed)} names that are judged</summary>"
        lines += [summary, "", *table(header, listed), "", "</details>"]
    elif listed:
        lines += table(header, listed)
    for reason, names in not_judged(found).items():
        lines += ["", f"Not judged: {reason} ({len(names)}): {', '.join(names)}"]
    return lines


def _expected(verdicts: Sequence[Verdict]) -> list[str]:
    return table(
        ["model", "subject", "check", "first divergence", "reason"],
        (
            [v.model, v.subject, v.check, v.first_divergence or "", _one_line(v.reason)]
            for v in verdicts
        ),
    )


def _one_line(text: str | None) -> str:
    return (text or "").splitlines()[0] if text else ""


def _margins(verdicts: Sequence[Verdict]) -> list[str]:
    rows = []
    for (model, subject), row in _grouped(verdicts).items():
        cells = [model, subject]
        for judgement in ("same_function", "same_precision"):
            found = [
                (s.margin, s.site or "", v.check)
                for v in row.values()
                if (s := v.verdict.get(judgement)) is not None and s.margin is not None
            ]
            worst = max(found, default=None, key=lambda x: x[0])
            cells.append("" if worst is None else f"{worst[0]:.2g} at {worst[1]} ({worst[2]})")
        rows.append(cells)
    return table(["model", "subject", "same function", "same precision"], rows)


def _logits(verdicts: Sequence[Verdict]) -> list[str]:
    rows = []
    for v in verdicts:
        if v.check != "logits" or v.outcome == "not_applicable":
            continue
        for key, weights in (("logits", "as loaded"), ("logits_processed", "processed")):
            if v.metrics.get(key):
                cells = _logit_cells(list(v.metrics[key].values()))
                rows.append([v.model, v.subject, weights, *cells])
    header = ["model", "subject", "weights", "MSE", "max abs", "1 - cosine", "KL r,s", "KL s,r"]
    return table([*header, "top-1 where decided", "top-5 overlap"], rows)


def _logit_cells(prompts: Sequence[dict[str, Any]]) -> list[str]:
    """The worst over prompts of each figure."""
    largest = {k: max(float(m[k]) for m in prompts) for k in prompts[0] if k != "max_abs_index"}
    least = {k: min(float(m[k]) for m in prompts) for k in largest}
    return [
        *(f"{largest[key]:.1e}" for key in ("mse", "max_abs")),
        f"{1 - least['cosine_min']:.1e}",
        *(f"{largest[key]:.1e}" for key in ("kl_rs_max", "kl_sr_max")),
        f"{least['top1_decided_agree']:.0%}",
        f"{least['top5_overlap']:.1%}",
    ]


def _cost(verdicts: Sequence[Verdict]) -> list[str]:
    """Wall time and peak resident memory of the two processes of each subject."""
    rows = []
    for (model, subject), row in _grouped(verdicts).items():
        costs = [v.metrics["cost"] for v in row.values() if "cost" in v.metrics]
        if not costs:
            continue
        cost = costs[0]
        cells = [f"{cost['reference_s']:.1f}", _gib(cost["reference_peak_bytes"])]
        cells += [f"{cost['subject_s']:.1f}", _gib(cost["subject_peak_bytes"])]
        rows.append([model, subject, *cells])
    header = ["model", "subject", "reference s", "reference GiB", "subject s", "subject GiB"]
    return table(header, rows)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"
