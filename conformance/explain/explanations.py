"""What an explanation of a divergence says: frozen records of plain numbers and text."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

#: What is wrong. ``component``: a component on its own, given the reference's input. ``wiring``:
#: what stands between components. ``weights``: a loaded weight is not the checkpoint's.
#: ``processing``: only the model after weight processing differs. ``precision``: the same function,
#: less exactly. ``structure``: something that must exist, or run, does not. ``none``: nothing.
LocationKind = Literal[
    "component", "wiring", "weights", "processing", "precision", "structure", "none"
]


@dataclass(frozen=True, slots=True)
class Cause:
    """A hypothesis that reproduces the subject.

    Attributes:
        hypothesis: a stable id: ``norm_eps``, ``rotary_base``, ``attention_scale``, ...
        statement: one sentence: what the port behaves as if, and what the checkpoint says.
        site: where it acts.
        residual: ``rel_max`` distance of the hypothesis' recomputation from the subject, in
            promoted float64.
        without: ``rel_max`` distance of the right formula (the reference) from the subject.
        exact: whether ``residual`` is within the same-function bound.
    """

    hypothesis: str
    statement: str
    site: str
    residual: float
    without: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Location:
    """Where a port first differs.

    Attributes:
        kind: what sort of thing is wrong there.
        site: the first diverging site, given right inputs; a weight's name for ``weights``; None
            where nothing diverges.
        component: the component that is wrong on its own, e.g. ``blocks.3.attn``.
        part: the part of it, in words: ``rotary embedding of queries``, ``attention mask``.
        between: for wiring: the last site that agrees and the first that does not.
        layers: the layers in which the component is wrong on its own; None for all.
        heads, positions, rows: where in the tensor the difference lives (for a weight, ``rows``
            of its matrix); None for everywhere.
        prompt: the prompt it was seen on.
        measured, allowed: the comparison there; relative to the reference, dimensionless.
        index, reference, subject: the entry with the largest difference, and both values.
        judgement: under which verdict it fails.
        sentence: where in the tensor, in words: ``heads 3 and 5 only, from position 9 on``.
    """

    kind: LocationKind
    site: str | None = None
    component: str | None = None
    part: str = ""
    between: tuple[str, str] | None = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    prompt: str | None = None
    measured: float | None = None
    allowed: float | None = None
    index: tuple[int, ...] | None = None
    reference: float | None = None
    subject: float | None = None
    judgement: str = ""
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Bisection:
    """One setting tried alone: a weight-processing flag, or a dtype.

    Attributes:
        setting: ``fold_ln``, ``bfloat16``, ...
        ok: whether the port stays within its bound; None if it could not be tried.
        measured, allowed: the worst site's (or the logits') relative difference and its bound.
        site: which site that was.
        note: why it could not be tried, or what it raised.
    """

    setting: str
    ok: bool | None
    measured: float | None = None
    allowed: float | None = None
    site: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class MinimalCase:
    """The smallest case found that still shows the divergence.

    Attributes:
        tokens: the token ids, one row per sequence.
        n_tokens: length of a row.
        original_tokens: length of the prompt it was cut from.
        layers: how many layers of the model are needed.
        original_layers: how many it has.
        script: path of the standalone script; None if none was written.
        verified: whether the script, run in a process of its own, showed the divergence.
        shows: the line in which it showed it.
        note: what could not be reduced, or why there is no script.
    """

    tokens: tuple[tuple[int, ...], ...] = ()
    n_tokens: int = 0
    original_tokens: int = 0
    layers: int = 0
    original_layers: int = 0
    script: str | None = None
    verified: bool = False
    shows: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Margin:
    """How near to its bound a conforming port came, under one judgement of one check."""

    check: str
    judgement: str
    compared: int
    margin: float
    site: str | None


@dataclass(frozen=True, slots=True)
class SiteError:
    """One site of one pass: ``measured`` / ``allowed``, for the table and the pictures."""

    site: str
    mode: str
    prompt: str
    dtype: str
    measured: float
    allowed: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that ``conformance explain`` found out about one port of one model.

    Attributes:
        conforms: whether nothing was found to differ.
        location: the first difference.
        others: further, independent differences (another component wrong on its own).
        causes: what reproduces the subject; empty if nothing does.
        diagnosed: what to say of the causes: one, several, none fit, or no formula was tried.
        symptom: what a user sees at the logits, in words.
        minimal: the smallest case that shows it.
        flags, dtypes: bisections, where they were made.
        margins: for a conforming port.
        errors: sites of the passes that were made.
        pictures: paths of the pictures written.
        versions: package -> version.
        next_command: what to type next.
        notes: anything else a reader should know.
        duration_s: wall time.
    """

    model: str
    subject: str
    architecture: str
    evidence: str
    conforms: bool
    location: Location
    others: tuple[Location, ...] = ()
    causes: tuple[Cause, ...] = ()
    diagnosed: str = ""
    symptom: str = ""
    minimal: MinimalCase | None = None
    flags: tuple[Bisection, ...] = ()
    dtypes: tuple[Bisection, ...] = ()
    margins: tuple[Margin, ...] = ()
    errors: tuple[SiteError, ...] = ()
    pictures: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    next_command: str = ""
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def to_json(self, *, indent: int | None = None) -> str:
        """As JSON. NaN and infinities become the strings ``nan``, ``inf``, ``-inf``."""
        return json.dumps(
            _plain(dataclasses.asdict(self)), ensure_ascii=False, allow_nan=False, indent=indent
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Explanation:
        """The inverse of :meth:`to_json`, after ``json.loads``.

        Raises:
            ValueError: it is not an explanation of this version.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"not an explanation of schema version {SCHEMA_VERSION}")
        found = _build(cls, data)
        assert isinstance(found, cls)
        return found


def _build(kind: Any, value: Any) -> Any:
    """A value of an annotated type, out of what JSON has."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        inner = arguments[0]
        if arguments[-1] is not Ellipsis:
            return tuple(_build(a, v) for a, v in zip(arguments, value, strict=True))
        return tuple(_build(inner, v) for v in value)
    if origin is Mapping:
        return dict(value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _build(hints[name], v) for name, v in value.items()})
    return float(value) if kind is float else value


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
