"""What ``conformance vary`` writes, one JSON object per line: frozen records of plain numbers.

``vary.jsonl`` begins with the header of every file of results and a line of kind ``space``; a
``configuration`` follows as each is judged, a ``failure`` as each is explained, and the
``result`` at the end. Without it the run was cut short; what the file holds is still good.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from conformance.checks.names import VARIED
from conformance.errors import RecordsError
from conformance.records import plain

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "vary.jsonl"

#: ``refused``: transformers, or the port, says that it does not take this. ``error``: the harness.
Outcome = Literal["passed", "failed", "refused", "error"]
#: Why a configuration was judged: it is the twin's own, has one value that is not, is a row of the
#: pairwise array, was found by the search, or on the way from a failure to the smallest.
Role = Literal["default", "single", "pairs", "search", "shrink"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One check that does not hold, at the first place where it does not.

    Attributes:
        check: one of ``VARIED``.
        site: the first place; None where there is none (it does not run).
        kind: of the site, whatever its layer.
        measured, allowed: relative to the reference.
        note: what it raised, or lacks.
    """

    check: str
    site: str | None = None
    kind: str = ""
    prompt: str | None = None
    measured: float | None = None
    allowed: float | None = None
    note: str = ""

    @property
    def signature(self) -> tuple[str, str]:
        """What two failures share that are the same for all one can see."""
        return self.check, self.kind


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one configuration.

    Attributes:
        by: who refused it: ``transformers`` or ``port``.
        reason: why, or what the harness failed with.
        differences: the checks that do not hold.
        effect: how far the reference's logits are from the twin's own, relative; None where the
            parameters are others.
        logits_only: our description of the architecture does not fit: logits alone were compared.
    """

    outcome: Outcome
    by: str = ""
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    effect: float | None = None
    logits_only: bool = False
    duration_s: float = 0.0

    def without(self, known: frozenset[tuple[str, str]]) -> Judged:
        """Less what fails in the twin as it is."""
        left = tuple(d for d in self.differences if d.signature not in known)
        if self.outcome != "failed" or len(left) == len(self.differences):
            return self
        return dataclasses.replace(self, differences=left, outcome="failed" if left else "passed")

    @property
    def first(self) -> Difference:
        """The first of what does not hold, in the order of the checks."""
        return min(self.differences, key=lambda d: VARIED.index(d.check))

    @property
    def signature(self) -> tuple[str, str]:
        """Of a configuration that did not pass."""
        if self.outcome == "failed":
            return self.first.signature
        return (f"{self.outcome} by {self.by}", "")

    def shows(self, signature: tuple[str, str]) -> bool:
        """Whether it did not pass in that way, whatever else it shows."""
        if self.outcome == "failed":
            return any(d.signature == signature for d in self.differences)
        return self.outcome != "passed" and self.signature == signature


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration and what came of it."""

    number: int
    role: Role
    choice: Mapping[str, str]
    config: Mapping[str, Any]
    judged: Judged
    kind: Literal["configuration"] = "configuration"


@dataclass(frozen=True, slots=True)
class Failure:
    """One distinct failure.

    Attributes:
        choice: the smallest configuration that shows it: nothing in it can be left out.
        config: the arguments of the config class that it changes.
        also: other values of the same fields that fail in the same way.
        minimal: whether shrinking came to its end.
        cause: the hypothesis that reproduces the port, as ``explain`` names it.
        where: what ``explain`` says of the place.
        script: the standalone reproduction, relative to the file.
        verified: whether it was run, and showed the difference.
        known: the ledger's link, where it is known.
    """

    number: int
    choice: Mapping[str, str]
    config: Mapping[str, Any]
    difference: Difference
    also: tuple[Mapping[str, str], ...] = ()
    minimal: bool = True
    cause: str = ""
    where: str = ""
    script: str | None = None
    verified: bool = False
    known: str | None = None
    note: str = ""
    kind: Literal["failure"] = "failure"


@dataclass(frozen=True, slots=True)
class Result:
    """The last line.

    Attributes:
        outcomes: how many configurations of each outcome, those of shrinking among them.
        pairs, covered, excluded, open: of pairs of values: all; held together by a configuration
            that was judged; not together because of what is refused or fails; not reached.
        effectless: factor -> labels of values that alone change no logits of the reference.
        ended: why exploring ended.
        contradicted: ledger entries that expect a failure where there was none.
    """

    exit_code: int
    outcomes: Mapping[str, int]
    pairs: int
    covered: int
    excluded: int
    open: int
    effectless: Mapping[str, tuple[str, ...]]
    ended: str
    contradicted: tuple[str, ...] = ()
    finished: str = ""
    duration_s: float = 0.0
    kind: Literal["result"] = "result"


Line = Configuration | Failure | Result


def to_json(line: Line | Mapping[str, Any]) -> str:
    """One line. NaN and infinities become the strings ``nan``, ``inf``, ``-inf``."""
    data = line if isinstance(line, Mapping) else dataclasses.asdict(line)
    return json.dumps(plain(data), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Run:
    """A file read back. ``result`` is None where the run was cut short."""

    header: Mapping[str, Any]
    space: Mapping[str, Any]
    configurations: tuple[Configuration, ...] = ()
    failures: tuple[Failure, ...] = ()
    result: Result | None = None
    path: Path | None = field(default=None, compare=False)


def judged_from(data: Mapping[str, Any]) -> Judged:
    """The inverse of ``asdict``, after JSON."""
    found = tuple(_difference(d) for d in data["differences"])
    return Judged(**{**data, "differences": found})


def _difference(data: Mapping[str, Any]) -> Difference:
    numbers = {k: _number(data[k]) for k in ("measured", "allowed")}
    return Difference(**{**data, **numbers})


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def read(path: Path) -> Run:
    """A ``vary.jsonl``; a last line that was cut off is left out.

    Raises:
        RecordsError: it is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordsError(
            f"{path}: {error.strerror}", "give the --out of an earlier `conformance vary`"
        ) from error
    lines: list[dict[str, Any]] = []
    rows = text.split("\n")
    for number, row in enumerate(rows[:-1], 1):
        try:
            lines.append(json.loads(row))
        except ValueError as error:
            raise RecordsError(f"{path}:{number}: {error}", "the file is damaged") from error
    if len(lines) < 2 or lines[0].get("kind") != "header" or lines[1].get("kind") != "space":
        raise RecordsError(f"{path} is no vary.jsonl", "was it written by `conformance vary`?")
    configurations, failures, result = [], [], None
    try:
        for data in lines[2:]:
            if data["kind"] == "configuration":
                judged = judged_from(data.pop("judged"))
                configurations.append(Configuration(**data, judged=judged))
            elif data["kind"] == "failure":
                difference = _difference(data.pop("difference"))
                data["also"] = tuple(data["also"])
                failures.append(Failure(**data, difference=difference))
            elif data["kind"] == "result":
                data["effectless"] = {k: tuple(v) for k, v in data["effectless"].items()}
                data["contradicted"] = tuple(data["contradicted"])
                result = Result(**data)
    except (KeyError, TypeError) as error:
        raise RecordsError(
            f"{path}: a record of another version: {error}", "run `conformance vary` again"
        ) from error
    return Run(lines[0], lines[1], tuple(configurations), tuple(failures), result, path)
