"""Faults of norms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import (
    edited,
    exposed,
    original,
    overwritten,
    replaced_by,
    watched_input,
)

if TYPE_CHECKING:
    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"

#: What torch.nn.LayerNorm has unless it is told.
_TORCH_EPS = 1e-5

#: Component -> the site that it produces.
_NORM_SITES = {"ln1": "ln1", "ln2": "ln2", "ln1_post": "attn_out", "ln2_post": "mlp_out"}


def norm(subject: LensModel, component: str) -> Any | None:
    """A norm's module by its component name, or None."""
    return subject.components().get(component)


def _site(component: str) -> str:
    if component in ("ln_final", "ln_encoder"):
        return component
    prefix, _, name = component.rpartition(".")
    return f"{prefix}.{_NORM_SITES[name]}"


def rms(module: Any) -> bool:
    """Whether a norm does not centre."""
    uses = getattr(module, "uses_rms_norm", None)
    if uses is not None:
        return bool(uses)
    return "RMS" in type(module).__name__


def norm_eps(module: Any) -> float:
    inner = original(module)
    for name in ("variance_epsilon", "eps"):
        value = getattr(inner, name, None)
        if isinstance(value, float):
            return value
    return float(module.config.eps)


def norm_weight(module: Any) -> torch.Tensor | None:
    inner = original(module)
    for name in ("w", "weight"):
        value = getattr(inner, name, None)
        if isinstance(value, torch.Tensor):
            return value.detach()
    return None


def _bias(module: Any) -> torch.Tensor | None:
    inner = original(module)
    for name in ("b", "bias"):
        value = getattr(inner, name, None)
        if isinstance(value, torch.Tensor):
            return value.detach()
    return None


def _normalised(x: torch.Tensor, eps: float, centred: bool) -> torch.Tensor:
    if centred:
        x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def norm_by_hand(x: torch.Tensor, module: Any) -> torch.Tensor:
    """What a norm computes, step by step in the dtype of its input."""
    y = _normalised(x, norm_eps(module), not rms(module))
    w, b = norm_weight(module), _bias(module)
    if w is not None:
        y = y * norm_effective(module, w).to(y.dtype)
    return y if b is None else y + b.to(y.dtype)


NormChange = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


def norm_changed(component: str, change: NormChange) -> Callable[[LensModel], Any]:
    """Change a norm's output, given it, the norm's input and its module."""

    @contextlib.contextmanager
    def apply(subject: LensModel) -> Iterator[None]:
        module = norm(subject, component)
        assert module is not None
        with (
            watched_input(module) as box,
            edited(
                subject,
                _site(component),
                lambda y: change(y, box.get().reshape(y.shape), module),
            ),
        ):
            yield

    return apply


def has_norm(component: str) -> Callable[[LensModel], bool]:
    return lambda s: norm(s, component) is not None and exposed(s, _site(component))


def _other_eps(factor: float) -> NormChange:
    def change(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
        eps, b = norm_eps(module), _bias(module)
        centred = x if rms(module) else x - x.mean(-1, keepdim=True)
        v = centred.pow(2).mean(-1, keepdim=True)
        ratio = ((v + eps) / (v + eps * factor)).sqrt()
        return y * ratio if b is None else (y - b) * ratio + b

    return change


def _eps_of_torch(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    return _other_eps(_TORCH_EPS / norm_eps(module))(y, x, module)


def _eps_tells(_: LensModel, module: Any) -> bool:
    """Whether ten times less or more of eps is a change that float32 could hold."""
    return norm_eps(module) > torch.finfo(torch.float32).eps


def _no_offset(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    return y - _normalised(x, norm_eps(module), centred=False)


def _other_centring(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    eps, w, centred = norm_eps(module), norm_weight(module), not rms(module)
    delta = _normalised(x, eps, not centred) - _normalised(x, eps, centred)
    return y + (delta if w is None else delta * norm_effective(module, w))


#: What names of HuggingFace's norms begin with that multiply by 1 + their weight.
_OFFSET = ("Gemma", "Qwen3Next", "Qwen3_5")


def weight_is_offset(module: Any) -> bool:
    """Whether a norm multiplies by 1 + its weight."""
    says = getattr(module, "uses_weight_offset", None)
    if says is None:  # a 3.x bridge does not say; the class that it wraps does
        return any(name in type(original(module)).__name__ for name in _OFFSET)
    return bool(says)


def norm_effective(module: Any, w: torch.Tensor) -> torch.Tensor:
    return 1 + w if weight_is_offset(module) else w


def _no_bias(y: torch.Tensor, _: torch.Tensor, module: Any) -> torch.Tensor:
    b = _bias(module)
    return y if b is None else y - b


def _skip(_: torch.Tensor, x: torch.Tensor, __: Any) -> torch.Tensor:
    return x


def skipped(component: str) -> Callable[[LensModel], Any]:
    """A norm is left out."""
    return norm_changed(component, _skip)


def _norm_fault(
    name: str,
    what: str,
    component: str,
    change: NormChange,
    extra: Callable[[LensModel, Any], bool] = lambda *_: True,
) -> Fault:
    def applies(subject: LensModel) -> bool:
        return has_norm(component)(subject) and extra(subject, norm(subject, component))

    return Fault(
        name, "norm", what, norm_changed(component, change), exactly(_site(component)), applies
    )


def matters(tensor: torch.Tensor | None, neutral: float) -> bool:
    """Whether leaving a parameter out changes anything: HookedTransformer holds neutral ones."""
    return tensor is not None and bool((tensor != neutral).any())


def _differ(first: Any, second: Any) -> bool:
    """Whether the second norm changes if it gets the first one's parameters."""
    pairs = [(get(first), get(second)) for get in (norm_weight, _bias)]
    return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)


@contextlib.contextmanager
def _shared_norm(subject: LensModel) -> Iterator[None]:
    """The second norm of a block uses the first one's weights."""
    first, second = norm(subject, f"{_PRE}.ln1"), norm(subject, f"{_PRE}.ln2")
    with contextlib.ExitStack() as stack:
        for get in (norm_weight, _bias):
            source, target = get(first), get(second)
            if source is not None and target is not None:
                stack.enter_context(overwritten(target, replaced_by(source)))
        yield


FAULTS: tuple[Fault, ...] = (
    _norm_fault(
        "norm_eps_tenfold",
        "eps ten times too large",
        f"{_PRE}.ln1",
        _other_eps(10.0),
        _eps_tells,
    ),
    _norm_fault(
        "norm_eps_tenth", "eps ten times too small", f"{_PRE}.ln2", _other_eps(0.1), _eps_tells
    ),
    _norm_fault(
        "norm_eps_of_torch",
        "eps left at 1e-5, torch's own for LayerNorm",
        f"{_PRE}.ln1",
        _eps_of_torch,
        lambda _, m: norm_eps(m) != _TORCH_EPS,
    ),
    _norm_fault(
        "final_norm_eps",
        "the final norm's eps ten times too large",
        "ln_final",
        _other_eps(10.0),
        _eps_tells,
    ),
    _norm_fault(
        "norm_offset_missing",
        "the norm multiplies by w instead of 1 + w",
        f"{_PRE}.ln1",
        _no_offset,
        lambda s, _: s.family.of(_LAYER).norm_offset,
    ),
    _norm_fault(
        "norm_centring", "RMS instead of LayerNorm, or back", f"{_PRE}.ln1", _other_centring
    ),
    _norm_fault(
        "norm_bias_skipped",
        "the norm's bias is left out",
        f"{_PRE}.ln1",
        _no_bias,
        lambda _, m: matters(_bias(m), 0.0),
    ),
    _norm_fault(
        "norm_skipped", "attention reads the stream without its norm", f"{_PRE}.ln1", _skip
    ),
    _norm_fault(
        "post_norm_skipped", "the norm after attention is left out", f"{_PRE}.ln1_post", _skip
    ),
    _norm_fault(
        "mlp_post_norm_skipped", "the norm after the MLP is left out", f"{_PRE}.ln2_post", _skip
    ),
    _norm_fault("final_norm_skipped", "the final norm is left out", "ln_final", _skip),
    Fault(
        "norm_shared",
        "norm",
        "the MLP's norm has the attention norm's weights",
        _shared_norm,
        exactly(f"{_PRE}.ln2"),
        lambda s: (
            not s.family.of(_LAYER).mlp_reads_ln1
            and has_norm(f"{_PRE}.ln1")(s)
            and has_norm(f"{_PRE}.ln2")(s)
            and _differ(norm(s, f"{_PRE}.ln1"), norm(s, f"{_PRE}.ln2"))
        ),
    ),
)
