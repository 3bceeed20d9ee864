"""Files that commands read and write, and how they fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from conformance.errors import RecordsError

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.errors import ConformanceError
    from conformance.records import Records

USAGE, HARNESS = 2, 3


def records_file(where: Path) -> Path:
    """The records file that a user means by a directory or a file.

    Raises:
        RecordsError: there is none.
    """
    from conformance.recorder import FILE_NAME

    path = where / FILE_NAME if where.is_dir() else where
    if not path.is_file():
        raise RecordsError(
            f"{path}: no such file", "give the DIR of a finished run, or its records.jsonl"
        )
    return path


def read_run(where: Path) -> Records:
    """A run read back.

    Args:
        where: the ``--out`` of a run, or a records file.

    Raises:
        RecordsError: there is no such file, or it is damaged.
    """
    from conformance.records import read

    return read(records_file(where))


def put(text: str, out: Path | None) -> None:
    """Write to a file, or to standard output.

    Raises:
        RecordsError: the file cannot be written.
    """
    # A lone surrogate, as in the name of a file, has no bytes; JSON reads the escape back.
    text = text.encode(errors="backslashreplace").decode()
    if out is None or str(out) == "-":
        typer.echo(text.rstrip("\n"))
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordsError(f"{out}: {error.strerror}", "give a path you can write to") from error


def fail(error: ConformanceError) -> NoReturn:
    """Say what is wrong with the command, and end it."""
    typer.echo(f"conformance: {error}", err=True)
    raise typer.Exit(USAGE)
