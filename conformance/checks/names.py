"""The names of the checks, for code that must not import a tensor library to know them."""

from __future__ import annotations

#: Every check, in the order in which a report shows them. The registry must agree with it.
CHECKS: tuple[str, ...] = (
    "weights",
    "activations",
    "components",
    "logits",
    "loss",
    "patterns",
    "lens",
    "interventions",
    "patching",
    "hooks",
    "gradients",
    "processing",
    "batching",
    "generation",
    "tokenizer",
    "heads",
    "determinism",
)

#: What ``conformance vary`` judges in each configuration, in order: whether the port loads, its
#: weights, whether it runs, the checks that read ordinary passes, and the logits after processing.
VARIED: tuple[str, ...] = (
    "load",
    "weights",
    "run",
    "activations",
    "components",
    "logits",
    "loss",
    "processing",
)
