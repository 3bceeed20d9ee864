"""Faults of what is read off a cache (the check ``lens``); the forward pass is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.faults.base import Fault, at, exactly
from conformance.faults.inject import attribute, delegates, returning

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_OUT = ("attn.out", "attn_out")


def _cache() -> Any:
    from transformer_lens import ActivationCache

    return ActivationCache


def _method(
    owner: Callable[[LensModel], Any], name: str, change: Callable[..., Any]
) -> Callable[[LensModel], AbstractContextManager[None]]:
    """Replace a method by ``change(right, self, ...)``."""

    def apply(subject: LensModel) -> AbstractContextManager[None]:
        right = getattr(owner(subject), name)
        return attribute(
            owner(subject), name, lambda self, *args, **more: change(right, self, *args, **more)
        )

    return apply


def _cached(name: str, change: Callable[..., Any]) -> Any:
    return _method(lambda _: _cache(), name, change)


def _without_last(right: Any, cache: Any, *args: Any, **more: Any) -> Any:
    result = right(cache, *args, **more)
    if more.get("return_labels"):
        return result[0][:-1], result[1][:-1]
    return result[:-1]


def _rolled(right: Any, cache: Any, *args: Any, **more: Any) -> Any:
    result = right(cache, *args, **more)
    if more.get("return_labels"):
        return result[0].roll(1, dims=0), result[1]
    return result.roll(1, dims=0)


def _reversed_neurons(right: Any, cache: Any, *args: Any, **more: Any) -> Any:
    return right(cache, *args, **more).flip(-2)


def _transposed_qk(subject: LensModel) -> AbstractContextManager[None]:
    owner = type(subject.model)
    right = owner.QK.fget
    return attribute(owner, "QK", property(lambda self: right(self).T))


def _result_scaled(subject: LensModel) -> AbstractContextManager[None]:
    hook = subject.model.hook_dict[f"blocks.{_LAYER}.attn.hook_result"]
    return returning(hook, lambda t: t * (1 + 1e-6))


def _has_result(subject: LensModel) -> bool:
    # Falcon's and MPT's attention with alibi takes the flag and does nothing (docs/findings).
    alibi = subject.family.of(_LAYER).architecture in ("FalconForCausalLM", "MptForCausalLM")
    return _stacked(subject) and not delegates(subject) and not alibi


def _fault(
    name: str, what: str, apply: Any, sites: Any, applies: Callable[[LensModel], bool]
) -> Fault:
    return Fault(name, "hook", what, apply, sites, applies, needs="lens")


def _regular(subject: LensModel) -> bool:
    return subject.family.regular


def _stacked(subject: LensModel) -> bool:
    """Whether the cache's functions stack heads and neurons: of two stacks they raise
    (docs/findings/148)."""
    return _regular(subject) and not subject.family.encoder


def _lens_norms(subject: LensModel) -> bool:
    """Whether the lens is a norm and the unembedding."""
    fam = subject.family
    return bool(fam.ln_final) and not (fam.transform or fam.head or fam.encoder)


def _decomposes(subject: LensModel) -> bool:
    fam = subject.family
    whole = fam.everywhere("attn_out") and (fam.attention_only or fam.everywhere("mlp_out"))
    return whole and fam.summed and not fam.encoder


def _attributes(subject: LensModel) -> bool:
    """Whether parts are attributed to logits: not where the library leaves a mixer out of them, or
    keeps no scale of the last norm."""
    fam = subject.family
    last = subject.components().get("ln_final")
    beside = any(own.mixer for own in fam.every) or not hasattr(last, "hook_scale")
    return _decomposes(subject) and fam.head is None and not beside


FAULTS: tuple[Fault, ...] = (
    _fault(
        "lens_norm_skipped",
        "apply_ln_to_stack returns the stack as it is",
        _cached("apply_ln_to_stack", lambda _, __, stack, *args, **more: stack),
        exactly("blocks.0.resid_pre"),
        _lens_norms,
    ),
    _fault(
        "decompose_drops_last",
        "decompose_resid leaves out the last MLP, or attention where there is none",
        _cached("decompose_resid", _without_last),
        lambda s: (
            f"blocks.{s.dims.n_layers - 1}.{'attn' if s.family.attention_only else 'mlp'}_out",
        ),
        _decomposes,
    ),
    _fault(
        "head_results_rolled",
        "stack_head_results gives each head the result of the one before",
        _cached("stack_head_results", _rolled),
        at(*_OUT, layer=0),
        _stacked,
    ),
    _fault(
        "neuron_results_reversed",
        "get_neuron_results gives neurons in reverse order: their sum is right",
        _cached("get_neuron_results", _reversed_neurons),
        at("mlp.out", "mlp_out", layer=0),
        lambda s: _stacked(s) and s.family.of(_LAYER).has_neurons,
    ),
    _fault(
        "attribution_of_the_next_token",
        "attributions are taken along the unembedding of the next token id",
        _method(
            lambda s: type(s.model),
            "tokens_to_residual_directions",
            lambda right, self, tokens: right(self, tokens - 1),
        ),
        exactly("logits"),
        _attributes,
    ),
    _fault(
        "qk_transposed",
        "model.QK is its transpose: the same singular values",
        _transposed_qk,
        exactly("blocks.0.attn.QK"),
        _regular,
    ),
    _fault(
        "hook_result_scaled",
        "hook_result is a millionth too large",
        _result_scaled,
        at(*_OUT, layer=_LAYER),
        _has_result,
    ),
)
