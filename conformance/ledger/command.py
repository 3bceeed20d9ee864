"""``conformance ledger check | update``.

Exit codes: 0 nothing to do, 1 something is proposed that is not in the file, 2 usage (a file that
is not valid is one).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from conformance.errors import ConformanceError, RecordsError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.records import Records
    from conformance.spec import Ledger, Spec

_USAGE = 2

app = typer.Typer(
    no_args_is_help=True, help="The ledger of expected failures: validate it, propose changes."
)

_Models = Annotated[
    Path, typer.Option("--models", metavar="FILE", help="The models.toml that names the ledger.")
]
_MODELS = Path("models.toml")


@app.command()
def check(models: _Models = _MODELS) -> None:
    """Validate the ledger. Exits 0 if it is valid, 2 if not; every problem is named."""
    try:
        _, ledger = _load(models)
    except ConformanceError as error:
        _fail(error)
    shows = sum(len(defect.shows) for defect in ledger.defects)
    typer.echo(
        f"{ledger.path.name}: valid, {len(ledger.defects)} entries that show in {shows} ways"
    )


@app.command()
def update(
    models: _Models = _MODELS,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            "--records",
            metavar="FILE",
            help="records.jsonl of a run, or its directory [default: conformance-out]. Can be "
            "repeated: give the runs of every version that the ledger is about.",
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write what tightens the ledger. Nothing else, ever.")
    ] = False,
) -> None:
    """Propose changes of the ledger as a unified diff, from the records of runs.

    What is stale is taken out; a failure that nothing expects is added as a comment, to be given
    a reason by a person. Exits 0 if there is nothing (left) to change, 1 if there is.
    """
    try:
        spec, ledger = _load(models)
        read = [_read(path) for path in records or [Path("conformance-out")]]
        text = ledger.path.read_bytes().decode()
        found = changes(spec, text, read)
    except ConformanceError as error:
        _fail(error)
    for note in found.notes:
        typer.echo(note, err=True)
    if not apply:
        _show(ledger, text, found.proposed)
        raise typer.Exit(int(found.proposed != text or bool(found.notes)))
    _show(ledger, text, found.tightened)
    if found.tightened != text:
        try:
            ledger.path.write_bytes(found.tightened.encode())
        except OSError as error:
            _fail(SpecError(f"{ledger.path}: {error.strerror}", "give a file you can write to"))
        typer.echo(f"applied to {ledger.path}", err=True)
    if found.proposed != found.tightened:
        typer.echo("proposed, not applied: it needs a reason and a link", err=True)
        _show(ledger, found.tightened, found.proposed)
    raise typer.Exit(int(found.proposed != found.tightened or bool(found.notes)))


@dataclass(frozen=True)
class Changes:
    """What the records ask of a ledger.

    Attributes:
        tightened: its text without what is stale.
        proposed: the same, with unexpected failures added as comments.
        notes: what neither can say: failures that only some versions still show.
    """

    tightened: str
    proposed: str
    notes: tuple[str, ...]


def changes(spec: Spec, text: str, read: Sequence[Records]) -> Changes:
    """What the records of runs ask of a ledger.

    Args:
        spec: the models, with the ledger as it is.
        text: the ledger.
        read: records of one or more runs, of one or more versions.

    Raises:
        SpecError: the ledger is written in a form that cannot be edited.
    """
    from conformance.ledger.proposals import proposals
    from conformance.ledger.stale import divided, leftovers, merged
    from conformance.ledger.update import tightened
    from conformance.spec import relisted

    assert spec.ledger is not None
    made = merged(read)
    tight = tightened(text, leftovers(spec, made), len(spec.ledger.defects))
    after = relisted(spec, tight)
    whole = tight
    for block in proposals(after, made):
        if block not in whole:
            whole = f"{whole.rstrip()}\n\n{block}"
    notes = tuple(
        f"{spec.ledger.at(defect, showing)}: {name}: shown under transformer-lens "
        f"{shown.versions.get('transformer-lens')}, not under "
        f"{gone.versions.get('transformer-lens')}: bound the entry's versions"
        for defect, showing, name, shown, gone in divided(spec, made)
    )
    return Changes(tight, whole, notes)


def _load(models: Path) -> tuple[Spec, Ledger]:
    from conformance.spec import load_spec

    spec = load_spec(models)
    if spec.ledger is None:
        raise SpecError(
            f"{models}: names no ledger",
            'write ledger = "expected_failures.toml" at its top; an empty ledger is the line '
            "schema = 1",
        )
    return spec, spec.ledger


def _read(path: Path) -> Records:
    from conformance.recorder import FILE_NAME
    from conformance.records import read

    found = read(path / FILE_NAME if path.is_dir() else path)
    if not found.verdicts:
        raise RecordsError(f"{path}: holds no verdict", "give the records of a finished run")
    if found.truncated:
        typer.echo(f"{path}: cut short; what is there is used", err=True)
    return found


def _show(ledger: Ledger, before: str, after: str) -> None:
    name = _shown_path(ledger.path)
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, name
    )
    for line in lines:
        typer.echo(line, nl=False)
        if not line.endswith("\n"):
            typer.echo("\n\\ No newline at end of file")


def _shown_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _fail(error: ConformanceError) -> NoReturn:
    typer.echo(f"conformance: {error}", err=True)
    raise typer.Exit(_USAGE)
