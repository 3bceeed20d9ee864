"""What many entries' errors have in common: an upcast lost where one number makes them all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from conformance import bounds
from conformance.checks.base import has_own_truth, truth_of
from conformance.compare import SharedErrors
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from conformance.checks.base import Context, Pass


class SharedJudge:
    """Judges one pass of components on their own, in a dtype that is upcast from."""

    def __init__(self, context: Context, run: Pass) -> None:
        self._context, self._run = context, run
        self._errors = SharedErrors(context.subject.family, run.prompt.valid)
        self._scores_hold = True

    def see(self, name: str, value: torch.Tensor, holds: bool) -> Iterator[Comparison]:
        """Look at one site, in order.

        Args:
            holds: whether the site itself agrees: a hook that shows no scores says nothing of the
                softmax.
        """
        reference, run = self._context.reference, self._run
        if not has_own_truth(reference, run):
            return
        if name.endswith("attn.scores"):
            self._scores_hold = holds
        truth = truth_of(reference, run, name)
        if truth.shape != value.shape:
            return  # which is told already
        found = self._errors.see(name, truth, value)
        own = reference.shared_error(run.prompt.name, name)
        if found is None or own is None or not math.isfinite(own):
            return
        if name.endswith("attn.pattern") and not self._scores_hold:
            return
        allowed, source = bounds.shared_precision(own, run.dtype)
        yield Comparison(
            judgement="same_precision",
            site=name,
            prompt=run.where,
            measured=found.certain,
            allowed=allowed,
            ok=found.certain <= allowed,  # NaN is not
            bound=source,
            note=f"what many entries' errors have in common, in {found.rows} groups of them",
        )
