"""Reads ``models.toml`` whole and reports every problem at once.

Positions in messages count from zero (``model[3]`` is the fourth ``[[model]]`` table) and come
with the line on which that table begins.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from conformance.errors import SpecError
from conformance.spec.defects import Known, read_ledger
from conformance.spec.names import read_gaps, read_names
from conformance.spec.problems import (
    Report,
    key_of,
    kind_of,
    quote,
    raise_if_any,
    suggest,
    unknown_keys,
    validate,
)
from conformance.spec.tables import (
    BUILTIN_SUBJECTS,
    ID,
    ID_HINT,
    SCHEMA_VERSION,
    HubSource,
    Ledger,
    ModelSpec,
    PathSource,
    Spec,
    SubjectSpec,
    Table,
    TwinSource,
    WheelSource,
)
from conformance.spec.tiers import read_tiers


def load_spec(path: Path) -> Spec:
    """Read and validate ``models.toml``.

    Args:
        path: the file; a relative ``source.path`` or ``ledger`` in it is taken from its folder.

    Raises:
        SpecError: the file cannot be read, or has problems; the message lists every one.
    """
    data, raw = _read(path)
    report = Report(data.decode("utf-8"), raw)
    subjects = _subjects(raw, report)
    known = (*BUILTIN_SUBJECTS, *subjects)
    known_keys = ("schema", "ledger", "model", "name", "gap", "subjects", "tier")
    unknown_keys({key: raw[key] for key in raw if key != "defect"}, known_keys, "", report)
    if "defect" in raw:
        report.add("defect", "does not belong here", _MOVED)
    _schema_version(raw, report)

    tables = raw.get("model", [])
    if isinstance(tables, Mapping):
        report.add("model", "is a single table", "write [[model]], with two brackets")
        tables = []
    elif not isinstance(tables, list) or not tables:
        report.add(
            "model",
            "no model is listed",
            "add a [[model]] table with id, architecture and [model.source]",
        )
        tables = []
    _duplicate_ids(tables, report)
    models = [_model(table, i, path.parent, known, report) for i, table in enumerate(tables)]
    right = [model for model in models if model is not None]
    reports = {path: report}
    whole, ledger = tuple(right), None
    if "ledger" in raw:
        names = Known(right, _texts(tables, "id"), _texts(tables, "architecture"), known)
        whole, ledger = _ledger(raw["ledger"], path, names, reports)
    listed, gaps = read_names(raw, report), read_gaps(raw, report)
    tiers = read_tiers(raw, report)
    raise_if_any(reports)
    return Spec(
        models=whole,
        subjects=subjects,
        path=path.resolve(),
        sha256=hashlib.sha256(data).hexdigest(),
        ledger=ledger,
        names=listed,
        gaps=gaps,
        tiers=tiers,
    )


def _texts(tables: Sequence[Any], key: str) -> list[str]:
    found = (table.get(key) for table in tables if isinstance(table, Mapping))
    return [text for text in found if isinstance(text, str)]


def _ledger(
    name: object, path: Path, known: Known, reports: dict[Path, Report]
) -> tuple[tuple[ModelSpec, ...], Ledger | None]:
    """The models with what their ledger makes them expect, and the ledger."""
    if not isinstance(name, str) or not name:
        said = "is empty" if name == "" else f"{kind_of(name)}, must be a string"
        reports[path].add("ledger", said, 'write ledger = "expected_failures.toml"')
        return tuple(known.models), None
    file = path.parent / name
    try:
        data, raw = _read(file)
    except SpecError as error:
        hint = f"correct it; an empty ledger is the line schema = {SCHEMA_VERSION}"
        reports[path].add("ledger", error.message, hint)
        return tuple(known.models), None
    ledger, models, reports[file] = read_ledger(data, raw, file, known)
    return models, ledger


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(
            f"{path}: {error.strerror or error}", "give the path of a models.toml with --models"
        ) from error
    try:
        return data, tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8: {error}", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise SpecError(
            f"{path}: not valid TOML: {error}", "correct the syntax at the line and column named"
        ) from error


def _schema_version(raw: Mapping[str, Any], report: Report) -> None:
    found = raw.get("schema")
    if found == SCHEMA_VERSION and type(found) is int:
        return
    said = "missing" if "schema" not in raw else f"{found!r} is not a known version"
    report.add("schema", said, f"write schema = {SCHEMA_VERSION} at the top of the file")


def _subjects(raw: Mapping[str, Any], report: Report) -> dict[str, SubjectSpec]:
    """Declared subjects; one that is malformed is reported and still counts as declared."""
    tables = raw.get("subjects", {})
    if not isinstance(tables, Mapping):
        report.add(
            "subjects", "must be a table", 'write [subjects.NAME] and loader = "module:function"'
        )
        return {}
    subjects: dict[str, SubjectSpec] = {}
    for name, table in tables.items():
        where = f"subjects.{key_of(name)}"
        if name in BUILTIN_SUBJECTS:
            report.add(where, "is built in and cannot be declared", "choose another name")
        elif not ID.fullmatch(name):
            report.add(where, f"{name!r} is not a valid name", ID_HINT)
        # The placeholder keeps a malformed subject known, so that its uses are not reported too.
        subjects[name] = validate(SubjectSpec, table, where, report) or _PLACEHOLDER_SUBJECT
    return subjects


def _duplicate_ids(tables: Sequence[Any], report: Report) -> None:
    first: dict[str, int] = {}
    for index, table in enumerate(tables):
        name = table.get("id") if isinstance(table, Mapping) else None
        if not isinstance(name, str):
            continue
        if name in first:
            line = report.line(first[name])
            also = f"model[{first[name]}]" + (f" (line {line})" if line else "")
            report.add(
                f"{report.where(index)}.id",
                f"already the id of {also}",
                "ids are unique and never change: choose another for the newer entry",
            )
        else:
            first[name] = index


def _model(
    table: object, index: int, folder: Path, known_subjects: Sequence[str], report: Report
) -> ModelSpec | None:
    where = report.where(index)
    if not isinstance(table, Mapping):
        report.add(where, f"{kind_of(table)}, must be a table", "write [[model]]")
        return None
    if "expected_failures" in table:
        report.add(f"{where}.expected_failures", "does not belong here", _MOVED)
        table = {key: table[key] for key in table if key != "expected_failures"}
    source = _source(table, where, folder, report)
    _names(table, where, known_subjects, report)
    # A valid stand-in for a wrong source lets the rest of the table be validated all the same.
    return validate(ModelSpec, {**table, "source": source or _PLACEHOLDER}, where, report)


_MOVED = (
    "known failures are listed in a file of their own, as [[defect]] tables: name it with "
    'ledger = "expected_failures.toml" at the top'
)
_SOURCES: Mapping[str, type[Table]] = {
    "hub": HubSource,
    "path": PathSource,
    "wheel": WheelSource,
    "twin": TwinSource,
}
_SOURCE_HINT = (
    'under [model.source] write hub = "org/name" with revision, path = "...", or twin = "..."; '
    "or write [model.source.wheel]"
)
_PLACEHOLDER = TwinSource(twin="placeholder")
_PLACEHOLDER_SUBJECT = SubjectSpec(loader="placeholder:placeholder")


def _source(model: Mapping[str, Any], where: str, folder: Path, report: Report) -> Table | None:
    raw = model.get("source")
    where = f"{where}.source"
    if not isinstance(raw, Mapping):
        said = "missing" if "source" not in model else f"{kind_of(raw)}, must be a table"
        report.add(where, said, _SOURCE_HINT)
        return None
    kinds = [kind for kind in _SOURCES if kind in raw]
    if len(kinds) > 1:
        report.add(where, f"several kinds of source: {', '.join(kinds)}", "keep exactly one")
        return None
    if not kinds:
        near = {word for key in raw for word in difflib.get_close_matches(key, _SOURCES, n=1)}
        meant = f"did you mean {' or '.join(map(quote, sorted(near)))}? " if near else ""
        report.add(where, "no kind of source is named", meant + _SOURCE_HINT)
        return None
    (kind,) = kinds
    if kind == "wheel":
        unknown_keys(raw, ("wheel",), f"{where}.", report)
        where, raw = f"{where}.wheel", raw["wheel"]
        _wheel_members(raw, where, report)
    elif kind == "twin":
        _twin_name(raw["twin"], model, where, report)
    source = validate(_SOURCES[kind], raw, where, report)
    if isinstance(source, PathSource):
        return PathSource(path=(folder / source.path.expanduser()).resolve())
    return source


def _wheel_members(raw: object, where: str, report: Report) -> None:
    """That the members of all packages together make a checkpoint; wrong types are not our part."""
    packages = raw.get("packages") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(packages, list) or not packages:
        return
    members: list[str] = []
    for package in packages:
        named = package.get("members", []) if isinstance(package, Mapping) else None
        if not isinstance(named, list):
            return
        members += map(str, named)
    where = f"{where}.packages"
    if not members:
        report.add(where, "no package names a member", "list the files to take out of the wheels")
    elif raw.get("format") == "torch":
        configs = [member for member in members if PurePosixPath(member).name == "config.json"]
        if len(members) != 2 or len(configs) != 1:
            report.add(
                where,
                f'format "torch" with members {", ".join(members)}',
                "name exactly one config.json and one state dict",
            )


def _twin_name(name: object, model: Mapping[str, Any], where: str, report: Report) -> None:
    from conformance.checkpoints.twin_catalogue import TWINS

    where = f"{where}.twin"
    if not isinstance(name, str):
        return
    if name not in TWINS:
        report.add(where, f"unknown twin {name!r}", suggest(name, TWINS))
        return
    architecture = TWINS[name].architecture
    if model.get("architecture", architecture) != architecture:
        report.add(
            where,
            f"{name!r} is a {architecture}, the model's architecture is another",
            f"write architecture = {quote(architecture)}, or name another twin",
        )


def _names(
    table: Mapping[str, Any], where: str, known_subjects: Sequence[str], report: Report
) -> None:
    """Names that refer to something else; read from the raw table, which may be wrong besides."""
    from conformance.prompts import PROMPTS

    prompts = table.get("prompts")
    for position, name in enumerate(prompts if isinstance(prompts, list) else ()):
        if isinstance(name, str) and name not in PROMPTS:
            report.add(
                f"{where}.prompts[{position}]",
                f"unknown prompt set {name!r}",
                suggest(name, PROMPTS),
            )
    listed = table.get("subjects")
    for position, name in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(name, str) and name not in known_subjects:
            report.add(
                f"{where}.subjects[{position}]",
                f"unknown subject {name!r}",
                suggest(name, known_subjects) + " or declare it under [subjects.NAME]",
            )
