"""Faults of what is said of heads (the check ``heads``); the forward pass is right."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import attribute

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel


def _detector(
    name: str, change: Callable[..., Any]
) -> Callable[[LensModel], AbstractContextManager[None]]:
    """Replace a function of the library's head detector by ``change(right, ...)``."""

    def apply(_: LensModel) -> AbstractContextManager[None]:
        module = importlib.import_module("transformer_lens.head_detector")
        right = getattr(module, name)
        return attribute(module, name, lambda *args, **more: change(right, *args, **more))

    return apply


def _cache_changed(right: Any, pattern: Any, **more: Any) -> Any:
    """Masks in place, as was once done: the score is right, the cache is not."""
    score = right(pattern, **more)
    if more["exclude_bos"]:
        pattern[:, 0] = 0
    return score


def _with_the_first(right: Any, pattern: Any, **more: Any) -> Any:
    return right(pattern, **{**more, "exclude_bos": False})


def _fault(name: str, what: str, apply: Any) -> Fault:
    site = exactly("blocks.0.attn.pattern")
    return Fault(name, "behaviour", what, apply, site, needs="heads")


FAULTS: tuple[Fault, ...] = (
    _fault(
        "induction_not_shifted",
        "an induction head is sought where a duplicate-token head looks",
        _detector(
            "get_induction_head_detection_pattern",
            lambda right, tokens: right(tokens).roll(-1, dims=1).tril(-1),
        ),
    ),
    _fault(
        "first_token_not_left_out",
        "exclude_bos is ignored",
        _detector("compute_head_attention_similarity_score", _with_the_first),
    ),
    _fault(
        "detection_changes_the_cache",
        "detect_head masks the cached pattern in place",
        _detector("compute_head_attention_similarity_score", _cache_changed),
    ),
)
