"""Logits at every position, plain and after the library's standard weight processing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, Pass, PassMode, judge
from conformance.metrics import logit_metrics
from conformance.profiles import Histograms, relative

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
    of_content: ClassVar[bool] = True
    modes: ClassVar[frozenset[PassMode]] = frozenset({"plain", "processed"})

    def __init__(self) -> None:
        super().__init__()
        self._sizes = Histograms()

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
        reference, prompt = context.reference, run.prompt
        comparison = judge(context, run, "logits", logits, centre=run.mode == "processed")
        yield comparison
        if comparison.judgement == "structure":
            return
        first = reference.prompts[0].name == prompt.name
        if context.recall is None and run.mode == "plain" and first:
            truth = reference.truth(prompt.name, "logits")
            self._sizes.see(run.dtype, "logits", relative("logits", truth, logits, prompt.valid))
            self.metrics["differences"] = self._sizes.plain()
        if run.exact:
            return
        stored = reference.logits(prompt.name, run.dtype)
        if run.mode == "processed":
            stored, logits = _centred(stored), _centred(logits)
        found = logit_metrics(stored, logits, prompt.valid)
        key = "logits" if run.mode == "plain" else "logits_processed"
        self.metrics.setdefault(key, {})[prompt.name] = dataclasses.asdict(found)


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)
