"""Runs ``conformance explain``: the port in a process of its own, so that its crash is a message.

Nothing here imports a tensor library: the child does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.errors import ConformanceError, ImplementationError, NotApplicable
from conformance.explain.explanations import Explanation
from conformance.jobs import Job

if TYPE_CHECKING:
    from conformance.isolation import Outcome
    from conformance.jobs import Emit
    from conformance.spec import ModelSpec, Spec

Progress = Callable[[str], None]

#: The file that ``--out`` gets beside pictures and script.
TEXT, JSON = "explanation.txt", "explanation.json"
#: Longest time for the whole of one explanation, in seconds.
TIMEOUT_S = 1800.0


class PortFailed(ConformanceError):
    """The port could not be loaded, or it crashed: it does not conform, and that is why."""


class ReferenceFailed(ConformanceError):
    """The checkpoint could not be had, or HuggingFace or the harness failed: no explanation."""


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ExplainJob(Job):
    """A subject job that explains instead of judging."""

    out: str | None = None
    pictures: bool = True


def run_job(job: Job, emit: Emit) -> None:
    """The engine of the child process: the reference's run as always, then the explanation."""
    if not isinstance(job, ExplainJob):
        from conformance.engine import run_job as run_other

        run_other(job, emit)
        return
    from conformance.explain.port import explain
    from conformance.explain.reproduce import Forked

    assert job.subject is not None
    # Scripts load ports as users do, and a port may install what it misses.
    os.environ |= {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    runner = None if job.out is None else Forked()  # before torch starts a thread
    try:
        explanation = explain(
            job.model,
            job.subject,
            Path(job.cache),
            out=None if job.out is None else Path(job.out),
            loader=job.loader,
            runner=runner,
            pictures=job.pictures,
            progress=lambda text: emit({"event": "progress", "text": text}),
        )
    finally:
        if runner is not None:
            runner.close()
    emit({"event": "verdict", "record": json.loads(explanation.to_json())})


def choose(spec: Spec, model: str, subject: str | None) -> tuple[ModelSpec, str]:
    """The entry and the subject that the command line names.

    Raises:
        ConformanceError: there is no such model or subject.
    """
    from conformance.selection import select

    cases = select(spec, models=[model], subjects=[subject] if subject else [])
    ids = list(dict.fromkeys(case.model for case in cases))
    if len(ids) > 1:
        raise ConformanceError(
            f"{model!r} names {len(ids)} models: {', '.join(ids[:6])}",
            "explain one at a time",
        )
    entry = next(m for m in spec.models if m.id == ids[0])
    subjects = list(dict.fromkeys(case.subject for case in cases))
    return entry, "bridge" if "bridge" in subjects else subjects[0]


def run(
    spec: Spec,
    model: str,
    subject: str | None,
    *,
    cache: Path,
    out: Path | None,
    progress: Progress = _silent,
    timeout: float = TIMEOUT_S,
) -> Explanation:
    """Explain in a child process, so that a port that crashes is a message and not our end.

    Raises:
        PortFailed: the port could not be loaded, crashed or ran out of time or memory.
        NotApplicable: the installed TransformerLens has no such subject.
        ConformanceError: the options name nothing, or the reference failed.
    """
    from conformance.explain.reproduce import FILE_NAME
    from conformance.isolation import Isolation
    from conformance.loaders import make_importable
    from conformance.report.pictures import NAMES

    entry, name = choose(spec, model, subject)
    make_importable(spec)
    for old in (TEXT, JSON, FILE_NAME, *NAMES):  # of an earlier explanation
        if out is not None:
            (out / old).unlink(missing_ok=True)
    declared = spec.subjects.get(name)
    loader = None if declared is None else declared.loader
    absolute = None if out is None else str(out)
    since = time.perf_counter()
    threads = 1 if entry.evidence == "twin" else _cores()
    with Isolation("conformance.explain.command:run_job", threads=threads) as isolation:
        first = isolation.run(
            (Job("checkpoint", entry, str(cache)), Job("reference", entry, str(cache))),
            timeout=timeout,
            progress=progress,
        )
        if first.status != "ok":
            said = f"the reference of {entry.id}: {first.details()}"
            raise ReferenceFailed(said, first.hint or "`conformance run` shows the same")
        job = ExplainJob("subject", entry, str(cache), name, loader, out=absolute)
        second = isolation.run((job,), timeout=timeout, progress=progress)
    if second.status != "ok" or not second.records:
        raise _failed(entry, name, second)
    explanation = Explanation.from_dict(second.records[0])
    return dataclasses.replace(explanation, duration_s=round(time.perf_counter() - since, 3))


def _failed(model: ModelSpec, subject: str, outcome: Outcome) -> ConformanceError:
    """What a child that gave no explanation says of the port."""
    said = outcome.message.split("\n  hint: ")[0]
    if outcome.is_a(NotApplicable):
        return NotApplicable(said, outcome.hint or "choose another subject")
    by_hand = f"load the checkpoint with TransformerLens by hand ({subject})"
    if outcome.is_a(ImplementationError):
        text = f"{model.id}, {subject}: the port could not be loaded or run: {said}"
        return PortFailed(text, outcome.hint or by_hand)
    if outcome.status != "raised":
        verb = {"timeout": "timed out", "oom": "ran out of memory"}.get(outcome.status, "crashed")
        return PortFailed(f"{model.id}, {subject}: the port {verb}: {outcome.details()}", by_hand)
    return ReferenceFailed(
        f"{model.id}, {subject}: the harness failed: {outcome.details()}", "this is a bug of ours"
    )


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(explanation: Explanation, out: Path, text: str) -> None:
    """The page and the record, beside the pictures and the script."""
    out.mkdir(parents=True, exist_ok=True)
    (out / TEXT).write_text(text, encoding="utf-8")
    (out / JSON).write_text(explanation.to_json(indent=1) + "\n", encoding="utf-8")
