"""Runs ``conformance prove``: worker processes, ``prove.jsonl`` and the table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import time
import warnings
from collections import Counter, defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from conformance.checks.names import CHECKS
from conformance.errors import (
    ConformanceError,
    ImplementationError,
    NotApplicable,
    RecordsError,
)
from conformance.prove.cover import Cover
from conformance.prove.proof import FILE_NAME, GATES, Proof
from conformance.records import Footer, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from conformance.spec import ModelSpec, Spec

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Task:
    """One port of one twin: what a worker does at a time.

    Attributes:
        seed: of the twin, for the unfaulted port alone; None for the entry's own, with faults.
    """

    model: ModelSpec
    subject: str
    loader: str | None
    faults: tuple[str, ...]
    cache: str
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task."""

    model: str
    subject: str
    proofs: tuple[Proof, ...] = ()
    skipped: str = ""
    error: str = ""

    @property
    def put_in(self) -> tuple[str, ...]:
        """The faults that could be put in."""
        return tuple(p.fault for p in self.proofs if p.kind != "unfaulted" and not p.note)


def work(task: Task) -> Outcome:
    """Prove every fault on one port. Runs in a worker process."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proofs = tuple(_proofs(task))
    except NotApplicable as error:
        return Outcome(task.model.id, task.subject, skipped=error.message)
    except ImplementationError as error:
        if expected := _expected(task):
            return Outcome(task.model.id, task.subject, skipped=expected)
        return Outcome(task.model.id, task.subject, error=error.message)
    except Exception as error:
        return Outcome(task.model.id, task.subject, error=f"{type(error).__name__}: {error}")
    return Outcome(task.model.id, task.subject, proofs)


def _proofs(task: Task) -> Iterator[Proof]:
    from conformance.prove.ports import catalogue, prove, seeded

    cache = Path(task.cache)
    if task.seed is None:
        faults = catalogue(task.faults)
        yield from prove(task.model, task.subject, faults, cache, loader=task.loader)
    else:
        yield seeded(task.model, task.subject, task.seed, cache, loader=task.loader)


def _expected(task: Task) -> str:
    """Why this port could not be run, if the ledger expects that of every check."""
    from conformance.ledger.judging import expected
    from conformance.verdicts import conclude

    reasons: list[str] = []
    for check in CHECKS:
        failed = conclude(task.model, task.subject, check, (), {}, 0.0)
        found = expected(dataclasses.replace(failed, outcome="failed", reason=None), task.model)
        if found.outcome != "xfailed":
            return ""
        reasons.append(found.reason or "")
    return reasons[0]


def tasks(
    spec: Spec,
    models: Sequence[str],
    subjects: Sequence[str],
    faults: Sequence[str],
    cache: Path,
    seeds: int = 1,
) -> list[Task]:
    """One task for each port of each twin that the options leave, and for each further seed.

    Raises:
        ConformanceError: a name is unknown, or nothing is left.
    """
    from conformance.loaders import make_importable
    from conformance.selection import select

    make_importable(spec)
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
    found.sort(key=_size, reverse=True)  # a long one that comes last keeps one worker waiting
    own = [getattr(task.model.source, "seed", 0) for task in found]
    return found + [
        dataclasses.replace(task, seed=first + more)
        for more in range(1, seeds)
        for task, first in zip(found, own, strict=True)
    ]


def _size(task: Task) -> int:
    """Layers times context, as far as a twin's config says; for order only."""
    from conformance.checkpoints.twin_catalogue import TWINS
    from conformance.spec import TwinSource

    source = task.model.source
    config = TWINS[source.twin].config if isinstance(source, TwinSource) else {}
    context = (config[key] for key in ("max_position_embeddings", "n_positions") if key in config)
    layers = (config[key] for key in ("num_hidden_layers", "n_layer") if key in config)
    return int(next(context, 512)) * int(next(layers, 3))


def outcomes(
    todo: Iterable[Task],
    workers: int,
    started: Callable[[Task], None],
    work: Callable[[Task], Result],
) -> Iterator[Result]:
    """Work through the tasks, in as many processes as ``workers``; say when each begins.

    Each is asked for when a process is free, and not before.

    Args:
        work: what is done with a task, in a process of its own if there is more than one.
    """
    if workers <= 1 or (isinstance(todo, list) and len(todo) == 1):
        for task in todo:
            started(task)
            yield work(task)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Threads that spin while they wait take the other worker's core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        waiting, running = iter(todo), set[Future[Result]]()
        while True:
            for task in itertools.islice(waiting, workers - len(running)):
                started(task)
                running.add(pool.submit(work, task))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


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
    seeds: int = 1,
    cover: int | None = None,
    command: Sequence[str] = (),
    dtype: str | None = None,
) -> int:
    """Prove, write ``prove.jsonl`` as results arrive, print the table.

    Args:
        seeds: how many twins of each kind the unfaulted ports are judged on.
        cover: in how many ports each fault is put; None for every port that it applies to.
        dtype: the one that every model is run in; None where each is in its own. For the file.

    Returns:
        0 if every fault was caught and nothing equivalent was flagged, nor any port unfaulted that
        the ledger expects to pass; 1 if not; 3 if a port
        could not be run.

    Raises:
        ConformanceError: the options name nothing, or the file cannot be written.
    """
    from conformance.prove.ports import catalogue
    from conformance.recorder import header, now

    catalogue(faults)
    todo = tasks(spec, models, subjects, faults, cache, seeds)
    entries = catalogue(faults)
    # Ports come with the longest first; of two that bring as much, the shorter will do.
    covering = Cover(todo[::-1], entries, cover) if cover else None
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
        stream.write(to_json(header(spec, command, dtype)) + "\n")
        ports = sum(task.seed is None for task in todo)
        each = f", each in {cover} ports" if cover else ""
        console.print(
            f"{ports} ports, {seeds} seed(s), {len(entries)} entries of the catalogue{each}"
        )

        def started(task: Task) -> None:
            console.print(f"{task.model.id} {task.subject}: begun", markup=False, soft_wrap=True)

        for number, outcome in enumerate(outcomes(covering or todo, workers, started, work), 1):
            proofs.extend(outcome.proofs)
            if covering:
                ran = bool(outcome.proofs)
                covering.add(outcome.model, outcome.subject, outcome.put_in, ran=ran)
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
    for line in [*summary(proofs), *(covering.said() if covering else [])]:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"records: {path}", markup=False, soft_wrap=True)
    return status


def good(proof: Proof) -> bool:
    """Whether a proof came out as it must."""
    if proof.kind == "unfaulted":
        return not proof.alarms
    return proof.caught != (proof.kind == "equivalent")


def _line(outcome: Outcome) -> str:
    name = f"{outcome.model} {outcome.subject}"
    if outcome.skipped:
        return f"{name}: not applicable: {outcome.skipped}"
    if outcome.error:
        return f"{name}: {outcome.error}"
    faults = [p for p in outcome.proofs if p.kind != "unfaulted"]
    bad = [p.fault for p in outcome.proofs if not good(p)]
    seconds = sum(p.duration_s for p in outcome.proofs)
    said = f"{len(faults)} proven, " if faults else f"seed {outcome.proofs[0].seed}, unfaulted, "
    said += f"NOT AS IT MUST: {', '.join(bad)}" if bad else "all well"
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
    unfaulted = kinds["unfaulted"]
    right = [p.factor for p in unfaulted if p.factor is not None]
    hidden = [p for p in faults if p.caught and p.factor is not None]
    least = min(hidden, key=lambda p: p.factor or 0.0, default=None)
    return {
        "faults": len(faults),
        "caught": sum(p.caught for p in faults),
        "named": sum(bool(p.site_named) for p in faults),
        "nameless": sum(p.site_named is None for p in faults),
        "precision": len(precision),
        "precision_caught": sum(p.caught for p in precision),
        "precision_named": sum(bool(p.site_named) for p in precision),
        "equivalents": len(same),
        "flagged": sum(p.caught for p in same),
        "unfaulted": len(unfaulted),
        "seeds": len({p.seed for p in unfaulted}),
        "alarms": sum(bool(p.alarms) for p in unfaulted),
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
            what = {"equivalent": "flagged", "unfaulted": "FALSE ALARM"}.get(p.kind, "NOT caught")
            why = p.note or f"factor {_number(p.factor)}"
            if p.kind == "unfaulted":
                why = f"seed {p.seed}: {', '.join(p.alarms)}, first at {p.named}"
            lines.append(f"{what}: {p.fault} on {p.model} {p.subject} ({why})")
        elif p.kind in ("fault", "precision") and p.site_named is False:
            lines.append(
                f"misnamed: {p.fault} on {p.model} {p.subject}: {p.named}, "
                f"not {' or '.join(p.site_true)}"
            )
    lines += [
        f"faults that change the function: {f['caught']} of {f['faults']} caught, "
        f"site named in {f['named']}, wrong without the fault in {f['nameless']}",
        f"lost precision: {f['precision_caught']} of {f['precision']} caught as such",
        f"equivalent changes: {f['flagged']} of {f['equivalents']} flagged",
        f"unfaulted ports: {f['alarms']} of {f['unfaulted']} with a false alarm, "
        f"over {f['seeds']} seed(s)",
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
