"""Faults of tokenisation."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import torch

    from conformance.implementations.lens_model import LensModel


def _to_tokens(
    change: Callable[..., torch.Tensor],
) -> Callable[[LensModel], AbstractContextManager[object]]:
    """Replace ``to_tokens`` by ``change(right, text, **options)``."""

    def apply(subject: LensModel) -> AbstractContextManager[object]:
        right = subject.model.to_tokens

        def wrong(text: Any, **options: Any) -> torch.Tensor:
            return change(right, text, **options)

        return attribute(subject.model, "to_tokens", wrong)

    return apply


def _bos_dropped(right: Any, text: Any, **options: Any) -> torch.Tensor:
    return right(text, **{**options, "prepend_bos": False})


def _bos_doubled(right: Any, text: Any, **options: Any) -> torch.Tensor:
    import torch

    found: torch.Tensor = right(text, **options)
    if options.get("prepend_bos") is False:
        return found
    return torch.cat([found[:, :1], found], dim=1)


def _sides_flipped(right: Any, text: Any, **options: Any) -> torch.Tensor:
    if "padding_side" in options:
        other = "left" if options["padding_side"] == "right" else "right"
        options = {**options, "padding_side": other}
    return right(text, **options)


def _cut_early(right: Any, text: Any, **options: Any) -> torch.Tensor:
    """One token less of the context than there is."""
    found: torch.Tensor = right(text, **options)
    whole: torch.Tensor = right(text, **{**options, "truncate": False})
    return found[:, :-1] if found.shape[1] < whole.shape[1] else found


def _stripped(right: Any, text: Any, **options: Any) -> torch.Tensor:
    """Spaces before a text are lost."""
    bare = text.lstrip(" ") if isinstance(text, str) else text
    return right(bare, **options)


@contextlib.contextmanager
def _side_left_behind(subject: LensModel) -> Iterator[None]:
    """The side that a batch was padded on stays the tokenizer's."""
    right, tokenizer = subject.model.to_tokens, subject.model.tokenizer
    before = tokenizer.padding_side

    def wrong(text: Any, **options: Any) -> torch.Tensor:
        found: torch.Tensor = right(text, **options)
        if options.get("padding_side") is not None:
            other = {"left": "right", "right": "left"}
            tokenizer.padding_side = other[before]
        return found

    try:
        with attribute(subject.model, "to_tokens", wrong):
            yield
    finally:
        tokenizer.padding_side = before


def _cleaned(subject: LensModel) -> AbstractContextManager[object]:
    """Strings are tidied up: spaces before punctuation go, ends are trimmed."""
    right = subject.model.to_string

    def wrong(tokens: Any) -> Any:
        found = right(tokens)
        return found.strip() if isinstance(found, str) else [s.strip() for s in found]

    return attribute(subject.model, "to_string", wrong)


@contextlib.contextmanager
def _pad_is_bos(subject: LensModel) -> Iterator[None]:
    tokenizer = subject.model.tokenizer
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.bos_token
    try:
        yield
    finally:
        tokenizer.pad_token = before


def _has_tokenizer(subject: LensModel) -> bool:
    return getattr(subject.model, "tokenizer", None) is not None


def _has_own_pad(subject: LensModel) -> bool:
    if not _has_tokenizer(subject):
        return False
    tokenizer = subject.model.tokenizer
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in special


def _fault(
    name: str,
    what: str,
    apply: Callable[[LensModel], AbstractContextManager[object]],
    site: str = "to_tokens",
    applies: Callable[[LensModel], bool] = _has_tokenizer,
    part: str | None = None,
) -> Fault:
    return Fault(
        name,
        "tokens",
        what,
        apply,
        exactly(site),
        applies,
        needs="tokenizer",
        part=part,
    )


FAULTS: tuple[Fault, ...] = (
    _fault("bos_dropped", "no BOS token where one is asked for", _to_tokens(_bos_dropped)),
    _fault("bos_doubled", "two BOS tokens", _to_tokens(_bos_doubled)),
    _fault("padding_side_flipped", "batches padded on the other side", _to_tokens(_sides_flipped)),
    _fault(
        "truncated_early",
        "a long text is cut one token early",
        _to_tokens(_cut_early),
        part="truncation",
    ),
    _fault("leading_space_lost", "spaces before a text are lost", _to_tokens(_stripped)),
    _fault(
        "padding_side_left_behind",
        "the tokenizer keeps the side of the last batch",
        _side_left_behind,
        "tokenizer.padding_side",
    ),
    _fault("strings_trimmed", "decoded strings are trimmed", _cleaned, "to_string"),
    _fault(
        "padding_is_bos",
        "the padding token is the BOS token",
        _pad_is_bos,
        "tokenizer.pad_token_id",
        _has_own_pad,
    ),
)
