"""Discrete choices of a port, held against the truth's: alike, near-ties aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance import bounds, choices
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conformance.checks.base import Check, Context, Pass
    from conformance.choices import Watch

#: What flips are called among a check's metrics.
FLIPS = "router_flips"
#: What choices are called that could not be replayed.
UNMATCHED = "choices_not_replayed"


def judge_choices(
    context: Context, run: Pass, watch: Watch, readers: Iterable[Check]
) -> Iterator[Comparison]:
    """One comparison for each choice of a pass that some token would have made otherwise.

    The pass went on as the truth chose; what each reader is told stands among its metrics.
    """
    reference, prompt = context.reference, run.prompt
    told: list[dict[str, Any]] = []
    wanted = reference.choices(run.mode, prompt.name)
    unmatched = [*watch.unmatched, *(key for key in wanted if key not in watch.seen)]
    for key, truth in wanted.items():
        own = watch.seen.get(key)
        flips = None if own is None else choices.flips(truth, own, prompt.valid)
        if flips is None:
            continue
        layer, number = map(int, key.split(":"))
        error = reference.choice_error(run.mode, prompt.name, key)
        allowed, source = bounds.near_tie(error, run.dtype)
        at = f"blocks.{layer}.{_site(context, layer, truth)}"
        told.append(
            {
                "layer": layer,
                "choice": number,
                "prompt": prompt.name,
                "mode": run.mode,
                "tokens": flips.tokens,
                "of": flips.of,
                "margin": flips.margin,
                "reference_error": error,
                "reference_flips": reference.own_flips.get(prompt.name, {}).get(key, 0),
            }
        )
        yield Comparison(
            judgement="same_precision",
            site=at,
            prompt=run.where,
            measured=flips.margin,
            allowed=allowed,
            ok=flips.margin <= allowed,  # NaN is not
            bound=source,
            note=f"{flips.tokens} of {flips.of} tokens would be sent elsewhere than by the "
            "reference, whose choice was replayed; measured is the largest margin of such a choice",
        )
    for check in readers:
        if told:
            check.metrics.setdefault(FLIPS, []).extend(told)
        if unmatched:
            known = check.metrics.setdefault(UNMATCHED, [])
            known.extend(key for key in unmatched if key not in known)


def _site(context: Context, layer: int, truth: choices.Choice) -> str:
    """Where a choice is told of: keys are chosen in attention, experts in the MLP."""
    own = context.reference.family.of(layer)
    return "attn.scores" if own.indexed and truth.scores.ndim > 2 else "mlp.router_logits"
