"""Faults of generation: of the cache, of positions at decode, of hooks while tokens are made."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch

from conformance.experiments.generation import TOGETHER, configured, steered
from conformance.faults.base import Fault, exactly
from conformance.faults.inject import (
    AttentionMode,
    attends,
    attention_calls,
    attribute,
    called_with,
    delegates,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

    Apply = Callable[[LensModel], AbstractContextManager[object]]

_LAYER = 1
_LOGITS = exactly("logits")


def _keys_at_decode(change: Callable[[torch.Tensor], torch.Tensor]) -> Apply:
    """Change the keys [..., d_head, key] where they outnumber the queries."""

    def products(count: int, first: torch.Tensor, second: torch.Tensor) -> tuple[Any, Any]:
        if count == 0 and second.shape[-1] > first.shape[-2]:
            second = change(second)
        return first, second

    return lambda s: attention_calls(s, _LAYER, AttentionMode(products=products))


def _too_large(keys: torch.Tensor) -> torch.Tensor:
    return torch.cat([keys[..., :-1] * 1.01, keys[..., -1:]], dim=-1)


def _stale(keys: torch.Tensor) -> torch.Tensor:
    """The entry before the newest was not written: it is still the one before it."""
    if keys.shape[-1] < 3:
        return keys
    return torch.cat([keys[..., :-2], keys[..., -3:-2], keys[..., -1:]], dim=-1)


def _position_late(subject: LensModel) -> AbstractContextManager[object]:
    """A single token is given the position after its own."""

    def change(args: Any, kwargs: Any) -> Any:
        positions = kwargs.get("position_ids")
        if positions is not None and positions.shape[-1] == 1:
            kwargs = {**kwargs, "position_ids": positions + 1}
        return args, kwargs

    return called_with(subject.model.original_model, change)


#: Whether a model's generation with a cache gives it one token at a time.
_SINGLY: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def _loses_count(subject: LensModel) -> bool:
    """Whether generation with a cache takes wrong positions, and soon none that there are
    (docs/findings/030)."""
    bare = subject.model.tokenizer is None and subject.family.pos_embed is not None
    return bare and subject.kind == "HookedTransformer"


def _decodes_singly(subject: LensModel) -> bool:
    """Whether generation with a cache gives the model one token at a time.

    Some bridges keep no cache, whatever they are asked, and run the whole sequence again: all of
    two stacks do.
    """
    if subject.family.encoder:
        return False
    model: Any = subject.model
    if model not in _SINGLY:
        widths: list[int] = []

        def look(tensor: torch.Tensor, hook: Any) -> None:
            widths.append(tensor.shape[1])

        tokens = torch.zeros(1, 3, dtype=torch.long)
        site, *_ = _steered(subject)
        hooks = [(subject.expected_hooks()[0].get(site, site), look)]
        options = {"stop_at_eos": False, "prepend_bos": False, "verbose": False}
        with contextlib.suppress(Exception), subject.session(), model.hooks(fwd_hooks=hooks):
            model.generate(tokens, max_new_tokens=3, **options)
        _SINGLY[model] = 1 in widths
    return _SINGLY[model]


def _gives_positions(subject: LensModel) -> bool:
    """Whether the library tells a decoder its positions; it tells none that has an encoder."""
    if subject.family.encoder:
        return False
    accepts = getattr(subject.model, "_accepts_derived_position_ids", None)
    fam = subject.family
    matters = fam.pos_embed is not None or any(f.rotary and f.attn for f in fam.every)
    given = matters and accepts is not None and bool(accepts())
    return given and _decodes_singly(subject)


def _cached(part: str) -> Apply:
    """Change the keys that a decoder's first layer keeps, before each further step.

    Args:
        part: of HuggingFace's cache.
    """

    def change(args: Any, kwargs: Any) -> Any:
        if (cache := kwargs.get("past_key_values")) is not None:
            held = getattr(cache, part).layers[0]
            held.keys = _too_large(held.keys.transpose(-1, -2)).transpose(-1, -2)
        return args, kwargs

    return lambda s: called_with(s.model.original_model, change)


def _first_cached(subject: LensModel) -> tuple[str, ...]:
    layer = subject.family.encoder
    return (f"blocks.{layer}.attn.{'rot_k' if subject.family.of(layer).rotary else 'k'}",)


def _first_crossed(subject: LensModel) -> tuple[str, ...]:
    return (f"blocks.{subject.family.encoder}.cross_attn.k",)


def _two_stacks(subject: LensModel) -> bool:
    return bool(subject.family.encoder)


def _config_ignored(subject: LensModel) -> AbstractContextManager[object]:
    """Nothing of a generation config is followed."""
    import transformers

    right, model = subject.model.generate, subject.model.original_model

    def wrong(tokens: torch.Tensor, **kwargs: Any) -> Any:
        with configured(model, transformers.GenerationConfig()):
            return right(tokens, **kwargs)

    return attribute(subject.model, "generate", wrong)


def _hooks_dropped(subject: LensModel) -> AbstractContextManager[object]:
    return attribute(subject.model, "hooks", lambda **_: contextlib.nullcontext())


def _hooks_at_prefill_only(subject: LensModel) -> AbstractContextManager[object]:
    """Where each token costs a pass over all before it, as of two stacks: in the first alone."""
    right, encoder = subject.model.hooks, subject.family.encoder

    def wrong(fwd_hooks: Any) -> Any:
        def once(user: Any) -> Any:
            calls = itertools.count()

            def hook(tensor: torch.Tensor, hook: Any) -> Any:
                late = next(calls) > 0 if encoder else tensor.shape[1] == 1
                return tensor if late else user(tensor, hook=hook)

            return hook

        return right(fwd_hooks=[(name, once(user)) for name, user in fwd_hooks])

    return attribute(subject.model, "hooks", wrong)


def _generating(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Apply:
    """Change how the library's ``generate`` is called."""

    def apply(subject: LensModel) -> AbstractContextManager[object]:
        right = subject.model.generate
        return attribute(
            subject.model, "generate", lambda tokens, **kwargs: right(tokens, **change(kwargs))
        )

    return apply


def _padding_forgotten(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k not in ("attention_mask", "padding_side")}


def _seed_forgotten(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs["do_sample"]:
        torch.manual_seed(torch.seed())
    return kwargs


def _steered(subject: LensModel) -> tuple[str, ...]:
    return tuple(steered(subject.family, subject.dims).values())


def _fault(
    name: str,
    what: str,
    apply: Apply,
    sites: Callable[[LensModel], tuple[str, ...]] = _LOGITS,
    applies: Callable[[LensModel], bool] = lambda _: True,
    part: str | None = None,
) -> Fault:
    return Fault(
        name,
        "behaviour",
        what,
        apply,
        sites,
        applies,
        needs="generation",
        part=part,
    )


def _own_attention(subject: LensModel) -> bool:
    return attends(subject) and not delegates(subject) and not _two_stacks(subject)


#: Of a decoder that attends to an encoder.
TWO_STACKS: tuple[Fault, ...] = (
    _fault(
        "decoder_cache_corrupted",
        "the keys that a decoder keeps of its own tokens are wrong",
        _cached("self_attention_cache"),
        _first_cached,
        _two_stacks,
    ),
    _fault(
        "crossed_cache_corrupted",
        "the keys that a decoder keeps of its encoder's tokens are wrong",
        _cached("cross_attention_cache"),
        _first_crossed,
        _two_stacks,
    ),
    _fault(
        "generation_config_ignored",
        "first and last tokens, lengths and n-grams are not as the generation config says",
        _config_ignored,
        exactly("logits.configured"),
        _two_stacks,
    ),
)

FAULTS: tuple[Fault, ...] = (
    _fault(
        "cache_corrupted",
        "cached keys are wrong at decode",
        _keys_at_decode(_too_large),
        applies=_own_attention,
    ),
    _fault(
        "cache_stale",
        "a cached key is still the one before it",
        _keys_at_decode(_stale),
        applies=_own_attention,
    ),
    _fault(
        "decode_position_late",
        "positions are off by one at decode",
        _position_late,
        applies=_gives_positions,
    ),
    _fault(
        "generation_drops_hooks",
        "hooks are dropped while tokens are generated",
        _hooks_dropped,
        _steered,
    ),
    _fault(
        "generation_hooks_prompt_only",
        "hooks act on the prompt and on no token after it",
        _hooks_at_prefill_only,
        _steered,
        lambda s: _two_stacks(s) or (_decodes_singly(s) and not _loses_count(s)),
    ),
    _fault(
        "generation_sees_padding",
        "the padding of a batch is not masked while tokens are generated",
        _generating(_padding_forgotten),
        part=TOGETHER,
    ),
    _fault(
        "generation_not_seeded",
        "sampling does not depend on the seed",
        _generating(_seed_forgotten),
    ),
    *TWO_STACKS,
)
