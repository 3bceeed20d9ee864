"""An engine without libraries: the id of the model says how it behaves.

``sub.segv`` dies in its subject, ``ref.segv`` in its reference, ``get.error`` in its checkpoint;
anything after a ``-`` only makes the id unique.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import (
    CheckpointError,
    FamilyError,
    ImplementationError,
    NotApplicable,
)
from conformance.records import Comparison, JudgementSummary, Outcome, Verdict

if TYPE_CHECKING:
    from conformance.jobs import Job

Emit = Callable[[Mapping[str, Any]], None]
_STAGES = {"checkpoint": "get", "reference": "ref", "subject": "sub"}


def run_job(job: Job, emit: Emit) -> None:
    stage, _, behaviour = job.model.id.partition("-")[0].partition(".")
    emit({"event": "progress", "text": f"{job.kind} of {job.model.id}"})
    _note(job)
    if stage == _STAGES[job.kind]:
        _misbehave(behaviour, job, emit)
    if job.kind == "subject" and not (stage == "sub" and behaviour == "silent"):
        for check in job.checks:
            outcome: Outcome = "failed" if (stage, behaviour) == ("sub", "fail") else "passed"
            emit({"event": "verdict", "record": record(job, check, outcome)})


def tell_surroundings(job: Job, emit: Emit) -> None:
    """Another engine: says what the process it runs in is like."""
    modules = " ".join(name for name in ("colorsys", "tabnanny") if name in sys.modules)
    threads = os.environ["OMP_NUM_THREADS"]
    emit({"event": "progress", "text": f"modules: {modules}; threads: {threads}"})


def _note(job: Job) -> None:
    """Leave a line for tests that ask which process did what."""
    log = os.environ.get("FAKE_ENGINE_LOG")
    if log:
        with Path(log).open("a") as stream:
            worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
            stream.write(f"{job.kind} {job.model.id} {job.subject} {worker} {os.getpid()}\n")


def record(job: Job, check: str, outcome: Outcome) -> dict[str, Any]:
    failed = outcome == "failed"
    comparison = Comparison(
        judgement="same_function",
        site="blocks.1.attn.pattern",
        prompt="random-16",
        measured=3.25e-4,
        allowed=1e-12,
        ok=False,
        index=(0, 3, 5, 2),
        reference=0.25,
        subject=0.250081,
        bound="8 times the reference's own spread in float64",
    )
    verdict = Verdict(
        model=job.model.id,
        subject=str(job.subject),
        check=check,
        outcome=outcome,
        verdict={
            "same_function": JudgementSummary(
                compared=40,
                failed=3 if failed else 0,
                measured=3.25e-4 if failed else 2e-13,
                allowed=1e-12,
                margin=3.25e8 if failed else 0.2,
                site="blocks.1.attn.pattern",
            )
        },
        first_divergence="blocks.1.attn.pattern" if failed else None,
        duration_s=0.125,
        worst=(comparison,) if failed else (),
    )
    return dataclasses.asdict(verdict)


def _misbehave(behaviour: str, job: Job, emit: Emit) -> None:
    print(f"about to {behaviour}", file=sys.stderr)
    match behaviour:
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "abort":
            os.abort()
        case "exit":
            os._exit(7)
        case "quiet":
            os._exit(0)
        case "sysexit":
            sys.exit("no")
        case "hang":
            time.sleep(60)
        case "fork":
            _hang_with_grandchild(job)
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            raise MemoryError("no room")
        case "torchoom":
            try:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            except RuntimeError as error:
                raise ImplementationError("cannot load", "buy memory") from error
        case "error":
            raise CheckpointError("wrong hash", "delete it and try again")
        case "na":
            raise NotApplicable("no such subject here", "use another version")
        case "impl":
            raise ImplementationError("cannot load the port", "read the loader")
        case "family":
            raise FamilyError("not described", "describe it")
        case "bug":
            raise ZeroDivisionError("division by zero")
        case "half":
            emit({"event": "verdict", "record": record(job, job.checks[0], "passed")})
            os.abort()
        case "twice":
            emit({"event": "verdict", "record": record(job, job.checks[0], "passed")})
        case "foreign":
            emit({"event": "verdict", "record": record(job, "nonsense", "passed")})
        case "malformed":
            emit({"event": "verdict", "record": {"model": "x"}})
        case "unplain":
            emit({"event": "verdict", "record": {"model": object()}})
        case "killserver":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case "chatty":
            print("\r".join(f"{n}%" for n in range(100)) + "\nun\u2028usual \udce9")
        case "fail" | "silent":
            pass
        case _:
            raise AssertionError(f"no such behaviour: {behaviour}")


def _hang_with_grandchild(job: Job) -> None:
    """Start a process that would outlive us, and say its number."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    Path(os.environ["FAKE_ENGINE_PID"]).write_text(f"{os.getpid()} {pid}")
    time.sleep(60)
