"""Runs ``conformance vary``: explores, explains what fails, writes each thing as it is known."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from conformance.bounds import SAME_FUNCTION_FLOOR
from conformance.errors import ConformanceError, RecordsError
from conformance.vary.explore import Budget, Explorer, Found
from conformance.vary.known import Known
from conformance.vary.records import (
    FILE_NAME,
    Configuration,
    Difference,
    Failure,
    Judged,
    Result,
    Role,
    Run,
    read,
    to_json,
)
from conformance.vary.space import Choice, Space, key, space_of, twin_of

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.spec import Spec

Say = Callable[[str], None]
#: Explains a failure; the second says that only its logits were compared.
Explain = Callable[[Failure, bool], Failure]
JudgeConfig = Callable[[Mapping[str, Any]], Judged]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    Attributes:
        fields: globs of the fields that vary; none for all.
        limit: configurations explored at most; None for no limit, and no search after the pairs.
        seconds: for exploring.
        resume: go on where the file in ``out`` ends.
    """

    subject: str = "bridge"
    fields: tuple[str, ...] = ()
    limit: int | None = 80
    seconds: float | None = None
    seed: int = 0
    resume: bool = False


def run(spec: Spec, name: str, options: Options, out: Path, say: Say) -> int:
    """Explore one architecture; ``out`` gets ``vary.jsonl`` and the scripts.

    Returns:
        0 if every failure is known, 1 if not, 3 if the harness failed on a configuration.

    Raises:
        ConformanceError: the options name nothing, or the file cannot be written.
    """
    from conformance.loaders import make_importable
    from conformance.vary.bench import Bench
    from conformance.vary.explaining import explained

    twin = twin_of(name)
    loader = _loader(spec, options.subject)
    make_importable(spec)
    space = space_of(twin)
    if options.fields:
        space = space.only(options.fields)
    shown = _Line(say)
    with Bench(space, options.subject, loader=loader, seed=options.seed, say=shown.doing) as bench:

        def explain(failure: Failure, logits_only: bool) -> Failure:
            return explained(failure, bench, out, logits_only=logits_only)

        return explore(spec, space, options, out, say, bench.judge, explain)


def _loader(spec: Spec, subject: str) -> str | None:
    from conformance.selection import known_subjects

    declared = spec.subjects.get(subject)
    if declared is not None:
        return declared.loader
    if subject not in known_subjects(spec):
        raise ConformanceError(
            f"no subject named {subject!r}",
            f"known: {', '.join(known_subjects(spec))}; or declare it under [subjects.{subject}]",
        )
    return None


@dataclass
class _Line:
    """What a child is doing is not said line by line: it is for whoever asks."""

    say: Say
    last: str = ""

    def doing(self, text: str) -> None:
        self.last = text


def explore(
    spec: Spec,
    space: Space,
    options: Options,
    out: Path,
    say: Say,
    judge: JudgeConfig,
    explain: Explain,
) -> int:
    """The whole run, given what judges and what explains."""
    since = time.monotonic()
    before = _resumed(out, spec, space, options) if options.resume else None
    memory = {key(c.choice): c.judged for c in before.configurations} if before else {}
    stream = _open(out, spec, space, options, before)
    with stream:
        writer = _Writer(space, options, stream, say, set(memory))
        labels = sum(len(f.values) for f in space.factors)
        say(
            f"{space.architecture} ({space.twin}), {options.subject}: {len(space.factors)} fields "
            f"vary, {labels} values; seed {options.seed}"
        )

        def ask(choice: Choice) -> Judged:
            found = memory.get(key(choice))
            return judge(space.config(choice)) if found is None else found

        budget = Budget(options.limit, options.seconds)
        explorer = Explorer(space, ask, budget, options.seed, writer.told)
        explorer.run()
        known = Known(spec, space.architecture, options.subject, space.twin)
        failures = [
            _explained(one, space, known, explain, explorer, writer)
            for one in grouped(explorer.found)
        ]
        result = _result(explorer, failures, known, time.monotonic() - since)
        writer.write(result)
    for line in summary(space, explorer.found, failures, result):
        say(line)
    say(f"records: {out / FILE_NAME}")
    return result.exit_code


# --- failures -------------------------------------------------------------------------------------


def grouped(found: Sequence[Found]) -> list[Failure]:
    """One failure for all values of the same fields that fail in the same way."""
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for one in found:
        if one.difference is not None:
            at = (one.difference.signature, tuple(sorted(one.choice)))
            groups.setdefault(at, []).append(one)
    failures = []
    for number, group in enumerate(groups.values(), 1):
        first = group[0]
        assert first.difference is not None
        failures.append(
            Failure(
                number,
                dict(first.choice),
                {},
                first.difference,
                tuple(dict(one.choice) for one in group[1:]),
                first.minimal,
                note="" if first.minimal else "not shrunk to the end",
            )
        )
    return failures


def _explained(
    failure: Failure,
    space: Space,
    known: Known,
    explain: Explain,
    explorer: Explorer,
    writer: _Writer,
) -> Failure:
    failure = dataclasses.replace(failure, config=space.config(failure.choice))
    # Every one of a group must be known, each by its own configuration.
    links = [
        known.link(space.whole(choice), failure.difference, own=not choice)
        for choice in (failure.choice, *failure.also)
    ]
    if all(links):
        # Its page has the cause, and a script.
        failure = dataclasses.replace(failure, known=links[0])
    else:
        writer.say(f"explaining: {space.words(failure.choice)}")
        failure = explain(failure, explorer.judged[key(failure.choice)].logits_only)
    writer.write(failure)
    return failure


def _result(
    explorer: Explorer, failures: Sequence[Failure], known: Known, seconds: float
) -> Result:
    from conformance.recorder import now

    judged = explorer.judged
    space = explorer.space
    contradicted = known.contradicted(
        (space.words(dict(at)), space.whole(dict(at)), one) for at, one in judged.items()
    )
    outcomes = Counter(_word(one) for one in judged.values())
    status = 0
    if contradicted or any(f.known is None for f in failures):
        status = 1
    if any(one.outcome == "error" for one in judged.values()):
        status = 3
    return Result(
        exit_code=status,
        outcomes=dict(sorted(outcomes.items())),
        pairs=len(explorer.pairs.all),
        covered=explorer.pairs.covered,
        excluded=explorer.excluded(),
        open=explorer.pairs.open,
        effectless=explorer.effectless(SAME_FUNCTION_FLOOR),
        ended=explorer.ended,
        contradicted=contradicted,
        finished=now(),
        duration_s=round(seconds, 3),
    )


def _word(judged: Judged) -> str:
    return f"refused by {judged.by}" if judged.outcome == "refused" else judged.outcome


# --- the file -------------------------------------------------------------------------------------


@dataclass
class _Writer:
    """Appends each line as it is known, and says it."""

    space: Space
    options: Options
    stream: TextIO
    say: Say
    written: set[Any]
    number: int = 0
    began: float = field(default_factory=time.monotonic)

    def told(self, choice: Choice, role: Role, judged: Judged) -> None:
        self.number += 1
        if key(choice) in self.written:
            return
        config = self.space.config(choice)
        self.write(Configuration(self.number, role, dict(choice), config, judged))
        self.say(f"[{self.number}] {self.space.words(choice)}: {said(judged)}")

    def write(self, line: Configuration | Failure | Result) -> None:
        self.stream.write(to_json(line) + "\n")
        self.stream.flush()


def said(judged: Judged) -> str:
    """One configuration's outcome in words."""
    if judged.outcome == "refused":
        return f"refused by {judged.by}: {judged.reason}"
    if judged.outcome == "error":
        return f"THE HARNESS FAILED: {judged.reason.splitlines()[0] if judged.reason else ''}"
    alone = " (logits alone)" if judged.logits_only else ""
    if judged.outcome == "passed":
        return f"passes{alone}"
    return f"FAILS{alone}: {_difference(judged.first)}"


def _difference(d: Difference) -> str:
    at = f" at {d.site}" if d.site else ""
    size = ""
    if d.measured is not None and d.allowed is not None:
        size = f", {d.measured:.1e} where {d.allowed:.1e} is allowed"
    note = f": {d.note}" if d.note else ""
    return f"{d.check}{at}{size}{note}"


def _facts(space: Space, options: Options) -> dict[str, Any]:
    """The second line: what varies, and what does not and why."""
    return {
        "kind": "space",
        "architecture": space.architecture,
        "twin": space.twin,
        "subject": options.subject,
        "seed": options.seed,
        "factors": [
            {"name": f.name, "default": f.default, "values": list(f.values)} for f in space.factors
        ],
        "left_out": dict(space.left_out),
        "not_varied": dict(space.not_varied),
    }


def _open(out: Path, spec: Spec, space: Space, options: Options, before: Run | None) -> TextIO:
    from conformance.recorder import header, set_aside
    from conformance.records import to_json as header_json

    path = out / FILE_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        if before is not None:
            # What was explained is explained again: a script may be missing, or the ledger new.
            kept = [to_json(before.header), to_json(before.space)]
            kept += [to_json(c) for c in before.configurations]
        else:
            set_aside(path)
            kept = [header_json(header(spec, sys.argv)), to_json(_facts(space, options))]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(path)
        return path.open("a", encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}", "give another --out") from error


def _resumed(out: Path, spec: Spec, space: Space, options: Options) -> Run | None:
    """The run to go on with.

    Raises:
        RecordsError: it was made with other versions, another seed or another space.
    """
    from conformance.recorder import versions

    path = out / FILE_NAME
    if not path.exists():
        return None
    before = read(path)
    if before.header.get("versions") != versions():
        raise RecordsError(f"{path} was written with other versions", "run without --resume")
    if before.space != _facts(space, options):
        raise RecordsError(
            f"{path} explores something else, or from another seed", "run without --resume"
        )
    return before


# --- words ----------------------------------------------------------------------------------------


def summary(
    space: Space, found: Sequence[Found], failures: Sequence[Failure], result: Result
) -> list[str]:
    """What a reader is told at the end."""
    lines = ["", f"ended: {result.ended}"]
    lines.append(", ".join(f"{count} {word}" for word, count in result.outcomes.items()))
    lines.append(
        f"pairs of values: {result.covered} of {result.pairs} judged together, "
        f"{result.excluded} cannot be, {result.open} not reached"
    )
    if space.not_varied:
        names = ", ".join(f"{name} ({what})" for name, what in space.not_varied.items())
        lines.append(f"not varied, no rule knows them: {names}")
    for name, labels in result.effectless.items():
        lines.append(f"without effect by itself: {name} = {' or '.join(labels)}")
    for one in found:
        if one.difference is None:
            lines.append(f"{space.words(one.choice)}: {said(one.judged)}")
    for failure in failures:
        lines += ["", *_failure(space, failure)]
    for entry in result.contradicted:
        lines.append(f"XPASS: the ledger expects a failure where there is none: {entry}")
    unknown = sum(f.known is None for f in failures)
    lines += ["", f"{len(failures)} distinct failures, {unknown} not known"]
    return lines


def _failure(space: Space, failure: Failure) -> list[str]:
    lines = [f"FAILS: {space.words(failure.choice)}", f"  {_difference(failure.difference)}"]
    lines += [f"  and so does {space.words(choice)}" for choice in failure.also]
    for label, value in (
        ("where", failure.where),
        ("cause", failure.cause),
        ("known", failure.known),
        ("note", failure.note),
    ):
        if value:
            lines.append(f"  {label}: {value}")
    if failure.script:
        lines.append(f"  script: {failure.script}" + ("" if failure.verified else " (not run)"))
    return lines
