"""Faults of weight processing that the check of its promises must see.

Those that keep the function are seen by nothing else; those that do not must be named by the site
at which the processed port goes wrong.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from conformance.faults.base import Fault, at, exactly
from conformance.faults.inject import named
from conformance.faults.weights import (
    after_processing,
    bias_dropped,
    folded_twice,
    has_final_bias,
    has_gain,
    has_value_bias,
    value_bias_twice,
    weight,
)
from conformance.flags import STANDARD, declined, value_biases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import torch

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


def _skipping(flag: str) -> Callable[[LensModel], AbstractContextManager[None]]:
    """Processing that silently leaves out one of its steps."""

    @contextlib.contextmanager
    def apply(subject: LensModel) -> Iterator[None]:
        right = subject.process_weights

        def wrong(flags: Mapping[str, bool] | None = None) -> None:
            asked = flags or dict.fromkeys(STANDARD, True)
            right({**asked, flag: False})

        subject.process_weights = wrong  # type: ignore[method-assign]
        try:
            yield
        finally:
            del subject.process_weights

    return apply


def _promised(flag: str) -> Callable[[LensModel], bool]:
    return lambda s: declined(s, flag) is None


def _first_norm(subject: LensModel) -> tuple[str, ...]:
    """Norms' parameters have no order of computation: the first that is compared is named."""
    for name in named(subject):
        *_, norm, part = f".{name}".split(".")
        if norm in ("ln1", "ln2", "ln_final") and part in ("w", "b"):
            return (name,)
    return ()


def _first_sum(subject: LensModel) -> tuple[str, ...]:
    """The first site that should have no mean."""
    return ("blocks.0.attn_out",) if subject.family.embed_ln else ("embed",)


def _first_value_bias(subject: LensModel) -> tuple[str, ...]:
    return tuple(value_biases(named(subject)))[:1]


def _skipped(flag: str, what: str, sites: Callable[[LensModel], tuple[str, ...]]) -> Fault:
    return Fault(
        f"{flag}_skipped",
        "folding",
        what,
        _skipping(flag),
        sites,
        lambda s: bool(sites(s)) and _promised(flag)(s),
        needs="processing",
        anew=True,
    )


def _corrupted(
    name: str,
    what: str,
    corrupt: Callable[[LensModel, dict[str, torch.Tensor]], None],
    sites: Callable[[LensModel], tuple[str, ...]],
    applies: Callable[[LensModel], bool],
) -> Fault:
    return Fault(
        name,
        "folding",
        what,
        after_processing(corrupt),
        sites,
        applies,
        needs="processing",
        anew=True,
    )


FAULTS: tuple[Fault, ...] = (
    _skipped("fold_ln", "norms are not folded although asked to be", _first_norm),
    _skipped("center_writing_weights", "writing weights are not centred", _first_sum),
    _skipped("center_unembed", "the head is not centred", exactly("unembed.W_U")),
    _skipped("fold_value_biases", "value biases are not folded", _first_value_bias),
    _corrupted(
        "processed_queries_wrong",
        "attention's norm folded into the queries twice: queries wrong",
        folded_twice("W_Q", f"{_PRE}.ln1.w"),
        at("attn.q"),
        lambda s: has_gain(f"{_PRE}.ln1.w")(s) and weight(s, "W_Q") is not None,
    ),
    _corrupted(
        "processed_mlp_wrong",
        "the MLP's norm folded twice: its activations wrong",
        folded_twice("W_in", f"{_PRE}.ln2.w"),
        lambda s: at("mlp.pre_linear" if s.family.of(_LAYER).gated else "mlp.pre")(s),
        lambda s: has_gain(f"{_PRE}.ln2.w")(s) and weight(s, "W_in") is not None,
    ),
    _corrupted(
        "processed_attention_bias_wrong",
        "the value bias folded twice: attention's output wrong",
        value_bias_twice,
        exactly(f"{_PRE}.attn_out"),
        has_value_bias,
    ),
    _corrupted(
        "processed_head_wrong",
        "the final norm folded into the head twice: logits wrong",
        folded_twice("W_U", "ln_final.w"),
        exactly("logits"),
        has_gain("ln_final.w"),
    ),
    _corrupted(
        "processed_bias_lost",
        "the final norm's bias is lost in folding: logits wrong",
        bias_dropped,
        exactly("logits"),
        has_final_bias,
    ),
)
