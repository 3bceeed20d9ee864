"""A badge for each architecture: what shields.io's endpoint reads. From records alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from conformance.standing import CONFORMS, KNOWN_DEFECT, STATES, WRONG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.sides import Sides
    from conformance.standing import Standing

#: A badge's colour repeats what its words say.
_COLOURS: Mapping[str, str] = {
    CONFORMS: "brightgreen",
    KNOWN_DEFECT: "yellow",
    "unexpected pass": "orange",
    **dict.fromkeys(WRONG, "red"),
}


def badges(sides: Sides) -> dict[str, str]:
    """Architecture -> the badge as JSON."""
    return {
        architecture: json.dumps(
            _badge(
                architecture,
                {column.label: sides.standing(column, models) for column in sides.columns},
            ),
            ensure_ascii=False,
        )
        for architecture, models in sides.rows("architecture").items()
    }


def _badge(architecture: str, standings: Mapping[str, Standing]) -> dict[str, object]:
    tried = {label: found for label, found in standings.items() if found.judged}
    worst = min((s.state for s in tried.values()), key=STATES.index, default=None)
    said = "; ".join(f"{label}: {_short(found)}" for label, found in tried.items())
    badge: dict[str, object] = {
        "schemaVersion": 1,
        "label": architecture,
        "message": said or "not judged",
        "color": _COLOURS.get(worst or "", "lightgrey"),
    }
    return badge | ({"isError": True} if worst in WRONG else {})


def _short(found: Standing) -> str:
    """The worst state, with the number of checks that have it; a badge has no room for names."""
    if found.state == CONFORMS:
        whole = found.judged == found.models
        return CONFORMS if whole else f"{CONFORMS} ({found.judged} of {found.models} models)"
    count = len(found.checks[found.state])
    return f"{found.state} ({count} check{'' if count == 1 else 's'})"
