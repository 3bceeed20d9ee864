"""The ``conformance`` command: a thin face on the suite, its records and its ledger.

Exit codes: 0 all right, 1 a port does not conform or the ledger is stale, 2 usage, 3 the harness
itself failed, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.commands.compare import compare
from conformance.commands.files import read_run
from conformance.commands.gate import gate
from conformance.commands.report import report
from conformance.commands.schema import schema
from conformance.commands.tiers import tiers
from conformance.commands.vary import vary
from conformance.errors import ConformanceError
from conformance.ledger.command import app as ledger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from conformance.records import Records
    from conformance.spec import ModelSpec

_USAGE, _HARNESS, _INTERRUPTED = 2, 3, 130
#: More explanations than this are left to ``conformance show``.
_EXPLAINED = 12

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Settles whether a TransformerLens port computes the same thing as HuggingFace.",
)

app.add_typer(ledger, name="ledger")

_Models = Annotated[Path, typer.Option("--models", metavar="FILE", help="The models to check.")]
_MODELS = Path("models.toml")
_Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="D", help="float32, bfloat16, float16 or float64, for every model."
    ),
]


for _command in (compare, report, gate, schema, tiers, vary):
    app.command()(_command)


def main() -> None:
    """Entry point of the ``conformance`` command."""
    app(prog_name="conformance")


@app.command()
def run(
    models: _Models = _MODELS,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="ID", help="Only this model, glob, or hub name. Can be repeated."
        ),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", metavar="S", help="Only this subject. Can be repeated."),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="C", help="Only this check. Can be repeated."),
    ] = None,
    dtype: _Dtype = None,
    tier: Annotated[
        str | None,
        typer.Option("--tier", metavar="NAME", help="Skip what does not fit a machine of this."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Skip what does not fit this machine's free memory.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where records.jsonl is written.")
    ] = Path("conformance-out"),
    workers: Annotated[
        str | None, typer.Option("-n", metavar="N", help="Models at a time: a number, or auto.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Longest time for one reference or one subject.", min=0.001
        ),
    ] = None,
    junitxml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a JUnit report.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Explain the first ports that fail, for the report: where and why."
        ),
    ] = False,
) -> None:
    """Check models: the pytest suite, with progress, a table at the end, and a report to open."""
    if workers is not None and workers not in ("auto", "logical") and not workers.isdigit():
        raise typer.BadParameter(f"{workers!r} is neither a number nor auto", param_hint="-n")
    selection = [
        *(f"--model={name}" for name in model or ()),
        *(f"--subject={name}" for name in subject or ()),
        *(f"--check={name}" for name in check or ()),
        *([f"--dtype={dtype}"] if dtype is not None else []),
        *([f"--tier={tier}"] if tier is not None else []),
        *(["--fit"] if fit else []),
    ]
    args = [
        "--models",
        str(models),
        "--out",
        str(out),
        *selection,
        *(["-p", "xdist", "-n", workers] if workers else []),
        *(["--timeout", str(timeout)] if timeout else []),
        *([f"--junitxml={junitxml.absolute()}"] if junitxml else []),
    ]
    status = _run_suite(args, models if explain else None)
    if status == _INTERRUPTED or not 0 <= status <= _HARNESS:
        typer.echo("interrupted" if status == _INTERRUPTED else f"pytest ended with {status}")
    raise typer.Exit(status)


def _run_suite(args: Sequence[str], explained_from: Path | None = None) -> int:
    """Run the suite in this process and print what came of it.

    Args:
        explained_from: the ``models.toml`` of ports to explain where they fail; None for none.
    """
    import pytest
    from rich.console import Console

    from conformance.progress import Progress
    from conformance.recorder import FILE_NAME
    from conformance.report import PAGES

    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    progress = Progress(console)
    hidden = io.StringIO()
    with contextlib.redirect_stdout(hidden), progress:
        status = int(pytest.main([*_pytest_args(), *args], plugins=[progress]))
    out = Path(args[args.index("--out") + 1])
    if progress.began:
        records = read_run(out)
        _print(console, records, explained=_EXPLAINED)
        if explained_from is not None and not progress.interrupted:
            _explain_failing(console, explained_from, records, out)
        console.print(f"records: {out / FILE_NAME}", markup=False, soft_wrap=True)
        console.print(f"report: {out / PAGES}", markup=False, soft_wrap=True)
    elif progress.stopped_by:
        typer.echo(f"Exit: {progress.stopped_by}", err=True)
    elif status not in (0, _USAGE):
        typer.echo(hidden.getvalue(), err=True)
    if status == pytest.ExitCode.USAGE_ERROR:
        return _USAGE
    if progress.interrupted:
        return _INTERRUPTED
    if status == pytest.ExitCode.INTERNAL_ERROR and progress.internal_error:
        typer.echo(hidden.getvalue(), err=True)
    return status


def _explain_failing(console: Console, models: Path, records: Records, out: Path) -> None:
    """Explain the first ports that fail, and write the report again, which shows it."""
    from conformance.checkpoints import cache_dir
    from conformance.explain.failing import explain_failing
    from conformance.recorder import FILE_NAME
    from conformance.report.html.pages import write
    from conformance.spec import load_spec

    told = explain_failing(load_spec(models), records, out, cache_dir())
    for port, said in told.items():
        console.print(f"{port}: {said}", markup=False, soft_wrap=True)
    if told:
        write(out / FILE_NAME)


def _pytest_args() -> list[str]:
    """The suite, whatever pytest configuration and conftest lie about where we are called."""
    return [
        "-c",
        os.devnull,
        f"--rootdir={Path.cwd()}",
        "--noconftest",
        "-p",
        "conformance.plugin",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        "--capture=no",  # children's output is captured where it arises
        "--no-header",
        "--no-summary",
        "-q",
        "--pyargs",
        "conformance.suite",
    ]


@app.command(name="models")
def list_models(models: _Models = _MODELS) -> None:
    """List the entries of models.toml."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from conformance.selection import known_subjects
    from conformance.spec import load_spec

    try:
        spec = load_spec(models)
    except ConformanceError as error:
        _fail(error)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("id", "architecture", "source", "dtype", "subjects", "xfail"):
        table.add_column(column, overflow="fold")
    known = known_subjects(spec)
    for model in spec.models:
        table.add_row(
            *map(
                Text,
                (
                    model.id,
                    model.architecture,
                    _source(model),
                    model.dtype,
                    " ".join(model.subjects or known),
                    str(len(model.expected_failures) or "-"),
                ),
            )
        )
    Console(highlight=False).print(table)


def _source(model: ModelSpec) -> str:
    source = model.source.model_dump()
    if "packages" in source:
        return f"wheel {source['packages'][0]['requirement']}"
    kind = next(key for key in ("hub", "path", "twin") if key in source)
    return f"{kind} {source[kind]}"


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of a run.")] = Path(
        "conformance-out"
    ),
) -> None:
    """Show the table and the failures of an earlier run, from its records alone."""
    from rich.console import Console

    from conformance.report.terminal import exit_code, state

    try:
        records = read_run(directory)
    except ConformanceError as error:
        _fail(error)
    _print(Console(highlight=False), records, explained=None)
    status = exit_code((verdict.outcome for verdict in records.verdicts), records.stale)
    raise typer.Exit(_HARNESS if state(records) and status == 0 else status)


@app.command()
def prove(
    models: _Models = _MODELS,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ID", help="Only this twin, or glob. Can be repeated."),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", metavar="S", help="Only this subject. Can be repeated."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="F", help="Only this fault. Can be repeated."),
    ] = None,
    dtype: _Dtype = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where prove.jsonl is written.")
    ] = Path("conformance-out"),
    workers: Annotated[int, typer.Option("-n", metavar="N", help="Ports at a time.", min=1)] = 2,
    seeds: Annotated[
        int,
        typer.Option(metavar="N", help="Judge unfaulted ports of twins drawn from N seeds.", min=1),
    ] = 1,
    cover: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Each fault in K ports only, those first that differ most. "
            "2 where no --model and no --fault is given.",
            min=1,
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--every", help="Each fault in every port it applies to: an hour or more."),
    ] = False,
    causes: Annotated[
        bool,
        typer.Option("--causes", help="Diagnose the faults instead: is the right cause named?"),
    ] = False,
) -> None:
    """Prove that the checks can fail: known faults in the twins' ports, one after another."""
    from rich.console import Console

    from conformance.checkpoints import cache_dir
    from conformance.prove.causes import run as run_causes
    from conformance.prove.command import run as run_proofs
    from conformance.prove.cover import PORTS_EACH
    from conformance.selection import with_dtype
    from conformance.spec import load_spec

    if every and cover:
        _fail(ConformanceError("--every leaves no port out, --cover does", "give one of them"))
    if causes and seeds > 1:
        _fail(ConformanceError("--causes puts faults in, --seeds judges ports without", "give one"))
    if not (model or fault or every or cover):
        cover = PORTS_EACH
    run = run_causes if causes else functools.partial(run_proofs, seeds=seeds)
    try:
        status = run(
            with_dtype(load_spec(models), dtype),
            models=model or (),
            subjects=subject or (),
            faults=fault or (),
            out=out,
            cache=cache_dir(),
            workers=workers,
            console=Console(highlight=False),
            cover=cover,
            command=sys.argv,
            dtype=dtype,
        )
    except ConformanceError as error:
        _fail(error)
    raise typer.Exit(status)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An id in models.toml.")],
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="S", help="The port; bridge unless told otherwise."),
    ] = None,
    dtype: _Dtype = None,
    models: _Models = _MODELS,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where script and pictures go [default: conformance-out/explain/MODEL-S].",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the explanation as JSON instead of text.")
    ] = False,
) -> None:
    """Explain one port: what differs first, where, why, and the smallest case that shows it."""
    from rich.console import Console
    from rich.markup import escape

    from conformance.checkpoints import cache_dir
    from conformance.explain import command as explaining
    from conformance.report.explanation import page
    from conformance.selection import with_dtype, with_named
    from conformance.spec import load_spec

    status = Console(stderr=True, highlight=False)
    try:
        spec = with_dtype(with_named(load_spec(models), [model]), dtype)
        entry, name = explaining.choose(spec, model, subject)
        folder = out or Path("conformance-out") / "explain" / f"{entry.id}-{name}"
        with status.status(f"{entry.id}, {name}", spinner="line") as line:
            found = explaining.run(
                spec,
                model,
                name,
                cache=cache_dir(),
                out=folder,
                progress=lambda text: line.update(escape(f"{entry.id}, {name}: {text}")),
            )
        text = page(found)
        explaining.write(found, folder, text)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except explaining.PortFailed as error:
        typer.echo(f"conformance: {error}", err=True)
        raise typer.Exit(1) from None
    except explaining.ReferenceFailed as error:
        typer.echo(f"conformance: {error}", err=True)
        raise typer.Exit(_HARNESS) from None
    except OSError as error:
        typer.echo(f"conformance: {folder} cannot be written: {error}", err=True)
        raise typer.Exit(_USAGE) from None
    except ConformanceError as error:
        _fail(error)
    typer.echo(found.to_json(indent=1) if as_json else text.rstrip("\n"))
    raise typer.Exit(0 if found.conforms else 1)


@app.command()
def coverage(
    models: _Models = _MODELS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON instead of text.")
    ] = False,
) -> None:
    """Say what TransformerLens supports and models.toml does not cover; 1 if without a reason."""
    import json

    from conformance import coverage as covering
    from conformance.spec import load_spec

    try:
        found = covering.coverage(load_spec(models), covering.installed())
    except ConformanceError as error:
        _fail(error)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else covering.text(found))
    raise typer.Exit(0 if found.ok else 1)


def _print(console: Console, records: Records, explained: int | None) -> None:
    """Failures first, so that what is read last, and seen first, is the summary."""
    from conformance.report.names import short
    from conformance.report.stale import stale_lines
    from conformance.report.terminal import explanations, left_out, summary, table

    models = records.header.models_toml
    default = str(_MODELS.absolute())
    texts = explanations(
        records.verdicts,
        models=None if models == default else models,
        dtype=records.header.dtype,
    )
    for text in texts[:explained]:
        console.print(text, markup=False, soft_wrap=True, end="\n\n")
    if explained is not None and len(texts) > explained:
        console.print(f"and {len(texts) - explained} more; `conformance show` tells them all\n")
    console.print(table(records.verdicts, width=console.width))
    console.print()
    stale = stale_lines(records.stale)
    for line in (*left_out(records.verdicts), *short(records), *stale, *summary(records)):
        console.print(line, markup=False, soft_wrap=True)


def _fail(error: ConformanceError) -> None:
    typer.echo(f"conformance: {error}", err=True)
    raise typer.Exit(_USAGE)
