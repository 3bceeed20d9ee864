"""The ledger: known defects, each listed once with everywhere it shows, given to their models."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from conformance.checks.names import CHECKS, VARIED
from conformance.spec.lines import places
from conformance.spec.problems import Report, raise_if_any, suggest, unknown_keys, validate
from conformance.spec.tables import (
    BUILTIN_SUBJECTS,
    EVERY_CHECK,
    SCHEMA_VERSION,
    Defect,
    ExpectedFailure,
    Ledger,
    ModelSpec,
    Showing,
    Spec,
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_THREAD = re.compile(r"[\w.-]+/[\w.-]+#\d+")


@dataclass(frozen=True)
class Known:
    """What a ledger can name; ``ids`` has those of malformed models, too."""

    models: Sequence[ModelSpec]
    ids: Sequence[str]
    architectures: Sequence[str]
    subjects: Sequence[str]


class LedgerReport(Report):
    """Problems of a ledger, each with the line of the table or inline table it is in."""

    def __init__(self, text: str, tables: object) -> None:
        super().__init__("", {})
        self.lines = _lines(text, tables)

    def line_of(self, place: str) -> int | None:
        found = re.match(r"defect\[(\d+)\](?:\.shows\[(\d+)\])?", place)
        if not found or not self.lines:
            return None
        header, rows = self.lines[int(found[1])]
        number = int(found[2]) if found[2] else None
        return rows[number] if number is not None and number < len(rows) else header


def _lines(text: str, tables: object) -> list[tuple[int, list[int]]]:
    """The line of each ``[[defect]]`` and of its rows; none where the file is written otherwise."""
    found = places(text, "defect")
    if not isinstance(tables, list) or len(tables) != len(found):
        return []
    counted = [len(_shows(table)) for table in tables]
    return [
        (place.line, place.rows if len(place.rows) == count else [place.line] * count)
        for place, count in zip(found, counted, strict=True)
    ]


def _shows(table: object) -> Sequence[object]:
    shows = table.get("shows") if isinstance(table, Mapping) else None
    return shows if isinstance(shows, list) else ()


def read_ledger(
    data: bytes, raw: Mapping[str, Any], path: Path, known: Known
) -> tuple[Ledger, tuple[ModelSpec, ...], Report]:
    """A ledger, the models with what it makes them expect, and what is wrong with it.

    Args:
        data: the file.
        raw: the same, parsed.
        path: where it lies; links that are paths are taken from its folder.
        known: what it may name.
    """
    tables = raw.get("defect", [])
    report = LedgerReport(data.decode("utf-8"), tables)
    unknown_keys(raw, ("schema", "defect", "variant"), "", report)
    if raw.get("schema") != SCHEMA_VERSION or type(raw["schema"]) is not int:
        report.add("schema", "missing or unknown", f"write schema = {SCHEMA_VERSION} at the top")
    if not isinstance(tables, list):
        report.add("defect", "is a single table", "write [[defect]], with two brackets")
        tables = []
    checked = [validate(Defect, t, f"defect[{i}]", report) for i, t in enumerate(tables)]
    for position, defect in enumerate(checked):
        if defect is not None:
            _references(defect, f"defect[{position}]", path.parent, known, report)
    right = [(i, defect) for i, defect in enumerate(checked) if defect is not None]
    variants = _variants(raw.get("variant", []), path.parent, known, report)
    ledger = Ledger(
        path=path.resolve(),
        sha256=hashlib.sha256(data).hexdigest(),
        defects=tuple(defect for _, defect in right),
        variants=variants,
        lines=tuple(
            tuple(report.line_of(f"defect[{i}].shows[{j}]") for j in range(len(defect.shows)))
            for i, defect in right
        ),
    )
    return ledger, _expecting(known.models, ledger, report), report


def _variants(tables: object, folder: Path, known: Known, report: Report) -> tuple[Variant, ...]:
    """The defects of some configurations of an architecture."""
    if not isinstance(tables, list):
        report.add("variant", "is a single table", "write [[variant]], with two brackets")
        return ()
    checked = [validate(Variant, t, f"variant[{i}]", report) for i, t in enumerate(tables)]
    for position, variant in enumerate(checked):
        if variant is None:
            continue
        where = f"variant[{position}]"
        if problem := _broken(variant.link, folder):
            report.add(f"{where}.link", *problem)
        if variant.subject not in known.subjects:
            said = f"unknown subject {variant.subject!r}"
            report.add(f"{where}.subject", said, suggest(variant.subject, known.subjects))
        for check in variant.checks:
            if check not in VARIED:
                said = f"unknown check {check!r}"
                report.add(f"{where}.checks", said, suggest(check, VARIED))
        for name in variant.architectures:
            if name not in known.architectures:
                said = f"no model is a {name}"
                near = suggest(name, set(known.architectures))
                report.add(f"{where}.architectures", said, near)
    return tuple(variant for variant in checked if variant is not None)


def relisted(spec: Spec, text: str) -> Spec:
    """The same models with another text of the ledger.

    Raises:
        SpecError: the text is not a valid ledger.
    """
    assert spec.ledger is not None
    known = Known(
        models=[model.model_copy(update={"expected_failures": ()}) for model in spec.models],
        ids=[model.id for model in spec.models],
        architectures=[model.architecture for model in spec.models],
        subjects=(*BUILTIN_SUBJECTS, *spec.subjects),
    )
    path = spec.ledger.path
    ledger, models, report = read_ledger(text.encode(), tomllib.loads(text), path, known)
    raise_if_any({path: report})
    return spec.model_copy(update={"models": models, "ledger": ledger})


def _references(defect: Defect, where: str, folder: Path, known: Known, report: Report) -> None:
    """Everything that names something else: the link, subjects, checks, models."""
    if problem := _broken(defect.link, folder):
        report.add(f"{where}.link", *problem)
    for number, showing in enumerate(defect.shows):
        place = f"{where}.shows[{number}]"
        if showing.subject not in known.subjects:
            said = f"unknown subject {showing.subject!r}"
            report.add(f"{place}.subject", said, suggest(showing.subject, known.subjects))
            continue
        if showing.check not in (*CHECKS, EVERY_CHECK):
            said = f"unknown check {showing.check!r}"
            report.add(f"{place}.check", said, suggest(showing.check, CHECKS))
        if not showing.models and not showing.architectures:
            report.add(place, "names no model", 'write models = ["..."] or architectures = ["..."]')
        _names(showing, place, known, report)


def _names(showing: Showing, place: str, known: Known, report: Report) -> None:
    for name in showing.models or ():
        if not any(fnmatchcase(one, name) for one in known.ids):
            report.add(f"{place}.models", f"no model {name!r}", suggest(name, known.ids))
    for name in showing.architectures or ():
        if name not in known.architectures:
            said = f"no model is a {name}"
            report.add(f"{place}.architectures", said, suggest(name, set(known.architectures)))
    for name, models in named(showing, known.models):
        if models and not any(runs(model, showing.subject) for model in models):
            report.add(
                place,
                f"{name} does not run {showing.subject!r}",
                "add it to the model's subjects, or take the model out",
            )


def named(
    showing: Showing, models: Sequence[ModelSpec]
) -> Iterator[tuple[str, tuple[ModelSpec, ...]]]:
    """Each name that a ``shows`` entry gives, with the models it stands for."""
    for name in showing.models or ():
        yield name, tuple(model for model in models if fnmatchcase(model.id, name))
    for name in showing.architectures or ():
        yield name, tuple(model for model in models if model.architecture == name)


def runs(model: ModelSpec, subject: str) -> bool:
    """Whether a model is judged under a subject."""
    return model.subjects is None or subject in model.subjects


def _broken(link: str, folder: Path) -> tuple[str, str] | None:
    """What is wrong with a link: an address, ``owner/repository#number``, or a file beside."""
    hint = "a file (as seen from this one), an https address, or owner/repository#number"
    if "://" in link:
        parts = urlsplit(link)
        good = parts.scheme in ("http", "https") and parts.hostname
        return None if good else (f"{link!r} is not an address", hint)
    if _THREAD.fullmatch(link):
        return None
    name = link.partition("#")[0]
    if not name or PurePath(name).is_absolute():
        return f"{link!r} is neither a path from here nor an address", hint
    return None if (folder / name).is_file() else (f"there is no file {name!r}", hint)


def _expecting(
    models: Sequence[ModelSpec], ledger: Ledger, report: Report
) -> tuple[ModelSpec, ...]:
    """The models, each with the failures that known defects make it expect."""
    return tuple(
        model.model_copy(update={"expected_failures": _failures(model, ledger, report)})
        for model in models
    )


def _failures(model: ModelSpec, ledger: Ledger, report: Report) -> tuple[ExpectedFailure, ...]:
    failures: dict[str, ExpectedFailure] = {}
    for position, defect in enumerate(ledger.defects):
        for number, showing in enumerate(defect.shows):
            if not any(model in models for _, models in named(showing, [model])):
                continue
            if not runs(model, showing.subject):
                continue
            failure = defect.failure(showing, ledger.at(position, number))
            # Whatever two entries give for their reason, they may not expect the same.
            key = failure.model_dump_json(exclude={"reason", "link", "at"})
            if key in failures:
                report.add(
                    f"defect[{position}].shows[{number}]",
                    f"repeats an expected failure of {model.id}: {showing.check} of "
                    f"{showing.subject}, as {failures[key].at}",
                    "keep one, or give the two different conditions",
                )
            failures.setdefault(key, failure)
    return tuple(failures.values())
