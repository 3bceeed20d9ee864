"""A compatibility table, fit for a page of documentation. From records alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.report.side_by_side import remarks, versions
from conformance.report.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conformance.records import Verdict
    from conformance.sides import Sides

LEGEND = (
    "*conforms*: every check that applies passed against HuggingFace transformers. *known defect*: "
    "wrong, and listed below. *fails*, *crashes*, *times out*, *runs out of memory*: wrong and not "
    "listed. *n/a*: there is no such port, or nothing to compare. *not run*, *skipped*, *not "
    "judged*: nothing is known."
)


def compatibility(sides: Sides) -> str:
    """The table by architecture, what its words mean, and the known defects."""
    rows = [
        [name, _evidence(sides, models), *(sides.standing(c, models).words for c in sides.columns)]
        for name, models in sides.rows("architecture").items()
    ]
    head = ["architecture", "judged on", *(column.label for column in sides.columns)]
    lines = [*table(head, rows), "", LEGEND, ""]
    if defects := known_defects(v for side in sides.verdicts.values() for v in side.values()):
        lines += ["Known defects:", "", *defects, ""]
    return "\n".join([*lines, *(f"- {line}" for line in (*versions(sides), *remarks(sides)))])


def _evidence(sides: Sides, models: Sequence[str]) -> str:
    """What the row rests on: trained weights, or twins of the architecture."""
    kinds = [sides.models[model].evidence for model in models]
    real, twins = kinds.count("real"), kinds.count("twin")
    said = [f"{real} real"] if real else []
    return ", ".join([*said, f"{twins} twin{'' if twins == 1 else 's'}"] if twins else said)


def known_defects(verdicts: Iterable[Verdict]) -> list[str]:
    """One line for each defect that the ledger gives as a reason, with where it shows."""
    found: dict[str, dict[str, None]] = {}
    for verdict in verdicts:
        if verdict.outcome == "xfailed":
            reason = (verdict.reason or "no reason given").splitlines()[0]
            where = found.setdefault(reason.removeprefix("expected: "), {})
            where.setdefault(verdict.architecture or verdict.model)
    return [f"- {reason}: {', '.join(sorted(where))}" for reason, where in sorted(found.items())]
