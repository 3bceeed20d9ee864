"""Pieces of Markdown that several pages are made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from conformance.errors import RecordsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BEGIN = "<!-- made by conformance compare: begin -->"
_END = "<!-- made by conformance compare: end -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, one line each; bars, tags and line ends in cells do not break it."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *(line(row) for row in rows)]


def _cell(text: str) -> str:
    return re.sub(r"([|<])", r"\\\1", " ".join(text.split()))


def fenced(text: str) -> list[str]:
    """Text as it stands; a fence in it does not end the block."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}text", text, fence]


def between_markers(page: str, text: str, name: str) -> str:
    """``page`` with everything between its two markers replaced.

    Args:
        page: a page that someone writes by hand around what is made.
        text: what is made.
        name: of the page, for messages.

    Raises:
        RecordsError: the page does not hold both markers, once each, in order.
    """
    if page.count(_BEGIN) != 1 or page.count(_END) != 1 or page.index(_END) < page.index(_BEGIN):
        raise RecordsError(
            f"{name}: the place for the tables is not marked",
            f"put the lines {_BEGIN} and {_END} where they belong, once each",
        )
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    return f"{before}{_BEGIN}\n\n{text.strip()}\n\n{_END}{after}"
