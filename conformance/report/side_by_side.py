"""Versions side by side, as text, Markdown and JSON. From records alone."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from conformance.records import OUTCOMES
from conformance.report.markdown import matrix, measured
from conformance.report.tables import table
from conformance.report.terminal import counts, ordered
from conformance.sides import changes
from conformance.standing import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from conformance.records import Verdict
    from conformance.sides import By, Change, Changed, Column, Sides

#: What stands over a column of changes, in the order of the columns.
_CHANGES: Mapping[Change, str] = {
    "worse": "gets worse",
    "better": "gets better",
    "still wrong": "stays wrong",
    "new, wrong": "newly there, wrong",
    "new": "newly there, right",
    "gone": "no longer there",
    "still right": "stays right",
}
_COUNTED: Mapping[Change, str] = {
    "worse": "get worse",
    "better": "get better",
    "still wrong": "stay wrong",
    "new, wrong": "are newly there and wrong",
    "new": "are newly there and right",
    "gone": "are no longer there",
    "still right": "stay right",
}
_WIDTH = 80
_MEANING = (
    "A cell says the worst outcome over all checks and what did not pass. A *known defect* is a "
    "failure that `models.toml` lists with its finding; *n/a* means that there is no such port or "
    "nothing to compare, and never counts as a pass; *not run* is what no run judged. "
    "Where nothing is said of models, all of the row's have it."
)
_MOVES = (
    "A check gets better where it was wrong before and is right now; a known defect is as wrong as "
    "any other failure. What stays right is counted only."
)


def versions(sides: Sides) -> list[str]:
    """One line for each run: when, and with which versions."""
    lines = []
    for header in sides.headers:
        installed = ", ".join(
            f"{name} {header.versions[name]}"
            for name in ("transformer-lens", "transformers", "torch", "python")
            if name in header.versions
        )
        lines.append(f"run of {header.started}: {installed}")
    return lines


def remarks(sides: Sides) -> list[str]:
    """What a reader must know besides the table."""
    absent = (f"{c.label}: applies to none of these models ({why})" for c, why in _absent(sides))
    return [*absent, *sides.notes]


def _absent(sides: Sides) -> Iterable[tuple[Column, str]]:
    return sides.absent.items()


def grid(sides: Sides, by: By) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: rows are architectures or models."""
    head = [by, *(column.label for column in sides.columns)]
    rows = [
        [name, *(sides.standing(column, models).words for column in sides.columns)]
        for name, models in sides.rows(by).items()
    ]
    return head, rows


def markdown(
    sides: Sides, by: By, moves: Sequence[tuple[Column, Column]], *, details: bool = False
) -> str:
    """The tables of a page: side by side, what each move changes, and each version's figures."""
    lines = ["## Side by side", "", _MEANING, ""]
    lines += [f"- {line}" for line in (*versions(sides), *remarks(sides))]
    lines += ["", *table(*grid(sides, by)), ""]
    if moves:
        lines += ["## What moving changes", "", _MOVES, ""]
    for old, new in moves:
        found = changes(sides, old, new)
        lines += [f"### From {old.label} to {new.label}", "", _tally(found), ""]
        head, rows = _moved(found, by)
        lines += [*(table(head, rows) if rows else ["Nothing changes."]), ""]
    if details:
        for version in dict.fromkeys(column.version for column in sides.columns):
            lines += _details(version, ordered(_of_version(sides, version)))
    return "\n".join(lines)


def _of_version(sides: Sides, version: str) -> list[Verdict]:
    sets = (side for column, side in sides.verdicts.items() if column.version == version)
    return [verdict for side in sets for verdict in side.values()]


def _details(version: str, verdicts: Sequence[Verdict]) -> list[str]:
    outcomes: Counter[str] = Counter(verdict.outcome for verdict in verdicts)
    models = len({verdict.model for verdict in verdicts})
    title = [f"## TransformerLens {version}", "", f"{models} models, {counts(outcomes)}.", ""]
    return [*title, *matrix(verdicts), "", *measured(verdicts, "###")]


def _tally(found: Sequence[Changed]) -> str:
    tally = Counter(changed.change for changed in found)
    said = [f"{tally[change]} {_COUNTED[change]}" for change in _CHANGES if tally[change]]
    return f"Of {len(found)} checks, {', '.join(said)}." if said else "Nothing was judged."


def _moved(found: Sequence[Changed], by: By) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one move; rows and columns in which nothing changes are left out."""
    shown = [c for c in _CHANGES if c != "still right" and any(x.change == c for x in found)]
    rows: dict[str, list[Changed]] = {}
    for changed in found:
        name = changed.case.model if by == "model" else changed.architecture
        rows.setdefault(name, []).append(changed)
    table_rows = [
        [name, *(_checks(cell, change) for change in shown)]
        for name, cell in (sorted(rows.items()) if by == "architecture" else rows.items())
        if any(changed.change in shown for changed in cell)
    ]
    return [by, *(_CHANGES[change] for change in shown)], table_rows


def _checks(row: Sequence[Changed], change: Change) -> str:
    """The checks of a row that change so, with the number of models where not all do."""
    models = len({changed.case.model for changed in row})
    tally = Counter(changed.case.check for changed in row if changed.change == change)
    return counted(tally, models)


def text(sides: Sides, by: By, moves: Sequence[tuple[Column, Column]]) -> list[RenderableType]:
    """The same for a terminal; reads without colour."""
    parts: list[RenderableType] = [_grid_table(*grid(sides, by)), ""]
    for old, new in moves:
        found = changes(sides, old, new)
        parts += [f"From {old.label} to {new.label}", f"  {_tally(found)}"]
        parts += [*_listed(*_moved(found, by)), ""]
    return [*parts, *versions(sides), *remarks(sides)]


def _listed(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of changes as text: each kind of change, and under it the rows that have it."""
    lines = []
    for number, change in enumerate(head[1:], 1):
        lines.append(f"  {change}:")
        for row in rows:
            if row[number]:
                entry = f"{row[0]}: {row[number]}"
                lines += textwrap.wrap(
                    entry, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8
                )
    return lines or ["  Nothing changes."]


def _grid_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.ASCII, show_lines=True, header_style="bold")
    for number, column in enumerate(head):
        made.add_column(Text(column), overflow="fold", min_width=12 if number == 0 else None)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def as_json(sides: Sides, by: By, moves: Sequence[tuple[Column, Column]]) -> str:
    """The same for machines."""
    rows = {
        name: {
            "models": models,
            "cells": {c.label: _cell(sides, c, models) for c in sides.columns},
        }
        for name, models in sides.rows(by).items()
    }
    plain = {
        "by": by,
        "columns": [
            {"label": c.label, "transformer_lens": c.version, "subject": c.subject}
            for c in sides.columns
        ],
        "absent": {column.label: why for column, why in _absent(sides)},
        "runs": [{"started": h.started, "versions": dict(h.versions)} for h in sides.headers],
        "notes": list(sides.notes),
        "checks": sides.checks,
        "rows": rows,
        "moves": [
            {"from": old.label, "to": new.label, "changes": _plain(changes(sides, old, new))}
            for old, new in moves
        ],
        "outcomes": list(OUTCOMES),
    }
    return json.dumps(plain, indent=1, ensure_ascii=False)


def _cell(sides: Sides, column: Column, models: Sequence[str]) -> dict[str, object]:
    found = sides.standing(column, models)
    return {**dataclasses.asdict(found), "words": found.words}


def _plain(found: Iterable[Changed]) -> list[dict[str, str | None]]:
    return [
        {
            "model": changed.case.model,
            "architecture": changed.architecture,
            "check": changed.case.check,
            "change": changed.change,
            "before": changed.before,
            "after": changed.after,
        }
        for changed in found
    ]
