"""Known defects, each listed once with everywhere it shows, given to the models they concern."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from conformance.checks.names import CHECKS
from conformance.spec.problems import suggest, validate
from conformance.spec.tables import EVERY_CHECK, Defect, ExpectedFailure, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conformance.spec.problems import Report


def defects(
    raw: Mapping[str, Any], ids: Sequence[str], known_subjects: Sequence[str], report: Report
) -> tuple[Defect, ...]:
    """The ``[[defect]]`` tables; their problems go to ``report``."""
    tables = raw.get("defect", [])
    if not isinstance(tables, list):
        report.add("defect", "is a single table", "write [[defect]], with two brackets")
        return ()
    found = [validate(Defect, t, f"defect[{i}]", report) for i, t in enumerate(tables)]
    for position, defect in enumerate(found):
        for number, showing in enumerate(defect.shows if defect else ()):
            where = f"defect[{position}].shows[{number}]"
            if showing.subject not in known_subjects:
                said = f"unknown subject {showing.subject!r}"
                report.add(f"{where}.subject", said, suggest(showing.subject, known_subjects))
            if showing.check not in (*CHECKS, EVERY_CHECK):
                said = f"unknown check {showing.check!r}"
                report.add(f"{where}.check", said, suggest(showing.check, CHECKS))
            for name in showing.models:
                if not any(fnmatchcase(known, name) for known in ids):
                    report.add(f"{where}.models", f"no model {name!r}", suggest(name, ids))
    return tuple(defect for defect in found if defect is not None)


def with_defects(
    models: Sequence[ModelSpec], known: Sequence[Defect], report: Report
) -> tuple[ModelSpec, ...]:
    """The models, each with the failures that known defects make it expect."""
    return tuple(_with_defects(model, known, report) for model in models)


def _with_defects(model: ModelSpec, known: Sequence[Defect], report: Report) -> ModelSpec:
    failures = list(model.expected_failures)
    for position, defect in enumerate(known):
        for showing in defect.shows:
            if not any(fnmatchcase(model.id, name) for name in showing.models):
                continue
            failure = defect.failure(showing)
            if any(_same(failure, other) for other in failures):
                report.add(
                    f"defect[{position}]",
                    f"repeats an expected failure of {model.id}: {showing.check} of "
                    f"{showing.subject}",
                    "keep one, or give the two different conditions",
                )
            failures.append(failure)
    return model.model_copy(update={"expected_failures": tuple(failures)})


def _same(a: ExpectedFailure, b: ExpectedFailure) -> bool:
    """Whether two entries expect the same, whatever they give for its reason."""
    said = {"reason", "link"}
    return a.model_dump(exclude=said) == b.model_dump(exclude=said)
