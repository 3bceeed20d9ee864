"""Logits at every position, plain and after the library's standard weight processing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, Pass, PassMode, judge
from conformance.metrics import logit_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from conformance.records import Comparison


class Logits(Check):
    """Same logits; MSE, differences, cosine, KL and top-k are reported, the verdicts decide.

    Weight processing may shift all logits of a position by a constant, so processed logits are
    compared after centring (subtracting each position's mean over the vocabulary).
    """

    name: ClassVar[str] = "logits"
    stacks: ClassVar[bool] = True
    modes: ClassVar[frozenset[PassMode]] = frozenset({"plain", "processed"})

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
        reference, prompt = context.reference, run.prompt
        comparison = judge(context, run, "logits", logits, centre=run.mode == "processed")
        yield comparison
        if comparison.judgement == "structure" or run.exact:
            return
        stored = reference.logits(prompt.name, run.dtype)
        if run.mode == "processed":
            stored, logits = _centred(stored), _centred(logits)
        found = logit_metrics(stored, logits, prompt.valid)
        key = "logits" if run.mode == "plain" else "logits_processed"
        self.metrics.setdefault(key, {})[prompt.name] = dataclasses.asdict(found)


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)
