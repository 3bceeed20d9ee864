"""Which verdicts a run is asked for: the entries of ``models.toml`` that the options leave."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS
from conformance.errors import ConformanceError
from conformance.records import Name

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from conformance.spec import ModelSpec, Spec, Tier


class SelectionError(ConformanceError):
    """An option names a model, subject or check that there is not, or nothing is left to run."""


@dataclass(frozen=True, slots=True)
class Case:
    """One verdict to be reached."""

    model: str
    subject: str
    check: str

    @property
    def id(self) -> str:
        """Neither a model nor a subject nor a check can have a ``/`` in its name."""
        return f"{self.model}/{self.subject}/{self.check}"


def known_subjects(spec: Spec) -> tuple[str, ...]:
    """The built-in subjects, then those that ``models.toml`` declares."""
    from conformance.spec import BUILTIN_SUBJECTS

    return (*BUILTIN_SUBJECTS, *(name for name in spec.subjects if name not in BUILTIN_SUBJECTS))


def select(
    spec: Spec,
    *,
    models: Sequence[str] = (),
    subjects: Sequence[str] = (),
    checks: Sequence[str] = (),
) -> tuple[Case, ...]:
    """The cases of a run, a model's next to each other, in the order of ``models.toml``.

    Args:
        spec: the whole file.
        models: ids, globs of them, or names of the hub that :func:`with_named` added; none means
            all. Likewise ``subjects`` and ``checks``, without globs.

    Raises:
        SelectionError: a name is unknown, or nothing is left. Every unknown name is reported.
    """
    known = known_subjects(spec)
    ids = [model.id for model in spec.models]
    problems = [
        *_unknown("model", _not_named(spec, models), ids, [name.hub for name in spec.names]),
        *_unknown("subject", subjects, known),
        *_unknown("check", checks, CHECKS),
    ]
    if problems:
        raise SelectionError("\n".join(problems), "`conformance models` lists what there is")
    cases = tuple(
        Case(model.id, subject, check)
        for model in spec.models
        if not models or any(_chosen(model, pattern) for pattern in models)
        for subject in _subjects_of(model, known)
        if not subjects or subject in subjects
        for check in CHECKS
        if not checks or check in checks
    )
    if not cases:
        raise SelectionError(
            f"{spec.path.name}: nothing is selected: no model chosen lists "
            f"{' or '.join(subjects) or 'any subject'} among its subjects",
            "remove --subject, or the entry's `subjects` in models.toml",
        )
    return cases


def with_named(spec: Spec, asked: Iterable[str]) -> Spec:
    """The spec with those names among its models that are asked for by name: judged themselves.

    Args:
        spec: the whole file.
        asked: what ``--model`` says: names of the hub, as they are or as ids, besides others.

    Raises:
        SelectionError: a name is asked for that cannot be judged.
    """
    from conformance.spec import id_of

    ids = {model.id for model in spec.models}
    wanted = {id_of(text) for text in asked} - ids
    names = [name for name in spec.names if name.id in wanted]
    problems = [
        f"--model: {name.hub} is not judged: {name.not_judged}" for name in names if name.not_judged
    ]
    if problems:
        raise SelectionError("\n".join(problems), "see its [[name]] in models.toml")
    return spec.model_copy(update={"models": (*spec.models, *(name.model() for name in names))})


def with_dtype(spec: Spec, dtype: str | None) -> Spec:
    """The spec with every model in one dtype; as it is, if that is None.

    Raises:
        SelectionError: there is no such dtype.
    """
    from conformance.spec import DTYPES

    if dtype is None:
        return spec
    if dtype not in DTYPES:
        near = difflib.get_close_matches(dtype, DTYPES, n=1)
        said = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DTYPES)}"
        raise SelectionError(
            f"--dtype: unknown dtype {dtype!r}; {said}", "leave it out to run each in its own"
        )
    models = (model.model_copy(update={"dtype": dtype}) for model in spec.models)
    return spec.model_copy(update={"models": tuple(models)})


def tier_named(spec: Spec, name: str) -> Tier:
    """The tier of that name.

    Raises:
        SelectionError: there is none.
    """
    for tier in spec.tiers:
        if tier.name == name:
            return tier
    known = ", ".join(tier.name for tier in spec.tiers)
    raise SelectionError(
        f"--tier: unknown tier {name!r}; known: {known}", "add a [[tier]] table to models.toml"
    )


def listed(spec: Spec, models: Container[str]) -> tuple[Name, ...]:
    """The names whose verdicts rest on some of these models, as records.

    Names that are not judged are among them only where all twins that names rest on are.
    """
    judged = {model.id for model in spec.models}
    whole = all(name.twin in models for name in spec.names if name.twin)
    found = []
    for name in spec.names:
        if name.id in judged and name.id in models:
            found.append(Name(name.hub, name.architecture, "real", name.id))
        elif name.twin in models and name.twin is not None:
            found.append(Name(name.hub, name.architecture, "twin", name.twin))
        elif whole and name.not_judged:
            found.append(Name(name.hub, name.architecture, None, None, name.not_judged))
    return tuple(found)


def _chosen(model: ModelSpec, pattern: str) -> bool:
    from conformance.spec import NameSource, id_of

    named = isinstance(model.source, NameSource) and model.id == id_of(pattern)
    return named or fnmatchcase(model.id, pattern)


def _not_named(spec: Spec, patterns: Iterable[str]) -> list[str]:
    return [p for p in patterns if not any(_chosen(model, p) for model in spec.models)]


def _subjects_of(model: ModelSpec, known: Sequence[str]) -> Sequence[str]:
    return known if model.subjects is None else model.subjects


def _unknown(
    what: str, asked: Iterable[str], known: Sequence[str], names: Sequence[str] = ()
) -> list[str]:
    """One line per name that is not known. ``names`` of the hub may be meant besides."""
    lines = []
    for name in asked:
        if name in known:
            continue
        near = difflib.get_close_matches(name, [*known, *names], n=1)
        near = near or difflib.get_close_matches(name.lower(), known, n=1)
        if near:
            said = f"did you mean {near[0]!r}?"
        elif len(known) <= 12:
            said = f"known: {', '.join(known)}"
        else:
            said = f"none of {len(known)} is like it"
        lines.append(f"--{what}: unknown {what} {name!r}; {said}")
    return lines
