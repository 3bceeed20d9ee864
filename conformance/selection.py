"""Which verdicts a run is asked for: the entries of ``models.toml`` that the options leave."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS
from conformance.errors import ConformanceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conformance.spec import ModelSpec, Spec


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
        models: ids or globs; none means all. Likewise ``subjects`` and ``checks``, without globs.

    Raises:
        SelectionError: a name is unknown, or nothing is left. Every unknown name is reported.
    """
    known = known_subjects(spec)
    problems = [
        *_unknown("model", models, [model.id for model in spec.models]),
        *_unknown("subject", subjects, known),
        *_unknown("check", checks, CHECKS),
    ]
    if problems:
        raise SelectionError("\n".join(problems), "`conformance models` lists what there is")
    cases = tuple(
        Case(model.id, subject, check)
        for model in spec.models
        if not models or any(fnmatchcase(model.id, pattern) for pattern in models)
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


def _subjects_of(model: ModelSpec, known: Sequence[str]) -> Sequence[str]:
    return known if model.subjects is None else model.subjects


def _unknown(what: str, asked: Iterable[str], known: Sequence[str]) -> list[str]:
    """One line per name that is not known; a glob is unknown when it matches nothing."""
    lines = []
    for name in asked:
        if name in known or (what == "model" and any(fnmatchcase(k, name) for k in known)):
            continue
        near = difflib.get_close_matches(name.lower(), known, n=1)
        if near:
            said = f"did you mean {near[0]!r}?"
        elif len(known) <= 12:
            said = f"known: {', '.join(known)}"
        else:
            said = f"none of {len(known)} is like it"
        lines.append(f"--{what}: unknown {what} {name!r}; {said}")
    return lines
