"""The first page of the report: what it says before the tables, and what they hold."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from conformance.checks.names import CHECKS
from conformance.records import HARNESS_FAILED, OUTCOMES
from conformance.report.html.ports import Model, Port, checks_of
from conformance.report.html.words import MEANINGS, NOTHING, badge, rank, standing_badge
from conformance.report.names import judged, not_judged, rows
from conformance.report.terminal import WORDS, counts, is_bad, left_out, state
from conformance.standing import KNOWN_DEFECT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conformance.records import Records, Verdict


#: More ports than this are left to the table.
_TOLD = 12


def catalogue(
    records: Records, models: Sequence[Model], causes: Mapping[tuple[str, str], Sequence[str]]
) -> dict[str, Any]:
    """The first page: what it says before the tables, and the tables.

    Args:
        causes: (model, subject) -> what an explanation says of it.
    """
    ports = [port for model in models for port in model.ports]
    shown = [(m, p) for m in models for p in m.ports if not p.excused]
    verdicts = [v for port in ports for v in port.verdicts.values()]
    outcomes: Counter[str] = Counter(v.outcome for v in verdicts)
    wrong = [
        (m, p, bad) for m, p in shown if (bad := [v for v in p.verdicts.values() if is_bad(v)])
    ]
    facts = {m.id: m.facts for m in models}
    found = judged(records)
    header, listed = rows(found)
    return {
        "headline": _headline(records, shown, [v for *_, bad in wrong for v in bad]),
        "counts": counts(outcomes),
        "tiles": _tiles(ports),
        "legend": [(badge(o), MEANINGS[o]) for o in OUTCOMES if o in outcomes],
        "wrong": [_told(*each, causes) for each in wrong[:_TOLD]],
        "more_wrong": len(wrong[_TOLD:]),
        "rows": shown,
        "checks": checks_of(models) or list(CHECKS),
        "facts": facts,
        "columns": {k: any(k in f for f in facts.values()) for k in ("parameters", "tier")},
        "options": _options(models, shown),
        "left_out": left_out(verdicts),
        "excused": _excused(models),
        "stale": [one.describe() for one in records.stale],
        "known": _known(shown),
        "excuses": _excuses(shown),
        "contradictions": [(m, line) for m in models for line in m.contradictions],
        "names_header": header,
        "names": listed,
        "not_judged": not_judged(found),
        "name_models": {n.name.hub: n.name.model for n in found},
        "pages": {m.id: m.page for m in models},
    }


def _told(
    model: Model,
    port: Port,
    bad: Sequence[Verdict],
    causes: Mapping[tuple[str, str], Sequence[str]],
) -> dict[str, Any]:
    """A port that does not conform, in a few lines."""
    groups: dict[str, list[str]] = {}
    for verdict in bad:
        groups.setdefault(verdict.outcome, []).append(verdict.check)
    return {
        "model": model,
        "port": port,
        "groups": [(badge(outcome), checks) for outcome, checks in groups.items()],
        "first": bad[0],
        "reason": (bad[0].reason or "no reason given").splitlines()[0],
        "causes": causes.get((port.model, port.subject), ()),
    }


def _headline(
    records: Records, shown: Sequence[tuple[Model, Port]], wrong: Sequence[Verdict]
) -> dict[str, str]:
    """Does it conform: a sign, a sentence, and a class for its colour."""
    bad = {(v.model, v.subject) for v in wrong}
    harness = all(v.outcome in HARNESS_FAILED for v in wrong)
    judged = len(shown)
    known = sum(p.standing.state == KNOWN_DEFECT for _, p in shown)
    if bad and harness:
        return {"cls": "bad", "sign": "?", "text": f"{_ports(len(bad))} could not be judged"}
    if bad:
        verb = "does" if len(bad) == 1 else "do"
        text = f"{_ports(len(bad))} of {judged} {verb} not conform"
        return {"cls": "bad", "sign": "✗", "text": text}
    if not judged:
        return {"cls": "na", "sign": NOTHING, "text": "Nothing was judged"}
    if state(records):
        text = f"No verdict of the {_ports(judged)} judged so far is wrong"
        return {"cls": "na", "sign": "…", "text": text}
    if records.stale:
        text = "Every port that was judged conforms, but the ledger of known defects is stale"
        return {"cls": "known", "sign": "◆", "text": text}
    if known:
        text = f"Every port that was judged conforms, known defects of {known} of {judged} aside"
        return {"cls": "ok", "sign": "✓", "text": text}
    return {"cls": "ok", "sign": "✓", "text": "Every port that was judged conforms"}


def _ports(count: int) -> str:
    return f"{count} port{'' if count == 1 else 's'}"


def _tiles(ports: Sequence[Port]) -> list[dict[str, Any]]:
    """How many ports have which standing, the worst first."""
    states = Counter(p.standing.state for p in ports if not p.excused)
    return [{**standing_badge(name), "count": states[name]} for name in sorted(states, key=rank)]


def _options(models: Sequence[Model], shown: Sequence[tuple[Model, Port]]) -> dict[str, list[str]]:
    """What each filter offers: only what there is."""
    return {
        "kind": sorted({m.facts["kind"] for m in models if "kind" in m.facts}),
        "family": sorted({m.family for m, _ in shown}, key=str.lower),
        "tier": sorted({str(m.facts["tier"]) for m in models if "tier" in m.facts}),
        "subject": sorted({p.subject for _, p in shown}),
        "evidence": sorted({m.any.evidence for m, _ in shown}),
        "state": sorted({p.standing.state for _, p in shown}, key=rank),
        "word": [WORDS[o] for o in OUTCOMES if _any(shown, o)],
    }


def _any(shown: Sequence[tuple[Model, Port]], outcome: str) -> bool:
    return any(v.outcome == outcome for _, p in shown for v in p.verdicts.values())


def _known(shown: Sequence[tuple[Model, Port]]) -> list[dict[str, Any]]:
    """Known defects: reason -> the ports that show it, and in which checks."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    pages = {m.id: m.page for m, _ in shown}
    for _, port in shown:
        for check in port.outcomes("xfailed"):
            reason = (port.verdicts[check].reason or "no reason given").splitlines()[0]
            places = found.setdefault(reason.removeprefix("expected: "), {})
            places.setdefault((port.model, port.subject), []).append(check)
    return [
        {
            "reason": reason,
            "ports": [(pages[model], model, subject, c) for (model, subject), c in places.items()],
        }
        for reason, places in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _excused(models: Sequence[Model]) -> dict[str, list[Port]]:
    """Reason -> the ports to which nothing applies; not of subjects that apply to no model."""
    judged = {p.subject for m in models for p in m.ports if not p.excused}
    found: dict[str, list[Port]] = {}
    for port in (p for m in models for p in m.ports if p.excused and p.subject in judged):
        reason = (port.any.reason or "no reason given").splitlines()[0]
        found.setdefault(reason, []).append(port)
    return found


def _excuses(shown: Sequence[tuple[Model, Port]]) -> list[tuple[str, str, str, int]]:
    """check, what of it does not apply, why, to how many ports."""
    found = Counter(each for _, port in shown for each in port.excuses)
    return [(*each, number) for each, number in sorted(found.items())]
