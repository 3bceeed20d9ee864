"""``conformance schema``: what a line of records.jsonl looks like, for other programs."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON Schema of a line of records.jsonl."""
    from conformance.schema import text

    typer.echo(text(), nl=False)
