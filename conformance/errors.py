"""One exception per step of the pipeline; every message says what, where, and what to do.

``str(error)`` is the message followed by ``hint: ...`` on a line of its own, so that a
record, a terminal and a log all carry the advice without knowing the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConformanceError(Exception):
    """Base of all errors the harness raises on purpose.

    Args:
        message: what went wrong, and where.
        hint: the next thing a person should do.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.message, self.hint)


class SpecError(ConformanceError):
    """``models.toml`` is malformed. Carries every problem found, not only the first."""


class CheckpointError(ConformanceError):
    """A checkpoint could not be fetched, verified, unpacked or built."""


class ImplementationError(ConformanceError):
    """A reference or a subject could not be loaded or run."""


class NotApplicable(ConformanceError):
    """The installed TransformerLens has no such subject, or the subject no such model."""


class DoesNotFit(ConformanceError):
    """A run needs more memory than there is for it.

    ``facts``, plain data, are for the record: ``limit`` (bytes needed and there) and ``facts``.
    """

    def __init__(self, message: str, hint: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.facts = dict(facts or {})


class TraceError(ConformanceError):
    """A stored trace is missing, damaged or does not cover the sites it promises."""


class FamilyError(ConformanceError):
    """An architecture has no description in ``conformance/families``, or one that does not fit."""


class RecordsError(ConformanceError):
    """A records file is truncated, malformed or of another schema version."""
