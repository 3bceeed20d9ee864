"""Faults of MLPs, routers and experts."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.attention import bias
from conformance.faults.base import Fault, at
from conformance.faults.inject import (
    attribute,
    edited,
    editing,
    exposed,
    mlp,
    original,
    overwritten,
    replaced_by,
    returning,
    watched,
)

if TYPE_CHECKING:
    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
}


def _activation(subject: LensModel) -> str | None:
    """Which activation an MLP has, by the names its config gives."""
    model = subject.model
    config = getattr(getattr(model, "original_model", None), "config", None) or model.cfg
    for name in ("hidden_activation", "hidden_act", "activation_function", "act_fn"):
        found = getattr(config, name, None)
        if isinstance(found, str):
            if found in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
                return "gelu_tanh"
            return found if found in _ACTIVATIONS else None
    known = {"BloomForCausalLM": "gelu_tanh", "FalconForCausalLM": "gelu", "MptForCausalLM": "gelu"}
    return known.get(subject.family.of(_LAYER).architecture)


@contextlib.contextmanager
def _mlp_recomputed(
    subject: LensModel, compute: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
) -> Iterator[None]:
    """Another function of the MLP's pre-activations."""
    with contextlib.ExitStack() as stack:
        pre = stack.enter_context(watched(subject, f"{_PRE}.mlp.pre"))
        up = None
        if subject.family.of(_LAYER).gated:
            up = stack.enter_context(watched(subject, f"{_PRE}.mlp.pre_linear"))
        stack.enter_context(
            edited(
                subject,
                f"{_PRE}.mlp.post",
                lambda t: compute(pre.get(), None if up is None else up.get()).reshape(t.shape),
            )
        )
        yield


def _activated(name: str) -> Callable[[LensModel], Any]:
    act = _ACTIVATIONS[name]
    return lambda s: _mlp_recomputed(s, lambda pre, up: act(pre) if up is None else act(pre) * up)


def _has_post(subject: LensModel) -> bool:
    """Whether the port shows what goes into the activation, and what comes out."""
    gated = subject.family.of(_LAYER).gated
    kinds = ("mlp.post", "mlp.pre", *(("mlp.pre_linear",) if gated else ()))
    return all(exposed(subject, f"{_PRE}.{kind}") for kind in kinds)


def _act_in(*names: str) -> Callable[[LensModel], bool]:
    return lambda s: _has_post(s) and _activation(s) in names


def _gate_up_swapped(subject: LensModel) -> Any:
    act = _ACTIVATIONS[_activation(subject) or "silu"]

    def compute(pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        assert up is not None
        return act(up) * pre

    return _mlp_recomputed(subject, compute)


def _mlp_out(subject: LensModel) -> str:
    return "mlp.out" if subject.family.of(_LAYER).ln2_post else "mlp_out"


def _minus(name: str, site: Callable[[LensModel], str]) -> Callable[[LensModel], Any]:
    def apply(subject: LensModel) -> Any:
        value = bias(subject, name)
        assert value is not None
        return edited(subject, f"{_PRE}.{site(subject)}", lambda t: t - value)

    return apply


_DENSE: tuple[Fault, ...] = (
    Fault(
        "gelu_exact_for_tanh",
        "mlp",
        "exact gelu instead of the tanh approximation",
        _activated("gelu"),
        at("mlp.post"),
        _act_in("gelu_tanh"),
    ),
    Fault(
        "gelu_tanh_for_exact",
        "mlp",
        "the tanh approximation instead of exact gelu",
        _activated("gelu_tanh"),
        at("mlp.post"),
        _act_in("gelu"),
    ),
    Fault(
        "gelu_quick",
        "mlp",
        "x sigmoid(1.702 x) instead of gelu",
        _activated("gelu_quick"),
        at("mlp.post"),
        _act_in("gelu", "gelu_tanh"),
    ),
    Fault(
        "silu_for_gelu",
        "mlp",
        "silu instead of the activation",
        _activated("silu"),
        at("mlp.post"),
        _act_in("gelu", "gelu_tanh", "relu"),
    ),
    Fault(
        "gelu_for_silu",
        "mlp",
        "gelu instead of silu",
        _activated("gelu"),
        at("mlp.post"),
        _act_in("silu", "relu"),
    ),
    Fault(
        "gate_up_swapped",
        "mlp",
        "gate and up projections swapped",
        _gate_up_swapped,
        at("mlp.post"),
        lambda s: s.family.of(_LAYER).gated and _has_post(s) and _activation(s) is not None,
    ),
    Fault(
        "bias_in_skipped",
        "mlp",
        "the MLP's first bias is left out",
        _minus("mlp.b_in", lambda s: "mlp.pre_linear" if s.family.of(_LAYER).gated else "mlp.pre"),
        lambda s: at("mlp.pre_linear" if s.family.of(_LAYER).gated else "mlp.pre")(s),
        lambda s: _has_post(s) and bias(s, "mlp.b_in") is not None,
    ),
    Fault(
        "bias_out_skipped",
        "mlp",
        "the MLP's last bias is left out",
        _minus("mlp.b_out", _mlp_out),
        lambda s: at(_mlp_out(s))(s),
        lambda s: bias(s, "mlp.b_out") is not None,
    ),
    Fault(
        "mlp_clamped",
        "mlp",
        "activations clamped where they should not be",
        editing(f"blocks.{_LAYER}.mlp.post", lambda t: t.clamp(max=1.0)),
        at("mlp.post"),
        _has_post,
    ),
)


# --- routers ----------------------------------------------------------------------------------


def _router(subject: LensModel) -> Any | None:
    """The HuggingFace-style router: returns logits, weights and indices of the chosen experts."""
    fam = subject.family.of(_LAYER)
    if fam.router is None or _own_moe(subject) is not None:
        return None
    found = _inner(subject, fam.router)
    # Llama 4's returns scores and logits: it has no weights and indices to change.
    return None if type(found).__name__ == "Llama4Router" else found


def _own_moe(subject: LensModel) -> Any | None:
    """HookedTransformer's own mixture of experts."""
    module = mlp(subject, _LAYER)
    return module if hasattr(module, "experts_per_token") else None


def _inner(subject: LensModel, path: str) -> Any | None:
    module = original(mlp(subject, _LAYER))
    found = getattr(module, path.rpartition(".")[2], None)
    return original(found) if found is not None else None


def _top_k(subject: LensModel) -> int:
    own = _own_moe(subject)
    if own is not None:
        return int(own.experts_per_token)
    router = _router(subject)
    assert router is not None
    return int(router.top_k)


Routing = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@contextlib.contextmanager
def _routed(subject: LensModel, rule: Routing) -> Iterator[None]:
    """Another choice and weighting of experts, from the router's logits [token, expert]."""
    k = _top_k(subject)

    def change(output: Any) -> Any:
        logits = output[0]
        weights, indices = rule(logits, k)
        return (logits, weights.to(output[1].dtype), indices, *output[3:])

    router = _router(subject)
    assert router is not None
    with returning(router, change):
        yield


def _of_all(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over all experts; the weights of the chosen do not sum to one."""
    return torch.topk(logits.softmax(-1), k, dim=-1)


def _of_chosen(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the chosen experts, or over all and renormalised: the same."""
    weights, indices = torch.topk(logits, k, dim=-1)
    return weights.softmax(-1), indices


def _rule(subject: LensModel) -> Routing:
    """This router's own rule."""
    return _of_chosen if _renormalises(subject) else _of_all


def _weights_swapped(subject: LensModel) -> Any:
    rule = _rule(subject)

    def swapped(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        weights, indices = rule(logits, k)
        return weights.flip(-1), indices

    return _routed(subject, swapped)


def _uniform(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, indices = torch.topk(logits, k, dim=-1)
    return torch.full_like(weights, 1 / k), indices


def _chosen(by: int) -> Callable[[LensModel], Any]:
    """``by`` experts more than the model has a token."""

    def apply(subject: LensModel) -> Any:
        own = _own_moe(subject)
        if own is not None:
            return attribute(own, "experts_per_token", own.experts_per_token + by)
        rule = _rule(subject)
        return _routed(subject, lambda logits, k: rule(logits, k + by))

    return apply


def _normalised_otherwise(subject: LensModel) -> Any:
    own = _own_moe(subject)
    if own is None:
        return _routed(subject, _of_all if _renormalises(subject) else _of_chosen)
    cfg = copy.copy(own.cfg)
    cfg.norm_topk_prob = not cfg.norm_topk_prob
    return attribute(own, "cfg", cfg)


def _has_router(subject: LensModel) -> bool:
    return _router(subject) is not None


def _has_choice(subject: LensModel) -> bool:
    return _has_router(subject) or _own_moe(subject) is not None


def _renormalises(subject: LensModel) -> bool:
    own = _own_moe(subject)
    if own is not None:
        return bool(getattr(own.cfg, "norm_topk_prob", False))
    # Mixtral and GPT-OSS always do, Jamba and DeepSeek-V2 never; the others say so.
    if subject.family.of(_LAYER).architecture in ("JambaForCausalLM", "DeepseekV2ForCausalLM"):
        return False
    return _has_router(subject) and bool(getattr(_router(subject), "norm_topk_prob", True))


@contextlib.contextmanager
def _experts_swapped(subject: LensModel) -> Iterator[None]:
    """Experts 0 and 1 change places."""
    with contextlib.ExitStack() as stack:
        module = mlp(subject, _LAYER)
        experts = getattr(original(module), "experts", None)
        if isinstance(experts, torch.nn.ModuleList):
            for a, b in zip(experts[0].parameters(), experts[1].parameters(), strict=True):
                first, second = replaced_by(a), replaced_by(b)
                stack.enter_context(overwritten(a, second))
                stack.enter_context(overwritten(b, first))
        else:
            inner = original(experts)
            for parameter in inner.parameters():
                order = [1, 0, *range(2, parameter.shape[0])]
                stack.enter_context(overwritten(parameter, replaced_by(parameter[order])))
        yield


def _shared(subject: LensModel, path: str | None) -> Any:
    return None if path is None else _inner(subject, path)


def _limit(subject: LensModel) -> Any | None:
    found = _inner(subject, "experts") if subject.family.of(_LAYER).moe else None
    return found if found is not None and hasattr(found, "limit") else None


#: What an MLP writes, before a norm that follows it.
_OUT = at("mlp.out", "mlp_out")

_ROUTERS: tuple[Fault, ...] = (
    Fault(
        "router_not_renormalised",
        "router",
        "softmax over all experts, not renormalised",
        _normalised_otherwise,
        _OUT,
        _renormalises,
    ),
    Fault(
        "router_renormalised",
        "router",
        "weights of the chosen experts made to sum to one where they should not",
        _normalised_otherwise,
        _OUT,
        lambda s: _has_router(s) and not _renormalises(s),
    ),
    Fault(
        "router_one_less",
        "router",
        "one expert too few",
        _chosen(-1),
        _OUT,
        lambda s: _has_choice(s) and _top_k(s) > 1,
    ),
    Fault(
        "router_one_more",
        "router",
        "one expert too many",
        _chosen(1),
        _OUT,
        lambda s: _has_choice(s) and _top_k(s) < s.dims.n_experts,
    ),
    Fault(
        "router_weights_swapped",
        "router",
        "weights of the chosen experts in another order",
        _weights_swapped,
        _OUT,
        lambda s: _has_router(s) and _top_k(s) > 1,
    ),
    Fault(
        "router_uniform",
        "router",
        "chosen experts weighted alike",
        lambda s: _routed(s, _uniform),
        _OUT,
        lambda s: _has_router(s) and _top_k(s) > 1,
    ),
    Fault(
        "experts_swapped",
        "router",
        "two experts swapped",
        _experts_swapped,
        _OUT,
        lambda s: _own_moe(s) is not None or _inner(s, "experts") is not None,
    ),
    Fault(
        "shared_expert_dropped",
        "router",
        "the expert that every token uses is left out",
        lambda s: returning(_shared(s, s.family.of(_LAYER).shared), torch.zeros_like),
        _OUT,
        lambda s: s.family.of(_LAYER).shared is not None,
    ),
    Fault(
        "shared_expert_not_weighted",
        "router",
        "the shared expert's output is not multiplied by its gate",
        # sigmoid(30) is 1 to 1e-13.
        lambda s: returning(
            _shared(s, s.family.of(_LAYER).shared_gate), lambda t: torch.full_like(t, 30.0)
        ),
        _OUT,
        lambda s: s.family.of(_LAYER).shared_gate is not None,
    ),
    Fault(
        "swiglu_limit_missing",
        "mlp",
        "the clamp of the experts' activation is left out",
        lambda s: attribute(_limit(s), "limit", math.inf),
        _OUT,
        lambda s: _limit(s) is not None,
    ),
    Fault(
        "swiglu_alpha",
        "mlp",
        "the experts' sigmoid is not scaled by 1.702",
        lambda s: attribute(_limit(s), "alpha", 1.0),
        _OUT,
        lambda s: _limit(s) is not None,
    ),
)


FAULTS: tuple[Fault, ...] = (*_DENSE, *_ROUTERS)
