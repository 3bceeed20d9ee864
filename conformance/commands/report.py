"""``conformance report``: a run as pages, and in the formats that other tools read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.commands.files import HARNESS, fail, put, read_run, records_file
from conformance.errors import ConformanceError

if TYPE_CHECKING:
    from conformance.records import Records


class Format(StrEnum):
    html = "html"
    junit = "junit"
    ctrf = "ctrf"
    badge = "badge"
    markdown = "markdown"
    summary = "summary"


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="The run: its --out, or a records file.")
    ] = Path("conformance-out"),
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="html: pages to open in a browser; junit and ctrf: for CI; badge: a file for each "
            "architecture, for shields.io; markdown: a compatibility table; summary: for a page of "
            "a CI job.",
        ),
    ] = Format.html,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A file; of badges and pages, a directory. "
            "[default: print; of pages, report beside the records]",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RECORDS", help="Summary: a kept run; what got worse comes first."),
    ] = None,
) -> None:
    """Write what a run found, for people (html) or for other tools to read."""
    if baseline is not None and form is not Format.summary:
        raise typer.BadParameter("--baseline needs --format summary")
    if form is Format.badge and (out is None or out.is_file()):
        raise typer.BadParameter("badges are several files: give a directory with --out")
    try:
        if form is Format.html:
            _pages(run, out)
            return
        records = read_run(run)
        if form is Format.badge:
            _badges(records, Path(str(out)))
        else:
            put(_text(form, records, None if baseline is None else read_run(baseline)), out)
    except ConformanceError as error:
        fail(error)


def _pages(run: Path, out: Path | None) -> None:
    """Write the pages; of a run that was cut short too, but that is no success."""
    from conformance.report.html.pages import write
    from conformance.report.terminal import state

    records = read_run(run)
    typer.echo(f"report: {write(records_file(run), out)}")
    if records.truncated:
        typer.echo(f"conformance: {state(records)}", err=True)
        raise typer.Exit(HARNESS)


def _text(form: Format, records: Records, baseline: Records | None) -> str:
    if form is Format.junit:
        from conformance.report.junit import junit

        return junit(records)
    if form is Format.ctrf:
        from conformance.report.ctrf import ctrf

        return ctrf(records)
    if form is Format.markdown:
        from conformance.report.compatibility import compatibility
        from conformance.sides import side_by_side

        return compatibility(side_by_side([records]))
    from conformance.gate import Run
    from conformance.report.step_summary import step_summary

    kept = None if baseline is None else Run("baseline", baseline)
    return step_summary(Run("run", records), kept)


def _badges(records: Records, folder: Path) -> None:
    from conformance.report.badge import badges
    from conformance.sides import side_by_side

    for architecture, text in badges(side_by_side([records])).items():
        put(text, folder / f"{architecture.replace('/', '_')}.json")
