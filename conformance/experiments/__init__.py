"""Experiments: what the reference computes for the checks of invariants.

A check that compares with an edit, a gradient, a generation of the *reference* needs more of
HuggingFace than its forward pass. Its experiment runs in the reference's own process, in promoted
float64, and once more with every weight moved by one unit in the last place, which gives each
result its own spread. Results are stored beside the trace, one directory per experiment, keyed by
the experiment's source: a run that asks for other checks pays nothing for it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.experiments.base import Experiment

#: Check -> module that holds its experiment, as ``EXPERIMENT``.
_MODULES: Mapping[str, str] = {
    "patterns": "conformance.experiments.patterns",
    "lens": "conformance.experiments.lens",
    "interventions": "conformance.experiments.interventions",
    "patching": "conformance.experiments.patching",
    "gradients": "conformance.experiments.gradients",
    "batching": "conformance.experiments.batching",
    "hooks": "conformance.experiments.hooks",
    "heads": "conformance.experiments.heads",
    "generation": "conformance.experiments.generation",
    "tokenizer": "conformance.experiments.tokenizer",
}

#: Modules that every experiment depends on.
_SHARED = (
    "conformance.experiments.base",
    "conformance.experiments.store",
)


def experiment(check: str) -> Experiment | None:
    """The experiment of a check; None if it has none."""
    if check not in _MODULES:
        return None
    found: Experiment = importlib.import_module(_MODULES[check]).EXPERIMENT
    return found


@functools.cache
def code_hashes() -> Mapping[str, str]:
    """Check -> hash of the source that determines its experiment's results.

    Taken once a process and inherited by its forks, as
    :func:`conformance.reference.code_hash` is.
    """
    found = {}
    for check, own in _MODULES.items():
        digest = hashlib.sha256()
        used = importlib.import_module(own)
        for name in (*_SHARED, *used.EXPERIMENT.uses, own):
            digest.update(inspect.getsource(importlib.import_module(name)).encode())
        found[check] = digest.hexdigest()[:16]
    return found
