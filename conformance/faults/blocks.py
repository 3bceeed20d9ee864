"""Faults of norms, MLPs, routers and the wiring between them."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.attention import bias
from conformance.faults.base import Fault, at, exactly
from conformance.faults.inject import (
    attribute,
    called_with,
    edited,
    exposed,
    original,
    overwritten,
    returning,
    watched,
    watched_input,
)
from conformance.implementations.base import replace_input

if TYPE_CHECKING:
    from conformance.implementations.subjects import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"

# --- norms ------------------------------------------------------------------------------------

#: Component -> the site that it produces.
_NORM_SITES = {"ln1": "ln1", "ln2": "ln2", "ln1_post": "attn_out", "ln2_post": "mlp_out"}


def norm(subject: LensModel, component: str) -> Any | None:
    """A norm's module by its component name, or None."""
    return subject.components().get(component)


def _site(component: str) -> str:
    if component == "ln_final":
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


def _has_norm(component: str) -> Callable[[LensModel], bool]:
    return lambda s: norm(s, component) is not None and exposed(s, _site(component))


def _other_eps(factor: float) -> NormChange:
    def change(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
        eps, b = norm_eps(module), _bias(module)
        centred = x if rms(module) else x - x.mean(-1, keepdim=True)
        v = centred.pow(2).mean(-1, keepdim=True)
        ratio = ((v + eps) / (v + eps * factor)).sqrt()
        return y * ratio if b is None else (y - b) * ratio + b

    return change


def _no_offset(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    return y - _normalised(x, norm_eps(module), centred=False)


def _other_centring(y: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    eps, w, centred = norm_eps(module), norm_weight(module), not rms(module)
    delta = _normalised(x, eps, not centred) - _normalised(x, eps, centred)
    return y + (delta if w is None else delta * norm_effective(module, w))


def norm_effective(module: Any, w: torch.Tensor) -> torch.Tensor:
    return 1 + w if getattr(module, "uses_weight_offset", False) else w


def _no_bias(y: torch.Tensor, _: torch.Tensor, module: Any) -> torch.Tensor:
    b = _bias(module)
    return y if b is None else y - b


def _skip(_: torch.Tensor, x: torch.Tensor, __: Any) -> torch.Tensor:
    return x


def _norm_fault(
    name: str,
    what: str,
    component: str,
    change: NormChange,
    extra: Callable[[LensModel, Any], bool] = lambda *_: True,
) -> Fault:
    def applies(subject: LensModel) -> bool:
        return _has_norm(component)(subject) and extra(subject, norm(subject, component))

    return Fault(
        name, "norm", what, norm_changed(component, change), exactly(_site(component)), applies
    )


def replaced_by(value: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A change to what ``value`` is now."""
    kept = value.detach().clone()
    return lambda _: kept


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


_NORMS: tuple[Fault, ...] = (
    _norm_fault("norm_eps_tenfold", "eps ten times too large", f"{_PRE}.ln1", _other_eps(10.0)),
    _norm_fault("norm_eps_tenth", "eps ten times too small", f"{_PRE}.ln2", _other_eps(0.1)),
    _norm_fault(
        "final_norm_eps", "the final norm's eps ten times too large", "ln_final", _other_eps(10.0)
    ),
    _norm_fault(
        "norm_offset_missing",
        "the norm multiplies by w instead of 1 + w",
        f"{_PRE}.ln1",
        _no_offset,
        lambda s, _: s.family.norm_offset,
    ),
    _norm_fault(
        "norm_centring", "RMS instead of LayerNorm, or back", f"{_PRE}.ln1", _other_centring
    ),
    _norm_fault(
        "norm_bias_skipped",
        "the norm's bias is left out",
        f"{_PRE}.ln1",
        _no_bias,
        lambda _, m: _bias(m) is not None,
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
            not s.family.mlp_reads_ln1
            and _has_norm(f"{_PRE}.ln1")(s)
            and _has_norm(f"{_PRE}.ln2")(s)
            and norm_weight(norm(s, f"{_PRE}.ln2")) is not None
        ),
    ),
)

# --- MLPs -------------------------------------------------------------------------------------

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
    return known.get(subject.family.architecture)


@contextlib.contextmanager
def _mlp_recomputed(
    subject: LensModel, compute: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
) -> Iterator[None]:
    """Another function of the MLP's pre-activations."""
    with contextlib.ExitStack() as stack:
        pre = stack.enter_context(watched(subject, f"{_PRE}.mlp.pre"))
        up = None
        if subject.family.gated:
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
    return exposed(subject, f"{_PRE}.mlp.post") and exposed(subject, f"{_PRE}.mlp.pre")


def _act_in(*names: str) -> Callable[[LensModel], bool]:
    return lambda s: _has_post(s) and _activation(s) in names


def _gate_up_swapped(subject: LensModel) -> Any:
    act = _ACTIVATIONS[_activation(subject) or "silu"]

    def compute(pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        assert up is not None
        return act(up) * pre

    return _mlp_recomputed(subject, compute)


def _mlp_out(subject: LensModel) -> str:
    return "mlp.out" if subject.family.ln2_post else "mlp_out"


def _minus(name: str, site: Callable[[LensModel], str]) -> Callable[[LensModel], Any]:
    def apply(subject: LensModel) -> Any:
        value = bias(subject, name)
        assert value is not None
        return edited(subject, f"{_PRE}.{site(subject)}", lambda t: t - value)

    return apply


def _edit(site: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[LensModel], Any]:
    return lambda s: edited(s, f"{_PRE}.{site}", change)


_MLPS: tuple[Fault, ...] = (
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
        lambda s: s.family.gated and _has_post(s) and _activation(s) is not None,
    ),
    Fault(
        "bias_in_skipped",
        "mlp",
        "the MLP's first bias is left out",
        _minus("mlp.b_in", lambda s: "mlp.pre_linear" if s.family.gated else "mlp.pre"),
        lambda s: at("mlp.pre_linear" if s.family.gated else "mlp.pre")(s),
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
        _edit("mlp.post", lambda t: t.clamp(max=1.0)),
        at("mlp.post"),
        _has_post,
    ),
)

# --- routers ----------------------------------------------------------------------------------


def _router(subject: LensModel) -> Any | None:
    """The HuggingFace-style router: returns logits, weights and indices of the chosen experts."""
    fam = subject.family
    if fam.router is None or _own_moe(subject) is not None:
        return None
    return _inner(subject, fam.router)


def _own_moe(subject: LensModel) -> Any | None:
    """HookedTransformer's own mixture of experts."""
    module = subject.model.blocks[_LAYER].mlp
    return module if hasattr(module, "experts_per_token") else None


def _inner(subject: LensModel, path: str) -> Any | None:
    module = original(subject.model.blocks[_LAYER].mlp)
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


def _no_renormalisation(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.topk(logits.softmax(-1), k, dim=-1)


def _one_expert_less(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, indices = torch.topk(logits, k - 1, dim=-1)
    return weights.softmax(-1), indices


def _one_expert_more(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, indices = torch.topk(logits, k + 1, dim=-1)
    return weights.softmax(-1), indices


def _weights_swapped(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, indices = torch.topk(logits, k, dim=-1)
    return weights.softmax(-1).flip(-1), indices


def _uniform(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, indices = torch.topk(logits, k, dim=-1)
    return torch.full_like(weights, 1 / k), indices


def _chosen(by: int, rule: Routing) -> Callable[[LensModel], Any]:
    """``by`` experts more than the model has a token."""

    def apply(subject: LensModel) -> Any:
        own = _own_moe(subject)
        if own is not None:
            return attribute(own, "experts_per_token", own.experts_per_token + by)
        return _routed(subject, rule)

    return apply


def _unnormalised(subject: LensModel) -> Any:
    own = _own_moe(subject)
    if own is None:
        return _routed(subject, _no_renormalisation)
    cfg = copy.copy(own.cfg)
    cfg.norm_topk_prob = False
    return attribute(own, "cfg", cfg)


def _has_router(subject: LensModel) -> bool:
    return _router(subject) is not None


def _has_choice(subject: LensModel) -> bool:
    return _has_router(subject) or _own_moe(subject) is not None


def _renormalises(subject: LensModel) -> bool:
    own = _own_moe(subject)
    return _has_router(subject) or bool(getattr(getattr(own, "cfg", None), "norm_topk_prob", False))


@contextlib.contextmanager
def _experts_swapped(subject: LensModel) -> Iterator[None]:
    """Experts 0 and 1 change places."""
    with contextlib.ExitStack() as stack:
        module = subject.model.blocks[_LAYER].mlp
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


def _limit(subject: LensModel) -> Any | None:
    found = _inner(subject, "experts") if subject.family.moe else None
    return found if found is not None and hasattr(found, "limit") else None


_ROUTERS: tuple[Fault, ...] = (
    Fault(
        "router_not_renormalised",
        "router",
        "softmax over all experts, not renormalised",
        _unnormalised,
        at("mlp_out"),
        _renormalises,
    ),
    Fault(
        "router_one_less",
        "router",
        "one expert too few",
        _chosen(-1, _one_expert_less),
        at("mlp_out"),
        lambda s: _has_choice(s) and _top_k(s) > 1,
    ),
    Fault(
        "router_one_more",
        "router",
        "one expert too many",
        _chosen(1, _one_expert_more),
        at("mlp_out"),
        lambda s: _has_choice(s) and _top_k(s) < s.dims.n_experts,
    ),
    Fault(
        "router_weights_swapped",
        "router",
        "weights of the chosen experts in another order",
        lambda s: _routed(s, _weights_swapped),
        at("mlp_out"),
        lambda s: _has_router(s) and _top_k(s) > 1,
    ),
    Fault(
        "router_uniform",
        "router",
        "chosen experts weighted alike",
        lambda s: _routed(s, _uniform),
        at("mlp_out"),
        lambda s: _has_router(s) and _top_k(s) > 1,
    ),
    Fault(
        "experts_swapped",
        "router",
        "two experts swapped",
        _experts_swapped,
        at("mlp_out"),
        lambda s: s.family.moe,
    ),
    Fault(
        "swiglu_limit_missing",
        "mlp",
        "the clamp of the experts' activation is left out",
        lambda s: attribute(_limit(s), "limit", math.inf),
        at("mlp_out"),
        lambda s: _limit(s) is not None,
    ),
    Fault(
        "swiglu_alpha",
        "mlp",
        "the experts' sigmoid is not scaled by 1.702",
        lambda s: attribute(_limit(s), "alpha", 1.0),
        at("mlp_out"),
        lambda s: _limit(s) is not None,
    ),
)

# --- wiring -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _layers_swapped(subject: LensModel) -> Iterator[None]:
    """The weights of two layers change places."""
    first, second = subject.model.blocks[1], subject.model.blocks[2]
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    with contextlib.ExitStack() as stack:
        for a, b in pairs:
            one, two = replaced_by(a), replaced_by(b)
            stack.enter_context(overwritten(a, two))
            stack.enter_context(overwritten(b, one))
        yield


def _can_swap(subject: LensModel) -> bool:
    first, second = subject.model.blocks[1], subject.model.blocks[2]
    shapes = [[p.shape for p in b.parameters()] for b in (first, second)]
    return shapes[0] == shapes[1] and len(shapes[0]) > 0


@contextlib.contextmanager
def _parallel(subject: LensModel) -> Iterator[None]:
    """The MLP's branch reads the stream before attention."""
    module = norm(subject, f"{_PRE}.ln2")
    assert module is not None
    with watched(subject, f"{_PRE}.resid_pre") as box:

        def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return replace_input(args, kwargs, box.get())

        with called_with(module, change):
            yield


@contextlib.contextmanager
def _sequential(subject: LensModel) -> Iterator[None]:
    """The MLP of a parallel block also reads what attention wrote."""
    with watched(subject, f"{_PRE}.attn_out") as box:
        module = subject.components()[f"{_PRE}.mlp"]

        def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            own = args[0] if args else kwargs["hidden_states"]
            return replace_input(args, kwargs, own + box.get().reshape(own.shape))

        with called_with(module, change):
            yield


@contextlib.contextmanager
def _streamed(subject: LensModel, part: float) -> Iterator[None]:
    """The residual stream enters the sum of a block's end with another weight."""
    with (
        watched(subject, f"{_PRE}.resid_pre") as box,
        edited(subject, f"{_PRE}.resid_post", lambda t: t - (1 - part) * box.get()),
    ):
        yield


def final(subject: LensModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Change what the unembedding returns."""
    return returning(subject.components()["unembed"], change)


def _softcap_owner(subject: LensModel) -> tuple[Any, str] | None:
    """Where this port keeps the cap of its logits."""
    hf = getattr(subject.model, "original_model", None)
    config = getattr(hf, "config", None)
    if config is not None and getattr(config, "final_logit_softcapping", None):
        return config, "final_logit_softcapping"
    if hf is None and (getattr(subject.model.cfg, "output_logits_soft_cap", None) or -1) > 0:
        return subject.model.cfg, "output_logits_soft_cap"
    return None


def _final_cap(subject: LensModel, factor: float | None) -> Any:
    found = _softcap_owner(subject)
    assert found is not None
    owner, name = found
    none = None if name == "final_logit_softcapping" else -1.0
    return attribute(owner, name, none if factor is None else getattr(owner, name) * factor)


@contextlib.contextmanager
def _untied(subject: LensModel) -> Iterator[None]:
    """The head keeps weights of its own where the checkpoint ties it to the embedding."""
    module = original(subject.components()["unembed"])
    name = "W_U" if hasattr(module, "W_U") else "weight"
    own = getattr(module, name)
    other = torch.nn.Parameter(own.detach() * (1 + 1e-3), requires_grad=own.requires_grad)
    with attribute(module, name, other):
        yield


def _tied(subject: LensModel) -> bool:
    head, table = original(subject.components()["unembed"]), original(subject.model.embed)
    return getattr(head, "weight", None) is getattr(table, "weight", object())


def _absolute(subject: LensModel) -> torch.Tensor:
    """The position table from position 0 on, [pos, d_model]."""
    module = original(subject.model.pos_embed)
    table: torch.Tensor = module.W_pos if hasattr(module, "W_pos") else module.weight
    return table.detach()[-min(table.shape[0], subject.dims.n_ctx) :]


def _positions_late(subject: LensModel) -> Any:
    """Each token gets the position before its own."""
    return edited(
        subject, "pos_embed", lambda t: torch.cat([t[..., :1, :], t[..., :-1, :]], dim=-2)
    )


def _positions_count_padding(subject: LensModel) -> Any:
    table = _absolute(subject)
    return edited(
        subject, "pos_embed", lambda t: table[: t.shape[-2]].to(t.dtype).expand(t.shape).clone()
    )


def _learned(subject: LensModel) -> bool:
    return subject.family.pos_embed is not None and exposed(subject, "pos_embed")


_WIRING: tuple[Fault, ...] = (
    Fault(
        "layers_swapped",
        "wiring",
        "two layers' weights swapped",
        _layers_swapped,
        lambda s: at("ln1", "attn.q")(s),
        lambda s: s.dims.n_layers > 2 and _can_swap(s),
    ),
    Fault(
        "parallel_for_sequential",
        "wiring",
        "attention and MLP read the same stream",
        _parallel,
        lambda s: (f"{_PRE}.resid_mid", f"{_PRE}.ln2"),
        lambda s: not s.family.parallel and _has_norm(f"{_PRE}.ln2")(s),
    ),
    Fault(
        "sequential_for_parallel",
        "wiring",
        "the MLP reads attention's output too",
        _sequential,
        at("mlp.pre"),
        lambda s: s.family.parallel,
    ),
    Fault(
        "residual_scaled",
        "wiring",
        "the stream enters a block's sum with weight 0.99",
        lambda s: _streamed(s, 0.99),
        at("resid_post"),
    ),
    Fault(
        "attn_out_scaled",
        "wiring",
        "attention's contribution is scaled by 1.01",
        _edit("attn_out", lambda t: t * 1.01),
        at("attn_out"),
    ),
    Fault(
        "mlp_out_scaled",
        "wiring",
        "the MLP's contribution is scaled by 0.999",
        _edit("mlp_out", lambda t: t * 0.999),
        at("mlp_out"),
    ),
    Fault(
        "embed_scale_missing",
        "wiring",
        "the embedding is not scaled by sqrt(d_model)",
        lambda s: edited(s, "embed", lambda t: t / s.dims.d_model**0.5),
        exactly("embed"),
        lambda s: s.family.embed_scaled,
    ),
    Fault(
        "embed_scale_rounded",
        "wiring",
        "sqrt(d_model) rounded to bfloat16",
        lambda s: edited(s, "embed", lambda t: t * _rounded(s.dims.d_model)),
        exactly("embed"),
        lambda s: s.family.embed_scaled,
    ),
    Fault(
        "logits_scaled",
        "wiring",
        "logits scaled by 1.02",
        lambda s: final(s, lambda t: t * 1.02),
        exactly("logits"),
        named_by="logits",
    ),
    Fault(
        "final_softcap_missing",
        "softcap",
        "logits are not capped",
        lambda s: _final_cap(s, None),
        exactly("logits"),
        lambda s: _softcap_owner(s) is not None,
        named_by="logits",
    ),
    Fault(
        "final_softcap_off",
        "softcap",
        "logits capped at 30.5 instead of 30",
        lambda s: _final_cap(s, 30.5 / 30),
        exactly("logits"),
        lambda s: _softcap_owner(s) is not None,
        named_by="logits",
    ),
    Fault(
        "head_untied",
        "wiring",
        "a tied head has drifted from the embedding by 0.1 %",
        _untied,
        exactly("logits"),
        _tied,
        named_by="logits",
    ),
    Fault(
        "positions_late",
        "positions",
        "learned positions off by one",
        _positions_late,
        exactly("pos_embed"),
        _learned,
    ),
    Fault(
        "positions_count_padding",
        "positions",
        "learned positions count padding",
        _positions_count_padding,
        exactly("pos_embed"),
        _learned,
    ),
)


def _rounded(d_model: int) -> float:
    """What rounding sqrt(d_model) to eight bits multiplies it by."""
    root = d_model**0.5
    unit = 2.0 ** (math.floor(math.log2(root)) - 7)
    return round(root / unit) * unit / root


FAULTS: tuple[Fault, ...] = (*_NORMS, *_MLPS, *_ROUTERS, *_WIRING)
