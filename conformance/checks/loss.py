"""The loss of tokens: the library's own, against cross entropy of the reference's logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from conformance import bounds
from conformance.checks.base import Check, Context, Pass, PassMode, structure
from conformance.metrics import difference, token_losses
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


class Loss(Check):
    """Per-token loss in nats at every real next token, and its mean. Of an encoder and a decoder,
    which is given the tokens one place late, at every real token.

    The bound is the logits' own: cross entropy moves by at most twice the largest change of the
    logits at its position (each of log-sum-exp and the target's logit is 1-Lipschitz in the
    maximum norm), so an allowed relative logit error e permits 2 e max|logit|.
    """

    name: ClassVar[str] = "loss"
    modes: ClassVar[frozenset[PassMode]] = frozenset({"plain"})

    def wants(self, run: Pass) -> bool:
        # One token has no next token.
        return super().wants(run) and run.prompt.tokens.shape[1] > 1

    def finish(
        self, context: Context, run: Pass, logits: torch.Tensor, loss: torch.Tensor | None
    ) -> Iterable[Comparison]:
        assert loss is not None
        prompt = run.prompt
        ahead = not context.reference.family.encoder
        valid = prompt.valid[:, 1:] & prompt.valid[:, :-1] if ahead else prompt.valid
        truth_logits = context.reference.truth(prompt.name, "logits")
        truth = token_losses(truth_logits, prompt.tokens, next_token=ahead)
        if loss.shape != truth.shape:
            yield structure(
                "logits",
                f"loss has shape {tuple(loss.shape)}, expected {tuple(truth.shape)}",
                str(run),
            )
            return
        scale = float(truth_logits[prompt.valid].abs().max())
        if not run.exact and not math.isfinite(
            context.reference.error("plain", prompt.name, "logits")
        ):
            return  # the reference itself leaves the dtype's range: the logits say so
        allowed_rel, source = self._allowed(context, run)
        allowed = 2 * allowed_rel * scale
        judgement = "same_function" if run.exact else "same_precision"
        d = difference(truth, loss, valid)
        mean_truth, mean_loss = float(truth[valid].mean()), float(loss.double()[valid].mean())
        bound = f"2 x max|logit| {scale:.3g} x the logits' bound ({source}), in nats"
        for what, measured, index, r, s in (
            ("per token", d.max_abs, d.index, d.reference, d.subject),
            ("mean", abs(mean_loss - mean_truth), None, mean_truth, mean_loss),
        ):
            yield Comparison(
                judgement=judgement,  # type: ignore[arg-type]
                site="logits",
                prompt=prompt.name,
                measured=measured,
                allowed=allowed,
                ok=measured <= allowed and not math.isnan(measured),
                index=index,
                reference=r,
                subject=s,
                bound=bound,
                note=what,
            )
        if not run.exact:
            self.metrics.setdefault("mean_loss_nats", {})[prompt.name] = [mean_truth, mean_loss]

    def _allowed(self, context: Context, run: Pass) -> tuple[float, str]:
        if run.exact:
            return bounds.same_function(context.reference.spread(run.prompt.name, "logits"))
        own = context.reference.error("plain", run.prompt.name, "logits")
        # The logits' error is an rms over entries, the loss's a maximum: the largest of n
        # normal deviates is below sqrt(2 ln n) of them (Boucheron et al., Concentration
        # Inequalities, 2013, theorem 2.5).
        count = run.prompt.tokens.numel() * context.subject.dims.d_vocab
        fail, _, source = bounds.same_precision(own, run.dtype)
        return fail * math.sqrt(2 * math.log(max(count, 2))), source
