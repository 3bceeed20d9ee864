"""A summary for a page of a CI job: what got worse first, and never too long. From records alone.

GitHub drops a step's summary of more than 1 MiB as a whole, so that what does not fit is left out
here, from the end, and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.gate import gate
from conformance.report.compatibility import LEGEND, known_defects
from conformance.report.gating import command, grouped, title
from conformance.report.side_by_side import grid
from conformance.report.tables import fenced, table
from conformance.report.terminal import abridged, explain, is_bad, left_out, ordered, state, summary
from conformance.sides import side_by_side

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conformance.gate import Finding, Run
    from conformance.records import Records

#: In bytes; the rest of 1 MiB is for what other commands of the same step write.
LIMIT = 2**20 - 2**16
_NOTE = 1024
#: Longer texts of one failure are cut: captured output has no end.
_LONGEST = 8192


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece that is shown whole or not at all; what it is called when left out, if counted."""

    kind: str | None
    text: str


def step_summary(run: Run, baseline: Run | None = None, limit: int = LIMIT) -> str:
    """The summary as Markdown.

    Args:
        run: what is summarised.
        baseline: a kept run; what changed since comes first.
        limit: the longest it may be, in bytes of UTF-8.
    """
    shown: list[str] = []
    room = limit - _NOTE
    left: Counter[str | None] = Counter()
    for block in _blocks(run, baseline):
        size = _size(block.text) + 1
        if left or size > room:
            left[block.kind] += 1
        else:
            shown.append(block.text)
            room -= size
    if left:
        said = ", ".join(f"{count} {kind}" for kind, count in left.items() if kind)
        shown.append(f"**Truncated** to stay under {limit} bytes. Left out: {said}.")
    return "\n".join(shown) + "\n"


def _size(text: str) -> int:
    return len(text.encode(errors="backslashreplace"))


def _blocks(run: Run, baseline: Run | None) -> Iterator[_Block]:
    records = run.records
    found = [] if baseline is None else gate(run, baseline)
    blocking = [f for f in found if f.blocks]
    yield _Block(None, _headline(records, len(blocking), baseline is not None))
    groups = grouped(blocking)
    if groups:
        yield _Block(None, "## What got worse\n")
    for group in groups:
        yield _Block("changes for the worse", _change(group, records.header.dtype))
    told = {f.case for f in blocking}
    bad = [v for v in ordered(records.verdicts) if is_bad(v)]
    bad = [v for v in bad if (v.model, v.subject, v.check) not in told]
    if bad:
        yield _Block(None, "## What does not conform\n")
    seen: dict[str, str] = {}
    for verdict in bad:
        yield _Block(
            "failures", _fence(explain(abridged(verdict, seen), dtype=records.header.dtype))
        )
    yield from _table(records)
    defects = known_defects(records.verdicts)
    if defects:
        yield _Block(None, "\n## Known defects\n")
    yield from (_Block("known defects", line) for line in defects)


def _headline(records: Records, worse: int, compared: bool) -> str:
    said = state(records)
    bad = sum(is_bad(v) for v in records.verdicts)
    if said:
        first = said
    elif bad:
        first = f"Does not conform: {bad} of {len(records.verdicts)} verdicts."
    else:
        first = "Every port that was judged conforms, known defects aside."
    if compared:
        first += (
            f" {worse} change{'s' if worse > 1 else ''} for the worse."
            if worse
            else " Nothing got worse."
        )
    details = [f"- {line}" for line in (*summary(records), *left_out(records.verdicts))]
    return "\n".join(["# Conformance", "", f"**{first}**", "", *details, ""])


def _change(group: Sequence[Finding], dtype: str | None) -> str:
    again = command(group, dtype=dtype)
    return _fence("\n".join(filter(None, (title(group), group[0].detail, again))))


def _fence(text: str) -> str:
    if _size(text) > _LONGEST:
        cut = text.encode(errors="backslashreplace")[:_LONGEST].decode(errors="ignore")
        text = f"{cut}\n(cut here; `conformance show` tells all of it)"
    return "\n".join([*fenced(text), ""])


def _table(records: Records) -> Iterator[_Block]:
    sides = side_by_side([records])
    if not sides.columns:
        return
    head, rows = grid(sides, "architecture")
    first, second, *body = table(head, rows)
    yield _Block(None, f"## By architecture\n\n{LEGEND}\n\n{first}\n{second}")
    yield from (_Block("architectures", line) for line in body)
