"""``conformance gate``: a run against a kept one, from records alone."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.commands.files import USAGE, fail, records_file
from conformance.errors import ImplementationError, RecordsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conformance.gate import Rule
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
    coverage: Annotated[
        bool | None,
        typer.Option(
            "--coverage/--no-coverage",
            help="Whether an architecture that the installed transformer-lens supports and the "
            "run's models.toml does not cover blocks. By default if that file keeps account of its "
            "gaps ([[gap]]), and nothing is selected.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare a run with a kept one: exit 1 on anything that got worse. Prints only changes."""
    from conformance.gate import RULES, Run
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
    selects = bool(model or subject or check)
    wanted = False if coverage is None and selects else coverage
    found = judge(new, kept, (*RULES, *_coverage_rule(new.records, wanted)))
    typer.echo("\n".join(lines(found, new, kept, _models(new.records))))
    raise typer.Exit(_FAILED if any(f.blocks for f in found) else 0)


def _coverage_rule(records: Records, wanted: bool | None) -> Iterator[Rule]:
    """What is not covered, by the run's ``models.toml``.

    Args:
        wanted: whether it was asked for; None for the file to decide.
    """
    from conformance.coverage import coverage, installed
    from conformance.errors import ConformanceError
    from conformance.gate import uncovered
    from conformance.spec import load_spec

    where = Path(records.header.models_toml)
    if wanted is False or (wanted is None and not where.is_file()):
        return
    try:
        spec = load_spec(where)
        if wanted is None and not spec.gaps:
            return
        supported = installed()
    except ConformanceError as error:
        fail(error)
    ran = records.header.versions.get("transformer-lens")
    if ran != supported.version:
        if wanted is None:
            said = f"coverage not asked: {supported.version} is installed, the run had {ran}"
            typer.echo(said, err=True)
            return
        fail(
            ImplementationError(
                f"the run had transformer-lens {ran}, and {supported.version} is installed",
                "compare where that version is installed, or give --no-coverage",
            )
        )
    yield uncovered(coverage(spec, supported).architectures.missing, supported.version)


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
