"""The checks: one small module each, a registry, and the context they read.

A check yields :class:`~conformance.records.Comparison` objects and never asserts; one place
(``verdicts.py``) turns them into a verdict. A new check is one subclass of
:class:`~conformance.checks.base.Check`, listed in :func:`registry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checks.names import CHECKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.checks.base import Check
    from conformance.families import Family


#: Said of a check whose runs are made of tokens where a model reads none.
NO_TOKENS = "this check's prompts are tokens, and the model reads none"


def judging(names: Iterable[str], fam: Family) -> tuple[str, ...]:
    """Those of the checks that have anything to say of an architecture."""
    found = registry()
    return tuple(n for n in names if fam.reads is None or found[n].of_content)


def registry() -> Mapping[str, type[Check]]:
    """Name -> check, in the order in which a port is judged."""
    from conformance.checks.activations import Activations
    from conformance.checks.batching import Batching
    from conformance.checks.components import Components
    from conformance.checks.determinism import Determinism
    from conformance.checks.generation import Generation
    from conformance.checks.gradients import Gradients
    from conformance.checks.heads import Heads
    from conformance.checks.hooks import Hooks
    from conformance.checks.interventions import Interventions
    from conformance.checks.lens import Lens
    from conformance.checks.logits import Logits
    from conformance.checks.loss import Loss
    from conformance.checks.patching import Patching
    from conformance.checks.patterns import Patterns
    from conformance.checks.processing import Processing
    from conformance.checks.tokenizer import Tokenizer
    from conformance.checks.weights import Weights

    found = {
        c.name: c
        for c in (
            Weights,
            Activations,
            Components,
            Logits,
            Loss,
            Patterns,
            Lens,
            Interventions,
            Patching,
            Hooks,
            Gradients,
            Processing,
            Batching,
            Generation,
            Tokenizer,
            Heads,
            Determinism,
        )
    }
    assert tuple(found) == CHECKS, "checks/names.py and the registry differ"
    return found
