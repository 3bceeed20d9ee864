"""``conformance tiers``: what every model needs, what most of it is, and where it fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from conformance.commands.files import fail
from conformance.errors import ConformanceError


def tiers(
    models: Annotated[
        Path, typer.Option("--models", metavar="FILE", help="The models, names and tiers.")
    ] = Path("models.toml"),
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ID", help="Only this id, hub name or glob. Repeatable."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="D", help="Every model in this dtype, not its own."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="As if the longest prompt had N tokens.", min=1),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="N", help="As if the longest prompt had N rows.", min=1)
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, phase by phase.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare with tiers assigned otherwise: TOML, tier -> names. Writes Markdown.",
        ),
    ] = None,
) -> None:
    """Say how much memory each model needs, and on which machine it fits; the smallest first."""
    from conformance.footprint.comparing import compared, read_tiers_of
    from conformance.footprint.table import rows, text
    from conformance.selection import with_dtype
    from conformance.spec import load_spec

    try:
        spec = with_dtype(load_spec(models), dtype)
        if against is not None:
            spec = spec.model_copy(update={"models": ()})  # twins are in nobody else's list
        found = rows(spec, model or (), dtype, tokens=tokens, batch=batch)
        page = None if against is None else compared(found, read_tiers_of(against), spec)
    except ConformanceError as error:
        fail(error)
    if page is not None:
        typer.echo(page)
    elif as_json:
        typer.echo(json.dumps([row.plain() for row in found], indent=1))
    else:
        typer.echo(text(found))
