"""Changes that leave the function and its precision alone, and must not be flagged."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from conformance.faults.base import Fault
from conformance.faults.inject import (
    AttentionMode,
    attends,
    attention,
    attention_calls,
    delegates,
    during,
    edited,
    named,
    original,
    overwritten,
    replaced_by,
    watched_input,
)
from conformance.faults.norms import (
    norm,
    norm_effective,
    norm_eps,
    norm_weight,
    rms,
    weight_is_offset,
)
from conformance.faults.weights import weight
from conformance.variants import doubled as in_a_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt

_LAYER = 1
_PRE = f"blocks.{_LAYER}"
_HEADS = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.q_normed",
    "attn.k_normed",
    "attn.rot_q",
    "attn.rot_k",
    "attn.scores",
    "attn.pattern",
    "attn.z",
)


class _Linear(TorchFunctionMode):
    """Computes every linear map in another way."""

    def __init__(self, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._compute = compute

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            x, w, *rest = args
            b = rest[0] if rest else kwargs.get("bias")
            y = self._compute(x, w)
            return y if b is None else y + b
        return func(*args, **kwargs)


def _in_halves(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    half = w.shape[1] // 2
    return x[..., half:] @ w[:, half:].T + x[..., :half] @ w[:, :half].T


def _backwards(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.flip(-1) @ w.flip(-1).T


@contextlib.contextmanager
def _batched(subject: LensModel) -> Iterator[None]:
    """Every prompt runs beside a copy of itself; the first half is shown."""
    right = subject._run

    def doubled(
        prompt: Prompt,
        on_site: Any,
        force: Any,
        on_input: Any,
        return_type: str,
        edits: Any,
        grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = prompt.tokens.shape[0]
        twice = in_a_batch(prompt)

        def emit(name: str, tensor: torch.Tensor) -> None:
            flat = name.endswith("router_logits")
            on_site(name, tensor[: tensor.shape[0] // 2] if flat else tensor[:rows])

        def forced(name: str) -> torch.Tensor | None:
            value = force(name)
            return None if value is None else torch.cat([value, value])

        twice_forced = None if force is None else forced
        logits, loss = right(twice, emit, twice_forced, on_input, return_type, edits, grad)
        return logits[:rows], None if loss is None else loss[:rows]

    subject._run = doubled  # type: ignore[method-assign]
    try:
        yield
    finally:
        del subject._run


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_onednn() -> Iterator[None]:
    # torch.backends.mkldnn.flags also sets a GPU's flag, and warns where there is no GPU.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def _fused_qkv(subject: LensModel) -> Iterator[None]:
    """One product for queries, keys and values, split afterwards."""
    part = attention(subject, _LAYER)
    modules = [getattr(part, name) for name in "qkv"]
    sizes = [original(m).weight.shape[0] for m in modules]
    fused: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for i, module in enumerate(modules):

            def replace(m: Any, args: Any, output: torch.Tensor, i: int = i) -> torch.Tensor:
                if i == 0:
                    w = torch.cat([original(x).weight for x in modules])
                    fused["y"] = torch.nn.functional.linear(args[0], w).split(sizes, dim=-1)
                b = original(m).bias
                y: torch.Tensor = fused["y"][i]
                return y if b is None else y + b

            handle = original(module).register_forward_hook(
                lambda _, args, out, module=module, replace=replace: replace(module, args, out)
            )
            stack.callback(handle.remove)
        yield


def _splits(subject: LensModel) -> bool:
    part = attention(subject, _LAYER)
    inner = [original(getattr(part, n, None)) for n in "qkv"]
    once = "attn.k" not in subject.family.absent(_LAYER)  # LongT5 projects sums of blocks, too
    return once and all(isinstance(m, torch.nn.Linear) for m in inner)


def _online(x: torch.Tensor) -> torch.Tensor:
    """Softmax as fused kernels compute it: exp(x - logsumexp)."""
    return (x - x.logsumexp(-1, keepdim=True)).exp()


def _scaled_first(subject: LensModel) -> Any:
    """Queries are scaled before the product, and the scores back by the rest."""

    def products(count: int, first: torch.Tensor, second: torch.Tensor) -> tuple[Any, Any]:
        return (first * 3.0, second / 3.0) if count == 0 else (first, second)

    return attention_calls(subject, _LAYER, AttentionMode(products=products))


def _keys_backwards(subject: LensModel) -> Any:
    """The sum over keys runs from the last to the first."""

    def products(count: int, first: torch.Tensor, second: torch.Tensor) -> tuple[Any, Any]:
        return (first.flip(-1), second.flip(-2)) if count == 0 else (first, second)

    return attention_calls(subject, _LAYER, AttentionMode(products=products))


@contextlib.contextmanager
def _rsqrt_norm(subject: LensModel) -> Iterator[None]:
    """The norm as a product with the inverse root instead of a quotient, weight first."""
    module = norm(subject, f"{_PRE}.ln1")
    own = None if module is None else norm_weight(module)
    assert module is not None
    assert own is not None
    eps, w = norm_eps(module), norm_effective(module, own)
    with watched_input(module) as box:

        def change(y: torch.Tensor) -> torch.Tensor:
            x = box.get().reshape(y.shape)
            return (x * w) * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)

        with edited(subject, f"{_PRE}.ln1", change):
            yield


def _plain_rms(subject: LensModel) -> bool:
    module = norm(subject, f"{_PRE}.ln1")
    return module is not None and rms(module) and norm_weight(module) is not None


@contextlib.contextmanager
def _norm_folded(subject: LensModel) -> Iterator[None]:
    """The norm's weight moved into the matrices that read it."""
    module = norm(subject, f"{_PRE}.ln1")
    gain = norm_weight(module)
    assert gain is not None
    offset = weight_is_offset(module)
    gain = norm_effective(module, gain).clone()
    with contextlib.ExitStack() as stack:
        for name in ("W_Q", "W_K", "W_V"):
            matrix = weight(subject, name)
            assert matrix is not None
            factor = gain[:, None] if matrix.ndim == 3 else gain
            stack.enter_context(overwritten(matrix, replaced_by(matrix * factor)))
        own = norm_weight(module)
        assert own is not None
        neutral = 0.0 if offset else 1.0
        stack.enter_context(overwritten(own, lambda t: torch.full_like(t, neutral)))
        yield


def _folds(subject: LensModel) -> bool:
    own = subject.family.of(_LAYER)
    return (
        _plain_rms(subject)
        and not (own.mlp_reads_ln1 or own.attn_gate or own.mixer)
        and all(weight(subject, n) is not None for n in ("W_Q", "W_K", "W_V"))
    )


@contextlib.contextmanager
def _heads_permuted(subject: LensModel) -> Iterator[None]:
    """Heads in another order in every matrix of a layer: whole groups, so that keys follow."""
    d = subject.dims
    with contextlib.ExitStack() as stack:
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            matrix = weight(subject, name)
            assert matrix is not None
            count = d.n_kv_heads if name in ("W_K", "W_V") else d.n_heads

            def flip(t: torch.Tensor, name: str = name, count: int = count) -> torch.Tensor:
                group = count // d.n_kv_heads
                order = torch.arange(count).reshape(d.n_kv_heads, group).flip(0).flatten()
                if t.ndim == 3:
                    return t[order]
                if name == "W_O":
                    return t.unflatten(1, (count, d.d_head))[:, order].flatten(1)
                return t.unflatten(0, (count, d.d_head))[order].flatten(0, 1)

            stack.enter_context(overwritten(matrix, flip))
        yield


def _permutes(subject: LensModel) -> bool:
    found = [weight(subject, n) for n in ("W_Q", "W_K", "W_V", "W_O")]
    if any(w is None for w in found) or subject.dims.n_kv_heads < 2 or delegates(subject):
        return False
    biased = [
        n
        for n, t in named(subject).items()
        if n.startswith(f"{_PRE}.attn.")
        and n[-3:] in ("b_Q", "b_K", "b_V")
        and bool((t != 0).any())
    ]
    own = subject.family.of(_LAYER)
    simple = not biased and own.sinks is None and own.rotary
    conv1d = own.conv1d and hasattr(subject.model, "original_model")
    gated = own.q_gated or own.attn_gate is not None
    heads_apart = own.qk_norm != "full" and own.o_norm is None
    return simple and heads_apart and not conv1d and not gated


@contextlib.contextmanager
def _strided(subject: LensModel) -> Iterator[None]:
    """A matrix stored column by column: the same numbers in another memory order."""
    matrix = weight(subject, "W_O")
    assert matrix is not None
    before = matrix.data
    matrix.data = before.transpose(-1, -2).contiguous().transpose(-1, -2)
    try:
        yield
    finally:
        matrix.data = before


def _same(
    name: str, what: str, apply: Any, applies: Any = lambda _: True, differ: tuple[str, ...] = ()
) -> Fault:
    return Fault(
        name, "equivalent", what, apply, applies=applies, kind="equivalent", may_differ=differ
    )


EQUIVALENTS: tuple[Fault, ...] = (
    _same("another_batch_size", "every prompt in a batch of twice the size", _batched),
    _same("another_thread_count", "another number of threads", lambda _: _threads()),
    _same(
        "sums_in_halves",
        "every linear map summed in two halves",
        lambda s: during(s, lambda: _Linear(_in_halves)),
    ),
    _same(
        "sums_backwards",
        "every linear map summed backwards",
        lambda s: during(s, lambda: _Linear(_backwards)),
    ),
    _same("fused_qkv", "queries, keys and values from one product", _fused_qkv, _splits),
    _same(
        "softmax_as_fused_kernels",
        "softmax as exp(x - logsumexp), as sdpa does",
        lambda s: attention_calls(s, _LAYER, AttentionMode(softmax=_online)),
        lambda s: attends(s) and s.family.of(_LAYER).sinks is None,
    ),
    _same(
        "query_scaled_first",
        "a factor moved from keys to queries",
        _scaled_first,
        lambda s: attends(s) and not delegates(s),
    ),
    _same(
        "products_backwards",
        "query-key products summed backwards",
        _keys_backwards,
        lambda s: attends(s) and not delegates(s),
    ),
    _same("norm_by_rsqrt", "the norm as a product with the inverse root", _rsqrt_norm, _plain_rms),
    _same(
        "norm_folded_by_hand",
        "the norm's weight moved into the next matrices",
        _norm_folded,
        _folds,
        ("weights", "ln1", "(components)"),
    ),
    _same(
        "heads_permuted",
        "heads in another order in all matrices of a layer",
        _heads_permuted,
        _permutes,
        ("weights", *_HEADS),
    ),
    _same(
        "matrix_strided",
        "a matrix in another memory order",
        _strided,
        lambda s: weight(s, "W_O") is not None,
    ),
    _same("inference_mode", "under inference_mode", lambda s: during(s, torch.inference_mode)),
    _same("no_onednn", "another matrix library", lambda _: _no_onednn()),
)
