"""One item per model, subject and check; :mod:`conformance.plugin` supplies and judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.selection import Case


def test_conformance(conformance_case: Case, conformance_judge: Callable[[Case], None]) -> None:
    """The subject computes the same thing as the reference, as far as this check can tell."""
    conformance_judge(conformance_case)
