"""Runs ``conformance prove``: worker processes, ``prove.jsonl`` and the table."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import ConformanceError, NotApplicable, RecordsError
from conformance.prove import FILE_NAME, GATES, Proof
from conformance.records import Footer, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from conformance.spec import ModelSpec, Spec


@dataclass(frozen=True, slots=True)
class Task:
    """One port of one twin: what a worker does at a time."""

    model: ModelSpec
    subject: str
    loader: str | None
    faults: tuple[str, ...]
    cache: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task."""

    model: str
    subject: str
    proofs: tuple[Proof, ...] = ()
    skipped: str = ""
    error: str = ""


def work(task: Task) -> Outcome:
    """Prove every fault on one port. Runs in a worker process."""
    from conformance.prove import catalogue, prove

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proofs = tuple(
                prove(
                    task.model,
                    task.subject,
                    catalogue(task.faults),
                    Path(task.cache),
                    loader=task.loader,
                )
            )
    except NotApplicable as error:
        return Outcome(task.model.id, task.subject, skipped=error.message)
    except Exception as error:
        return Outcome(task.model.id, task.subject, error=f"{type(error).__name__}: {error}")
    return Outcome(task.model.id, task.subject, proofs)


def tasks(
    spec: Spec,
    models: Sequence[str],
    subjects: Sequence[str],
    faults: Sequence[str],
    cache: Path,
) -> list[Task]:
    """One task for each port of each twin that the options leave.

    Raises:
        ConformanceError: a name is unknown, or nothing is left.
    """
    from conformance.selection import select

    chosen = {(c.model, c.subject) for c in select(spec, models=models, subjects=subjects)}
    by_id = {m.id: m for m in spec.models}
    found = []
    for model, subject in sorted(chosen, key=lambda c: (list(by_id).index(c[0]), c[1])):
        entry = by_id[model]
        if entry.evidence != "twin":
            continue
        declared = spec.subjects.get(subject)
        loader = None if declared is None else declared.loader
        found.append(Task(entry, subject, loader, tuple(faults), str(cache)))
    if not found:
        raise ConformanceError("no twin is left to prove faults on", "widen --model or --subject")
    return found


def outcomes(todo: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Work through the tasks, in as many processes as ``workers``."""
    if workers <= 1 or len(todo) == 1:
        yield from map(work, todo)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        futures = [pool.submit(work, task) for task in todo]
        for future in as_completed(futures):
            yield future.result()


def run(
    spec: Spec,
    *,
    models: Sequence[str] = (),
    subjects: Sequence[str] = (),
    faults: Sequence[str] = (),
    out: Path,
    cache: Path,
    workers: int,
    console: Console,
    command: Sequence[str] = (),
) -> int:
    """Prove, write ``prove.jsonl`` as results arrive, print the table.

    Returns:
        0 if every fault was caught and nothing equivalent was flagged; 1 if not; 3 if a port
        could not be run.

    Raises:
        ConformanceError: the options name nothing, or the file cannot be written.
    """
    from conformance.prove import catalogue
    from conformance.recorder import header, now

    catalogue(faults)
    todo = tasks(spec, models, subjects, faults, cache)
    began = time.monotonic()
    proofs: list[Proof] = []
    errors: list[Outcome] = []
    path = out / FILE_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}", "give another --out") from error
    with stream:
        stream.write(to_json(header(spec, command)) + "\n")
        console.print(f"{len(todo)} ports, {len(catalogue(faults))} entries of the catalogue")
        for number, outcome in enumerate(outcomes(todo, workers), 1):
            proofs.extend(outcome.proofs)
            for proof in outcome.proofs:
                stream.write(proof.to_json() + "\n")
            stream.flush()
            if outcome.error:
                errors.append(outcome)
            console.print(f"[{number}/{len(todo)}] {_line(outcome)}", markup=False, soft_wrap=True)
        failed = [p for p in proofs if not good(p)]
        status = 3 if errors else int(bool(failed))
        footer = Footer(
            finished=now(),
            exit_code=status,
            duration_s=round(time.monotonic() - began, 3),
            outcomes=dict(Counter(p.kind for p in proofs)),
            selected=len(proofs),
        )
        stream.write(to_json(footer) + "\n")
    console.print(table(proofs))
    for line in summary(proofs):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"records: {path}", markup=False, soft_wrap=True)
    return status


def good(proof: Proof) -> bool:
    """Whether a proof came out as it must."""
    if proof.kind == "unfaulted":
        return True
    return proof.caught != (proof.kind == "equivalent")


def _line(outcome: Outcome) -> str:
    name = f"{outcome.model} {outcome.subject}"
    if outcome.skipped:
        return f"{name}: not applicable: {outcome.skipped}"
    if outcome.error:
        return f"{name}: {outcome.error}"
    faults = [p for p in outcome.proofs if p.kind != "unfaulted"]
    bad = [p.fault for p in faults if not good(p)]
    seconds = sum(p.duration_s for p in outcome.proofs)
    said = f"{len(faults)} proven, " + (f"NOT AS IT MUST: {', '.join(bad)}" if bad else "all well")
    return f"{name}: {said} ({seconds:.0f} s)"


def table(proofs: Sequence[Proof]) -> Table:
    """One row for each port."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("model")
    shown.add_column("subject")
    for column in ("faults", "caught", "named", "precision", "equivalent", "right", "best hidden"):
        shown.add_column(column, justify="right")
    groups: dict[tuple[str, str], list[Proof]] = defaultdict(list)
    for proof in proofs:
        groups[proof.model, proof.subject].append(proof)
    for (model, subject), group in groups.items():
        f = figures(group)
        shown.add_row(
            model,
            subject,
            str(f["faults"]),
            str(f["caught"]),
            str(f["named"]),
            f"{f['precision_caught']}/{f['precision']}",
            f"{f['flagged']}/{f['equivalents']} flagged",
            _number(f["right"]),
            _number(f["hidden"]),
        )
    return shown


def figures(proofs: Iterable[Proof]) -> dict[str, Any]:
    """The counts and margins that the table and ``docs/sensitivity.md`` state."""
    kinds: dict[str, list[Proof]] = defaultdict(list)
    for proof in proofs:
        kinds[proof.kind].append(proof)
    faults, precision, same = kinds["fault"], kinds["precision"], kinds["equivalent"]
    right = [p.factor for p in kinds["unfaulted"] if not p.caught and p.factor is not None]
    hidden = [p for p in faults if p.caught and p.factor is not None]
    least = min(hidden, key=lambda p: p.factor or 0.0, default=None)
    return {
        "faults": len(faults),
        "caught": sum(p.caught for p in faults),
        "named": sum(bool(p.site_named) for p in faults),
        "precision": len(precision),
        "precision_caught": sum(p.caught for p in precision),
        "precision_named": sum(bool(p.site_named) for p in precision),
        "equivalents": len(same),
        "flagged": sum(p.caught for p in same),
        "right": max(right, default=None),
        "hidden": None if least is None else least.factor,
        "hidden_fault": None if least is None else f"{least.fault} on {least.model}",
        "gates": {gate: sum(p.gates.get(gate, False) for p in faults if p.gates) for gate in GATES},
        "gated": sum(bool(p.gates) for p in faults),
    }


def summary(proofs: Sequence[Proof]) -> list[str]:
    """What the table adds up to, and every proof that did not come out as it must."""
    f = figures(proofs)
    lines = [""]
    for p in proofs:
        if not good(p):
            what = "flagged" if p.kind == "equivalent" else "NOT caught"
            why = p.note or f"factor {_number(p.factor)}"
            lines.append(f"{what}: {p.fault} on {p.model} {p.subject} ({why})")
        elif p.kind in ("fault", "precision") and not p.site_named:
            lines.append(
                f"misnamed: {p.fault} on {p.model} {p.subject}: {p.named}, "
                f"not {' or '.join(p.site_true)}"
            )
    lines += [
        f"faults that change the function: {f['caught']} of {f['faults']} caught, "
        f"site named in {f['named']}",
        f"lost precision: {f['precision_caught']} of {f['precision']} caught as such",
        f"equivalent changes: {f['flagged']} of {f['equivalents']} flagged",
        f"measured / allowed: right ports at most {_number(f['right'])}, best-hidden fault "
        f"{_number(f['hidden'])} ({f['hidden_fault']})",
    ]
    for gate, caught in f["gates"].items():
        lines.append(f"{gate} would have caught {caught} of {f['gated']}")
    return lines


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.2g}"


def read(path: Path) -> list[Mapping[str, Any]]:
    """The proofs of a ``prove.jsonl``, as they stand there."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [d for d in map(json.loads, lines) if d["kind"] not in ("header", "footer")]
