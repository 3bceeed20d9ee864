"""Logits at every position, plain and after the library's standard weight processing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, Pass, PassMode, judge, judge_against
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
    modes: ClassVar[frozenset[PassMode]] = frozenset({"plain", "processed"})

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
        reference = context.reference
        if run.mode == "processed":
            truth = _centred(reference.truth(run.prompt.name, "logits"))
            yield judge_against(context, run, "logits", truth, _centred(logits))
            return
        comparison = judge(context, run, "logits", logits)
        yield comparison
        if comparison.judgement != "structure" and not run.exact:
            stored = reference.logits(run.prompt.name, run.dtype)
            metrics = logit_metrics(stored, logits, run.prompt.valid)
            self.metrics.setdefault("logits", {})[run.prompt.name] = dataclasses.asdict(metrics)


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)
