"""``conformance gate``: a run against a kept one, from records alone."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.commands.files import USAGE, fail, records_file
from conformance.errors import RecordsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conformance.records import Records, Verdict

_FAILED = 1


def gate(
    run: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="The run: its --out, or a records file.")
    ],
    baseline: Annotated[
        Path, typer.Option("--baseline", metavar="RECORDS", help="A run that was kept.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ID", help="Only this model, or glob. Can be repeated."),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", metavar="S", help="Only this subject. Can be repeated."),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="C", help="Only this check. Can be repeated."),
    ] = None,
) -> None:
    """Compare a run with a kept one: exit 1 on anything that got worse. Prints only changes."""
    from conformance.gate import Run
    from conformance.gate import gate as judge
    from conformance.report.gating import lines

    sides = {"baseline": baseline, "run": run}
    try:
        files = {role: records_file(where) for role, where in sides.items()}
    except RecordsError as error:
        fail(error)
    read = [_read(role, file) for role, file in files.items()]
    kept, new = (
        Run(role, records, _selected(model, subject, check))
        for role, records in zip(sides, read, strict=True)
    )
    if not kept.verdicts and not new.verdicts and (model or subject or check):
        typer.echo("conformance: nothing in either run is of that selection", err=True)
        raise typer.Exit(USAGE)
    found = judge(new, kept)
    typer.echo("\n".join(lines(found, new, kept, _models(new.records))))
    raise typer.Exit(_FAILED if any(f.blocks for f in found) else 0)


def _read(role: str, file: Path) -> Records:
    """A damaged file fails the gate: it is no mistake in how the command was called."""
    from conformance.records import read

    try:
        return read(file)
    except RecordsError as error:
        typer.echo(f"INCOMPLETE: the {role} cannot be read\n  {error}")
        typer.echo("gate: FAILED: a damaged file")
        raise typer.Exit(_FAILED) from None


def _selected(
    models: Sequence[str] | None, subjects: Sequence[str] | None, checks: Sequence[str] | None
) -> Callable[[Verdict], bool]:
    def selected(verdict: Verdict) -> bool:
        return (
            (not models or any(fnmatchcase(verdict.model, name) for name in models))
            and (not subjects or verdict.subject in subjects)
            and (not checks or verdict.check in checks)
        )

    return selected


def _models(records: Records) -> str | None:
    """The run's ``models.toml``, where this machine has it and it is not the default."""
    where = Path(records.header.models_toml)
    return None if where == Path("models.toml").absolute() or not where.is_file() else str(where)
