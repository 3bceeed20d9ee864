"""What a run writes: a header, names, one record per verdict, a footer; a JSON object per line.

A file without a footer was cut short (:class:`TruncatedRecords`); what it holds is still good.
Schema 2 added the lines of kind ``name`` after the header, and ``commit`` to verdicts; schema 3
what a page shows of a port (``docs/report.md``) to the metrics. Files of either are read as well.
Records are frozen and hold plain numbers and text only: no tensor, no exception.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar, get_args

from conformance.errors import RecordsError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION = 3
#: Bins to a factor of ten in the histograms of ``metrics["differences"]``.
PER_DECADE = 2
#: Schemas that :func:`read` understands.
READABLE: frozenset[int] = frozenset({1, 2, 3})

Outcome = Literal[
    "passed",
    "failed",
    "error",
    "crashed",
    "timeout",
    "oom",
    "skipped",
    "not_applicable",
    "xfailed",
    "xpassed",
]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
#: Outcomes that mean "this port does not conform" (exit code 1).
NONCONFORMING: frozenset[str] = frozenset({"failed", "crashed", "timeout", "oom", "xpassed"})
#: Outcomes that mean "the harness itself failed" (exit code 3).
HARNESS_FAILED: frozenset[str] = frozenset({"error"})
#: Outcomes that say something of the port: the check was executed and came to an end of its own.
EXECUTED: frozenset[str] = NONCONFORMING | {"passed", "xfailed"}

Judgement = Literal["same_function", "same_precision", "exact", "structure"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measurement against one bound.

    Attributes:
        judgement: which of the verdicts it belongs to (see ``docs/verdicts.md``).
        site: where, e.g. ``blocks.3.attn.pattern`` or ``blocks.3.attn.W_Q``; None for facts
            of the whole model.
        prompt: which prompt, or None where there is none (weights).
        measured: the number the bound is about; dimensionless, relative to the reference.
        allowed: the bound, or None when the number is only reported.
        ok: whether it holds. NaN never holds.
        index: where in the tensor the largest absolute difference is.
        reference: the reference's value there.
        subject: the subject's value there.
        bound: where the bound comes from, in words.
        note: anything a reader needs besides.
    """

    judgement: Judgement
    site: str | None
    prompt: str | None
    measured: float
    allowed: float | None
    ok: bool
    index: tuple[int, ...] | None = None
    reference: float | None = None
    subject: float | None = None
    bound: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class JudgementSummary:
    """The numbers of one judgement of one check.

    Attributes:
        compared: how many comparisons were made.
        failed: how many did not hold.
        measured: the measurement that came closest to (or went furthest past) its bound.
        allowed: that measurement's bound.
        margin: measured / allowed, the largest over all comparisons; above 1 is a failure.
        site: where that was.
    """

    compared: int
    failed: int
    measured: float | None
    allowed: float | None
    margin: float | None
    site: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check on one subject of one model.

    ``commit`` is that of the repository on the hub that the weights came from, if they did.
    """

    model: str
    subject: str
    check: str
    outcome: Outcome
    architecture: str = ""
    evidence: Literal["real", "twin"] = "real"
    verdict: Mapping[str, JudgementSummary] = field(default_factory=dict)
    first_divergence: str | None = None
    reason: str | None = None
    duration_s: float = 0.0
    peak_bytes: int | None = None
    worst: tuple[Comparison, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    kind: Literal["verdict"] = "verdict"

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r} is none of {', '.join(OUTCOMES)}")


@dataclass(frozen=True, slots=True)
class Header:
    """First line of a records file. ``ledger_sha256`` is None where models.toml names no ledger."""

    started: str
    versions: Mapping[str, str]
    platform: str
    seeds: Mapping[str, int]
    models_toml: str
    models_toml_sha256: str
    command: tuple[str, ...] = ()
    ledger_sha256: str | None = None
    schema_version: int = SCHEMA_VERSION
    kind: Literal["header"] = "header"


@dataclass(frozen=True, slots=True)
class Stale:
    """What the ledger of expected failures lists and the run no longer showed.

    Attributes:
        file: the ledger's name.
        line: of the entry, where it is known.
        subject: of the entry.
        check: of the entry; ``*`` for all.
        link: where the defect is described.
        what: ``entry``: no port it covers fails as it says; ``models``: those of ``names`` do not;
            ``kinds``: nothing fails at those kinds of site.
        names: what is stale.
    """

    file: str
    line: int | None
    subject: str
    check: str
    link: str
    what: Literal["entry", "models", "kinds"]
    names: tuple[str, ...]

    def describe(self) -> str:
        """``known.toml:43: bridge / loss: gpt2 no longer fails as listed (docs/x.md)``."""
        names = ", ".join(self.names)
        said = {
            "entry": f"no port fails as listed: {names}",
            "models": f"no longer as listed: {names}",
            "kinds": f"nothing fails any more at {names}",
        }[self.what]
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}: {self.subject} / {self.check}: {said} ({self.link})"


@dataclass(frozen=True, slots=True)
class Name:
    """A model that people name, and the model of the run that its verdict rests on.

    Attributes:
        hub: its repository on the hub.
        architecture: the HuggingFace class.
        evidence: ``twin`` where the verdict is that of a twin with its configuration class,
            ``real`` where its own weights were judged, None where nothing was.
        model: the id under which the verdicts are; None where it is not judged.
        reason: why it is not judged.
    """

    hub: str
    architecture: str
    evidence: Literal["real", "twin"] | None
    model: str | None
    reason: str | None = None
    kind: Literal["name"] = "name"


@dataclass(frozen=True, slots=True)
class Footer:
    """Last line of a records file; its absence means the run was cut short.

    ``selected`` is how many verdicts were asked for: more than were reached when the run was
    interrupted, or stopped at a failure, but could still write this line.
    """

    finished: str
    exit_code: int
    duration_s: float
    outcomes: Mapping[str, int]
    selected: int | None = None
    stale: tuple[Stale, ...] = ()
    kind: Literal["footer"] = "footer"


Record = Header | Name | Verdict | Footer


def to_json(record: Record) -> str:
    """One line of JSON. NaN and infinities become the strings ``nan``, ``inf``, ``-inf``."""
    return json.dumps(_plain(dataclasses.asdict(record)), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def verdict_from_dict(data: Mapping[str, Any]) -> Verdict:
    """The inverse of :func:`to_json` for a verdict.

    Raises:
        RecordsError: a field is missing or has another type.
    """
    try:
        fields = dict(data)
        fields["worst"] = tuple(
            Comparison(
                **{
                    **c,
                    "measured": float(c["measured"]),
                    "allowed": _number(c["allowed"]),
                    "reference": _number(c["reference"]),
                    "subject": _number(c["subject"]),
                    "index": None if c["index"] is None else tuple(c["index"]),
                }
            )
            for c in fields.get("worst", ())
        )
        fields["verdict"] = {
            name: JudgementSummary(
                **{
                    **j,
                    "measured": _number(j["measured"]),
                    "allowed": _number(j["allowed"]),
                    "margin": _number(j["margin"]),
                }
            )
            for name, j in fields.get("verdict", {}).items()
        }
        return Verdict(**fields)
    except (TypeError, KeyError, ValueError) as error:
        raise RecordsError(
            f"not a verdict record: {error}", "was the file written by this version of the harness?"
        ) from error


def write(record: Record, stream: TextIO) -> None:
    """Append one record and flush, so that a later crash loses nothing already decided."""
    stream.write(to_json(record) + "\n")
    stream.flush()


@dataclass(frozen=True, slots=True)
class Records:
    """A records file read back. ``footer`` is None when the run was cut short."""

    header: Header
    verdicts: tuple[Verdict, ...]
    footer: Footer | None
    names: tuple[Name, ...] = ()

    @property
    def truncated(self) -> bool:
        return self.footer is None

    @property
    def stale(self) -> tuple[Stale, ...]:
        """What of the ledger the run found stale."""
        return self.footer.stale if self.footer else ()

    @property
    def missing(self) -> int | None:
        """How many verdicts were asked for and not reached; None where that is not known."""
        if self.footer is None or self.footer.selected is None:
            return None
        return self.footer.selected - len(self.verdicts)


def read(path: Path) -> Records:
    """Read a records file, also a truncated one.

    Raises:
        RecordsError: no header, another schema version, or a malformed line that is not the last.
    """
    header: Header | None = None
    footer: Footer | None = None
    names: list[Name] = []
    verdicts: list[Verdict] = []
    for number, data in _lines(path):
        kind = data.get("kind")
        if number == 1:
            if kind != "header" or data.get("schema_version") not in READABLE:
                readable = " or ".join(map(str, sorted(READABLE)))
                raise RecordsError(
                    f"{path}: line 1 is not a header of schema version {readable}",
                    "give a records.jsonl written by this version of the harness",
                )
            header = _build(Header, {**data, "command": tuple(data.get("command", ()))}, path)
        elif kind == "name":
            names.append(_build(Name, data, path))
        elif kind == "verdict":
            verdicts.append(verdict_from_dict(data))
        elif kind == "footer":
            footer = _build(Footer, {**data, "stale": _stale(data, path)}, path)
        else:
            raise RecordsError(f"{path}:{number}: unknown kind {kind!r}", "the file is damaged")
    if header is None:
        raise RecordsError(f"{path}: empty", "the run wrote nothing; look at its terminal output")
    return Records(header, tuple(verdicts), footer, tuple(names))


T = TypeVar("T", Header, Name, Footer, Stale)


def _stale(data: Mapping[str, Any], path: Path) -> tuple[Stale, ...]:
    listed = data.get("stale", ())
    return tuple(_build(Stale, {**one, "names": tuple(one["names"])}, path) for one in listed)


def _build(kind: type[T], data: Mapping[str, Any], path: Path) -> T:
    try:
        return kind(**data)
    except TypeError as error:
        raise RecordsError(f"{path}: {error}", "the file is damaged") from error


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        # Not splitlines(): JSON text may hold other line ends, such as U+2028. A write cut short
        # may end inside a character; its line is dropped below.
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}", "give the DIR of a finished run") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise RecordsError(f"{path}:{number}: not an object", "the file is damaged")
            yield number, data
        except json.JSONDecodeError as error:
            if number == len(lines) and number > 1:
                return  # the write was cut short: the missing footer says so
            raise RecordsError(f"{path}:{number}: {error}", "the file is damaged") from error
