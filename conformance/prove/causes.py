"""Runs ``conformance prove --causes``: is the cause of every formula fault named, and no other?"""

from __future__ import annotations

import functools
import json
import logging
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conformance.errors import ConformanceError, ImplementationError, NotApplicable, RecordsError
from conformance.prove.command import Task, outcomes, tasks
from conformance.prove.cover import Cover
from conformance.records import Footer, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from conformance.spec import Spec

FILE_NAME = "causes.jsonl"
#: Share of the formula faults whose cause must be named; a wrong one must never be.
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Told:
    """One fault in one port, diagnosed: a line of ``causes.jsonl``.

    Attributes:
        fault: its name in the catalogue.
        site: where the port first diverged, given right inputs; None if nowhere.
        causes: hypotheses that reproduce the port, each with its statement.
        formula: whether the fault is a formula, so that its cause must be named.
        named: whether it was.
        wrong: hypotheses named that are not its cause.
        duration_s: the run and the diagnosis.
    """

    model: str
    subject: str
    fault: str
    site: str | None
    causes: tuple[tuple[str, str], ...]
    formula: bool
    named: bool
    wrong: tuple[str, ...]
    duration_s: float
    kind: Literal["cause"] = "cause"

    @property
    def good(self) -> bool:
        """Whether nothing wrong was said, and the cause where there is one."""
        return not self.wrong and (self.named or not self.formula)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one port."""

    model: str
    subject: str
    told: tuple[Told, ...] = ()
    skipped: str = ""
    error: str = ""
    seconds: float = field(default=0.0)

    def line(self) -> str:
        """For the terminal."""
        name = f"{self.model} {self.subject}"
        if self.skipped or self.error:
            return f"{name}: {self.skipped or self.error}"
        formulas = [t for t in self.told if t.formula]
        bad = [t.fault for t in self.told if not t.good]
        said = f"{sum(t.named for t in formulas)} of {len(formulas)} causes named"
        said += f", NOT AS IT MUST: {', '.join(bad)}" if bad else ""
        return f"{name}: {said} ({self.seconds:.0f} s)"


def work(task: Task) -> Heard:
    """Diagnose every fault of one port. Runs in a worker process."""
    from conformance.diagnose.score import score
    from conformance.prove.ports import catalogue

    logging.disable(logging.WARNING)
    heard = functools.partial(Heard, task.model.id, task.subject)
    since = time.perf_counter()
    told = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            faults = catalogue(task.faults)
            cache = Path(task.cache)
            for s in score(task.model, task.subject, faults, cache=cache, loader=task.loader):
                told.append(Told(model=task.model.id, subject=task.subject, **asdict(s)))
    except (NotApplicable, ImplementationError) as error:
        return heard(skipped=f"not judged: {error.message}")
    except Exception as error:
        return heard(error=f"{type(error).__name__}: {error}")
    return heard(tuple(told), seconds=time.perf_counter() - since)


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
    cover: int | None = None,
    command: Sequence[str] = (),
    dtype: str | None = None,
) -> int:
    """Diagnose, write ``causes.jsonl`` as results arrive, print what they add up to.

    Args:
        cover: in how many ports each fault is put; None for every port that it applies to.
        dtype: the one that every model is run in; None where each is in its own. For the file.

    Returns:
        0 if at least :data:`SHARE` of the causes were named and no wrong one was; 1 if not; 3 if
        a port could not be diagnosed.

    Raises:
        ConformanceError: the options name nothing, or the file cannot be written.
    """
    from conformance.diagnose.score import diagnosable
    from conformance.prove.ports import catalogue
    from conformance.recorder import header, now

    entries = [f for f in catalogue(faults) if diagnosable(f)]
    todo = tasks(spec, models, subjects, faults, cache)
    covering = Cover(todo[::-1], entries, cover) if cover else None
    began, told, errors = time.monotonic(), list[Told](), 0
    path = out / FILE_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}", "give another --out") from error

    def started(task: Task) -> None:
        console.print(f"{task.model.id} {task.subject}: begun", markup=False, soft_wrap=True)

    with stream:
        stream.write(to_json(header(spec, command, dtype)) + "\n")
        for number, heard in enumerate(outcomes(covering or todo, workers, started, work), 1):
            for one in heard.told:
                stream.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
            stream.flush()
            told.extend(heard.told)
            if covering:
                covering.add(
                    heard.model, heard.subject, [t.fault for t in heard.told], ran=bool(heard.told)
                )
            errors += bool(heard.error)
            console.print(f"[{number}/{len(todo)}] {heard.line()}", markup=False, soft_wrap=True)
        status = 3 if errors else int(not enough(told))
        stream.write(
            to_json(
                Footer(
                    finished=now(),
                    exit_code=status,
                    duration_s=round(time.monotonic() - began, 3),
                    outcomes={"cause": len(told)},
                    selected=len(told),
                )
            )
            + "\n"
        )
    for line in [*summary(told), *(covering.said() if covering else [])]:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"records: {path}", markup=False, soft_wrap=True)
    return status


def enough(told: Sequence[Told]) -> bool:
    """Whether enough causes were named, and no wrong one.

    Raises:
        ConformanceError: there is nothing to judge by.
    """
    if not told:
        raise ConformanceError(
            "no fault was diagnosed: none applies to these ports, or no forward pass shows it",
            "widen --model or --fault",
        )
    formulas = [t for t in told if t.formula]
    named = sum(t.named for t in formulas)
    return not any(t.wrong for t in told) and named >= SHARE * len(formulas)


def summary(told: Sequence[Told]) -> list[str]:
    """Every fault whose cause was not named or named wrongly, and what all add up to."""
    lines = [""]
    for t in told:
        if not t.good:
            what = f"WRONG: {', '.join(t.wrong)}" if t.wrong else "no cause named"
            lines.append(f"{what}: {t.fault} on {t.model} {t.subject}, at {t.site}")
    formulas = [t for t in told if t.formula]
    others: dict[str, Any] = {
        "named": sum(t.named for t in formulas),
        "wrong": sum(bool(t.wrong) for t in told),
        "slowest": max((t.duration_s for t in told), default=0.0),
    }
    return [
        *lines,
        f"causes of formula faults: {others['named']} of {len(formulas)} named",
        f"wrong causes: in {others['wrong']} of {len(told)} faults",
        f"slowest diagnosis: {others['slowest']:.1f} s",
    ]
