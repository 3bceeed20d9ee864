"""Explains the ports that a run found failing, so that its report says where and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.errors import ConformanceError
from conformance.explain import command
from conformance.report.explanation import page, what
from conformance.selection import with_named

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.explain.explanations import Explanation
    from conformance.records import Records
    from conformance.spec import Spec

#: More ports than this are left to ``conformance explain``: each takes a run of its own.
MOST = 4
#: Checks of what ``conformance explain`` looks into.
CHECKS = frozenset({"weights", "activations", "components", "logits", "loss", "processing"})


def failing(records: Records) -> list[tuple[str, str]]:
    """Model and subject of the ports whose forward pass is wrong and not known to be."""
    found = [(v.model, v.subject) for v in records.verdicts if v.outcome == "failed"]
    inside = {(v.model, v.subject) for v in records.verdicts if _explains(v.check, v.outcome)}
    return [port for port in dict.fromkeys(found) if port in inside]


def _explains(check: str, outcome: str) -> bool:
    return outcome == "failed" and check in CHECKS


def explain_failing(spec: Spec, records: Records, out: Path, cache: Path) -> dict[str, str]:
    """Explain the first ports of a run that fail.

    Args:
        spec: the ``models.toml`` of the run.
        records: of the run.
        out: its folder; explanations go to ``explain`` in it.
        cache: of checkpoints and traces.

    Returns:
        The port, as ``model, subject`` -> what was found, or why nothing was, in a line.
    """
    ports = failing(records)
    told = {}
    for model, subject in ports[:MOST]:
        folder = out / "explain" / f"{model}-{subject}"
        try:
            named = with_named(spec, [model])
            found = command.run(named, model, subject, cache=cache, out=folder)
        except (ConformanceError, OSError) as error:
            told[f"{model}, {subject}"] = f"not explained: {str(error).splitlines()[0]}"
            continue
        command.write(found, folder, page(found))
        told[f"{model}, {subject}"] = _line(found)
    for model, subject in ports[MOST:]:
        asked = f"conformance explain {model} --subject {subject}"
        told[f"{model}, {subject}"] = f"not explained; `{asked}` does"
    return told


def _line(found: Explanation) -> str:
    if found.conforms:
        return "an explanation found nothing wrong in the forward pass"
    cause = found.causes[0].statement if found.causes else found.diagnosed
    return f"{what(found.location)[0]} {cause}".strip()
