"""``conformance compare``: runs of several versions side by side, from their records alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.commands.files import fail, put, read_run
from conformance.errors import ConformanceError, RecordsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.sides import By, Column, Sides


class Rows(StrEnum):
    architecture = "architecture"
    model = "model"


class Format(StrEnum):
    text = "text"
    markdown = "markdown"
    json = "json"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RECORDS...", help="Runs: their --out, or a file.")
    ],
    by: Annotated[Rows, typer.Option(help="What the rows are.")] = Rows.architecture,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.text,
    old: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="COLUMN",
            help='Say what moving from here changes, e.g. "3.9.0 hooked". Can be repeated. '
            "[default: every column but the last]",
        ),
    ] = None,
    new: Annotated[
        str | None,
        typer.Option("--to", metavar="COLUMN", help="... to here. [default: the last column]"),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Markdown: also each version's verdicts and figures.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a file.")] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Markdown: replace what stands between a page's marks."),
    ] = None,
) -> None:
    """Compare versions and subjects: a column for each, and what moving to another changes."""
    if (details or into is not None) and form is not Format.markdown:
        raise typer.BadParameter("--details and --into need --format markdown")
    if into is not None and out is not None:
        raise typer.BadParameter("--into and --out exclude each other")
    from conformance.sides import side_by_side

    try:
        sides = side_by_side([read_run(run) for run in runs])
        moves = _moves(sides, old, new)
        _write(sides, by.value, form, moves, details, out, into)
    except ConformanceError as error:
        fail(error)


def _moves(
    sides: Sides, old: Sequence[str] | None, new: str | None
) -> Sequence[tuple[Column, Column]]:
    from conformance.sides import migrations

    if not sides.columns:
        raise RecordsError("nothing in these runs was judged", "run the models first")
    if old is None and new is None:
        return migrations(sides)
    last = sides.columns[-1] if new is None else sides.named(new)
    first = [c for c in sides.columns if c != last] if old is None else map(sides.named, old)
    return [(column, last) for column in first]


def _write(
    sides: Sides,
    by: By,
    form: Format,
    moves: Sequence[tuple[Column, Column]],
    details: bool,
    out: Path | None,
    into: Path | None,
) -> None:
    from conformance.report import side_by_side as report

    if form is Format.markdown:
        page = report.markdown(sides, by, moves, details=details)
        if into is not None:
            _replace(into, page)
        else:
            put(page, out)
    elif form is Format.json:
        put(report.as_json(sides, by, moves), out)
    else:
        put(_rendered(report.text(sides, by, moves), wide=out is not None), out)


def _rendered(parts: Sequence[object], *, wide: bool) -> str:
    import io

    from rich.console import Console

    stream = io.StringIO()
    width = 160 if wide else Console().width
    console = Console(file=stream, highlight=False, markup=False, width=width)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return stream.getvalue()


def _replace(page: Path, tables: str) -> None:
    from conformance.report.tables import between_markers

    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordsError(f"{page}: {error.strerror}", "give a page that exists") from error
    put(between_markers(text, tables, str(page)), page)
