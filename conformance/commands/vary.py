"""``conformance vary``: an architecture's configurations, and those in which its port breaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.commands.files import fail, put
from conformance.errors import ConformanceError

if TYPE_CHECKING:
    from conformance.vary.tables import Page

_INTERRUPTED = 130


def vary(
    architecture: Annotated[
        str | None,
        typer.Argument(metavar="ARCH", help="An architecture (LlamaForCausalLM) or a twin."),
    ] = None,
    subject: Annotated[
        str, typer.Option("--subject", metavar="S", help="The port that is judged.")
    ] = "bridge",
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="F", help="Vary only this field, or glob. Repeatable."),
    ] = None,
    models: Annotated[
        Path, typer.Option("--models", metavar="FILE", help="Subjects and the ledger.")
    ] = Path("models.toml"),
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="DIR/TWIN-S gets vary.jsonl and the scripts."),
    ] = Path("conformance-out/vary"),
    limit: Annotated[
        int,
        typer.Option(metavar="N", help="Explore at most N configurations; 0: every pair.", min=0),
    ] = 80,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Explore no longer than this.", min=0.0),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, rows and search.", min=0)] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run ended.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Explore nothing: the runs in --out as Markdown.")
    ] = False,
    into: Annotated[Path | None, typer.Option(metavar="FILE", help="Where --table writes.")] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep --into's rows of what is not in --out."),
    ] = False,
) -> None:
    """Vary an architecture's configuration pairwise, and shrink every failure to the smallest.

    Exit codes: 0 nothing fails but what the ledger knows, 1 something does, 2 usage, 3 the harness.
    """
    if table == (architecture is not None):
        said = "--table takes no architecture" if table else "name an architecture, or give --table"
        raise typer.BadParameter(said)
    if into is not None and not table:
        raise typer.BadParameter("--into needs --table")
    if keep and into is None:
        raise typer.BadParameter("--keep needs --into")
    try:
        if architecture is None:
            from conformance.vary.tables import markdown, runs

            put(markdown(runs([out]), _earlier(into) if keep else None), into)
            return
        fields = tuple(field or ())
        status = _run(
            architecture, subject, fields, models, out, limit or None, seconds, seed, resume
        )
    except ConformanceError as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo("interrupted; --resume goes on from here", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    raise typer.Exit(status)


def _earlier(into: Path | None) -> Page | None:
    """The page that a file holds; None if there is no such file yet.

    Raises:
        RecordsError: it is no page of variants.
    """
    from conformance.errors import RecordsError
    from conformance.vary.tables import page_from

    if into is None or not into.exists():
        return None
    try:
        return page_from(into.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(f"{into}: {error}", "give another --into") from error
    except RecordsError as error:
        raise RecordsError(f"{into}: {error.message}", error.hint) from error


def _run(
    architecture: str,
    subject: str,
    fields: tuple[str, ...],
    models: Path,
    out: Path,
    limit: int | None,
    seconds: float | None,
    seed: int,
    resume: bool,
) -> int:
    from conformance.spec import load_spec
    from conformance.vary.command import Options, run
    from conformance.vary.space import twin_of

    spec = load_spec(models)
    options = Options(subject, fields, limit, seconds, seed, resume)
    folder = out / f"{twin_of(architecture)}-{subject}"
    return run(spec, architecture, options, folder, lambda line: typer.echo(line))
