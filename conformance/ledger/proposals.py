"""Failures that the ledger does not expect, written as entries that are not yet in force.

They are comments, with a reason and a link left empty: nothing is expected before a person has
said why. What is proposed expects no more than was seen: the first divergence and the kinds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from conformance.ledger.judging import applicable, failing, unnamed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conformance.ledger.stale import Run
    from conformance.records import Verdict
    from conformance.spec import ExpectedFailure, Spec

_Row = tuple[str, str, str | None, tuple[str, ...]]


def proposals(spec: Spec, made: Sequence[Run]) -> list[str]:
    """A block of comment lines for each run that failed where the ledger does not say so."""
    models = {model.id: model for model in spec.models}
    blocks = []
    for run in made:
        rows: dict[_Row, list[str]] = {}
        notes: dict[str, None] = {}
        for verdict in run.judged(spec).values():
            if verdict.outcome == "failed":
                entries = applicable(verdict, models[verdict.model], run.versions)
                rows.setdefault(_row(verdict, entries), []).append(verdict.model)
                notes |= dict.fromkeys(_instead(verdict, entries))
        if rows:
            blocks.append("\n".join(_block(run.versions, rows, list(notes))) + "\n")
    return blocks


def _row(verdict: Verdict, entries: Sequence[ExpectedFailure]) -> _Row:
    """The least that has to be expected besides what is."""
    new = tuple(unnamed(verdict, entries)) if entries else ()
    first = verdict.first_divergence
    if new and any(entry.first_divergence in (None, first) for entry in entries):
        first = None
    return verdict.subject, verdict.check, first, new or failing(verdict)


def _instead(verdict: Verdict, entries: Sequence[ExpectedFailure]) -> Iterator[str]:
    for entry in entries:
        yield f"{entry.at} expects otherwise of {verdict.model} ({entry.link})"


def _block(
    versions: Mapping[str, str], rows: Mapping[_Row, Sequence[str]], notes: Sequence[str]
) -> Iterator[str]:
    version = versions.get("transformer-lens", "")
    yield f"# Proposed: failures under transformer-lens {version} that nothing here expects."
    yield "# Not in force: give a reason and a link, then take the comment signs away."
    yield from (f"# {note}" for note in notes)
    yield "# [[defect]]"
    yield '# link = ""'
    yield '# reason = ""'
    yield f"# transformer_lens = {_toml(f'=={version}')}"
    yield "# shows = ["
    for (subject, check, first, kinds), models in rows.items():
        fields: dict[str, object] = {"subject": subject, "check": check}
        if first is not None:
            fields["first_divergence"] = first
        if kinds:
            fields["kinds"] = list(kinds)
        fields["models"] = list(dict.fromkeys(models))
        yield (
            "#   { " + ", ".join(f"{key} = {_toml(value)}" for key, value in fields.items()) + " },"
        )
    yield "# ]"


def _toml(value: object) -> str:
    """Text or a list of texts; JSON writes them as TOML does."""
    return json.dumps(value, ensure_ascii=False)
