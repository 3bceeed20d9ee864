"""Writes the pages: templates, filled from records alone, and what lies beside them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.checks.names import CHECKS
from conformance.records import OUTCOMES, read
from conformance.report.html import FOLDER, INDEX, words
from conformance.report.html.beside import explained, look
from conformance.report.html.figures import fact_rows, figures
from conformance.report.html.ports import BOTH, Model, Port, checks_of, models_of
from conformance.report.names import judged, not_judged, rows
from conformance.report.stale import describe_stale
from conformance.report.terminal import counts, is_bad, left_out, state

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2

    from conformance.records import Records, Verdict

_HERE = Path(__file__).parent
#: The file names that a table of models leads to.
_MODELS = "models"


def write(records_file: Path, out: Path | None = None) -> Path:
    """Write the pages of a run.

    Args:
        records_file: the records; samples and explanations are looked for in its folder.
        out: the folder of the pages; ``report`` beside the records by default. Pages of an
            earlier report there are replaced.

    Returns:
        The first page.

    Raises:
        RecordsError: the records cannot be read.
    """
    records = read(records_file)
    folder = out or records_file.parent / FOLDER
    pages = render(records, records_file.parent)
    if (folder / _MODELS).is_dir():
        shutil.rmtree(folder / _MODELS)
    (folder / _MODELS).mkdir(parents=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / INDEX


def render(records: Records, folder: Path) -> dict[str, str]:
    """Path in the folder of pages -> its text, the same for the same records.

    Args:
        records: of a run.
        folder: where its samples and explanations are.
    """
    environment = _environment()
    models = models_of(records, _models_toml(records))
    run = _run(records)
    pages = {
        INDEX: environment.get_template("index.html.j2").render(
            run=run, **_catalogue(records, models)
        ),
        **{
            name: (_HERE / "static" / name).read_text(encoding="utf-8")
            for name in ("report.css", "report.js", "look.js")
        },
    }
    template = environment.get_template("model.html.j2")
    for before, model, after in zip([None, *models], models, [*models[1:], None], strict=False):
        ports = [
            {
                "port": port,
                "figures": figures(port.anchor, port.verdicts),
                "explained": explained(folder, model.id, port.subject),
                "look": look(folder, port.verdicts),
            }
            for port in model.ports
        ]
        pages[f"{_MODELS}/{model.page}"] = template.render(
            run=run,
            model=model,
            ports=ports,
            before=before,
            after=after,
            facts=fact_rows(model.facts),
            names=[n.hub for n in records.names if n.model == model.id],
        )
    return pages


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for name in ("sci", "share", "value", "percent", "count", "size", "duration", "badge"):
        environment.filters[name] = getattr(words, name)
    environment.globals.update(JUDGEMENTS=words.JUDGEMENTS, BOTH=BOTH)
    return environment


def _models_toml(records: Records) -> str | None:
    """What to pass with ``--models``: nothing where the file has the name that is the default."""
    name = records.header.models_toml
    return None if Path(name).name == "models.toml" else name


def _run(records: Records) -> dict[str, Any]:
    """What every page says of the run."""
    versions = records.header.versions
    return {
        "versions": versions,
        "libraries": [
            f"{name} {versions[name]}"
            for name in ("transformer-lens", "transformers", "torch", "python")
            if name in versions
        ],
        "header": records.header,
        "footer": records.footer,
        "incomplete": state(records),
    }


def _catalogue(records: Records, models: Sequence[Model]) -> dict[str, Any]:
    """The first page: what it says before the tables, and the tables."""
    ports = [port for model in models for port in model.ports]
    shown = [(m, p) for m in models for p in m.ports if not p.excused]
    verdicts = [v for port in ports for v in port.verdicts.values()]
    outcomes = Counter(v.outcome for v in verdicts)
    wrong = [(m, p, [v for v in p.verdicts.values() if is_bad(v)]) for m, p in shown]
    facts = {m.id: m.facts for m in models}
    found = judged(records)
    header, listed = rows(found)
    return {
        "headline": _headline(records, wrong),
        "counts": counts(outcomes),
        "tiles": _tiles(ports),
        "legend": [
            (words.badge(o), words.MEANINGS[o]) for o in OUTCOMES if o in outcomes
        ],
        "outcomes": [(words.badge(o), n) for o in OUTCOMES if (n := outcomes.get(o, 0))],
        "wrong": [each for each in wrong if each[2]],
        "rows": shown,
        "checks": checks_of(models) or list(CHECKS),
        "facts": facts,
        "columns": {k: any(k in f for f in facts.values()) for k in ("parameters", "tier")},
        "options": _options(models, shown),
        "left_out": left_out(verdicts),
        "excused": _excused(models),
        "stale": [describe_stale(one) for one in records.stale],
        "known": _known(shown),
        "excuses": _excuses(shown),
        "contradictions": [(m, line) for m in models for line in m.contradictions],
        "names_header": header,
        "names": listed,
        "not_judged": not_judged(found),
        "name_models": {n.name.hub: n.name.model for n in found},
        "pages": {m.id: m.page for m in models},
    }


def _headline(records: Records, wrong: Sequence[tuple[Model, Port, list[Verdict]]]) -> dict[str, str]:
    """Does it conform: a sign, a sentence, and a class for its colour."""
    bad = [p for _, p, verdicts in wrong if verdicts]
    harness = all(v.outcome == "error" for _, _, verdicts in wrong for v in verdicts)
    judged = len(wrong)
    known = sum(p.standing.state == "known defect" for _, p, _ in wrong)
    if bad and harness:
        return {"cls": "bad", "sign": "?", "text": f"{_ports(len(bad))} could not be judged"}
    if bad:
        return {
            "cls": "bad",
            "sign": "✗",
            "text": f"{_ports(len(bad))} of {judged} {'does' if len(bad) == 1 else 'do'} not conform",
        }
    if not judged:
        return {"cls": "na", "sign": "–", "text": "Nothing was judged"}
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
    return [
        {**words.standing_badge(name), "count": states[name]}
        for name in sorted(states, key=words.rank)
    ]


def _options(
    models: Sequence[Model], shown: Sequence[tuple[Model, Port]]
) -> dict[str, list[str]]:
    """What each filter offers: only what there is."""
    return {
        "kind": sorted({m.facts["kind"] for m in models if "kind" in m.facts}),
        "family": sorted({m.family for m, _ in shown}, key=str.lower),
        "tier": sorted({str(m.facts["tier"]) for m in models if "tier" in m.facts}),
        "subject": sorted({p.subject for _, p in shown}),
        "evidence": sorted({m.any.evidence for m, _ in shown}),
        "state": sorted({p.standing.state for _, p in shown}, key=words.rank),
        "word": [words.WORDS[o] for o in OUTCOMES if _any(shown, o)],
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
