"""Edits to the text of a ledger: what is stale taken out, everything else left as it stands.

Comments on lines of their own stay, also around what is taken out: only a person knows whether
they are still true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tomlkit

from conformance.errors import SpecError
from conformance.spec.lines import places

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conformance.ledger.stale import Leftover


def tightened(text: str, found: Iterable[Leftover], defects: int) -> str:
    """The ledger without what is stale.

    Args:
        text: the ledger, valid.
        found: what is stale.
        defects: how many ``[[defect]]`` tables it has.

    Raises:
        SpecError: the tables are written in a form that cannot be edited in place.
    """
    by_defect: dict[int, list[Leftover]] = {}
    for left in found:
        by_defect.setdefault(left.defect, []).append(left)
    if not by_defect:
        return text
    starts = [place.start for place in places(text, "defect")]
    if len(starts) != defects:
        raise SpecError(
            "the ledger's tables are not each written under a [[defect]] of their own",
            "write them so, or edit the file by hand",
        )
    ends = [*starts[1:], len(text)]
    parts = [text[begin:end] for begin, end in zip(starts, ends, strict=True)]
    for number, lefts in by_defect.items():
        parts[number] = _edited(parts[number], lefts)
    return text[: starts[0]] + "".join(parts)


def _edited(part: str, found: Sequence[Leftover]) -> str:
    document = tomlkit.parse(part)
    # Any: what tomlkit gives for a key depends on the file.
    table: Any = document["defect"][0]
    shows = table["shows"]
    for left in sorted(found, key=lambda left: left.showing, reverse=True):
        if left.whole:
            del shows[left.showing]
        else:
            _reduce(shows[left.showing], left)
    return document.as_string() if len(shows) else _comments_after(part)


def _reduce(showing: Any, left: Leftover) -> None:
    for key, gone in (
        ("models", left.names),
        ("architectures", left.names),
        ("kinds", left.kinds),
    ):
        for name in gone:
            if name in showing.get(key, ()):
                showing[key].remove(name)
        if key in showing and not showing[key]:
            del showing[key]


def _comments_after(part: str) -> str:
    """Blank lines and comments at the end of a table: they are about what follows it."""
    lines = part.splitlines(keepends=True)
    count = 0
    while count < len(lines) and _says_nothing(lines[-1 - count]):
        count += 1
    return "".join(lines[len(lines) - count :])


def _says_nothing(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")
