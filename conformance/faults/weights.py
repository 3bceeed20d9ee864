"""Faults of loading and processing weights, and of the accessors that show them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import attention, mlp, named, original, overwritten
from conformance.faults.norms import norm, norm_weight, rms
from conformance.flags import declined, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"

#: TransformerLens's name -> the bridge's submodule of attention or MLP.
_BRIDGE = {
    "W_Q": "q",
    "W_K": "k",
    "W_V": "v",
    "W_O": "o",
    "W_in": "in",
    "W_gate": "gate",
    "W_out": "out",
}
_WHOLE = {"W_E": "embed", "W_U": "unembed", "W_pos": "pos_embed"}

#: A token that no prompt holds: ids below 4 are never drawn, and this is the end of a text.
_UNSEEN = 2


def weight(subject: LensModel, name: str) -> torch.Tensor | None:
    """The parameter that the forward pass uses, in the layer where faults go, if there is one."""
    model = subject.model
    if name in _WHOLE:
        module = getattr(model, _WHOLE[name], None)
        return None if module is None else _parameter(original(module), name)
    part = attention(subject, _LAYER) if name[-1] in "QKVO" else mlp(subject, _LAYER)
    if part is None:
        return None
    own = _parameter(part, name)
    if own is not None:
        return own
    module = getattr(part, _BRIDGE[name], None)
    return None if module is None else _parameter(original(module), "weight")


def _parameter(module: Any, name: str) -> torch.Tensor | None:
    for candidate in (f"_{name}", name, "weight"):
        found = module._parameters.get(candidate)
        if found is not None and found.ndim >= 2:
            return found
    return None


def shown_as(subject: LensModel, name: str) -> str | None:
    """The name by which the ``weights`` check knows it: the port's own where that is all there is.

    None where the check does not.
    """
    shown = named(subject)
    if not shown:
        own = weight(subject, name)
        raw = subject.raw_parameters().items()
        return next((n for n, p in raw if own is not None and p.data_ptr() == own.data_ptr()), None)
    if name in _WHOLE:
        return known if (known := f"{_WHOLE[name]}.{name}") in shown else None
    part = "attn" if name[-1] in "QKVO" else "mlp"
    plain, grouped = f"{_PRE}.{part}.{name}", f"{_PRE}.{part}._{name}"
    return next((n for n in (grouped, plain) if n in shown), None)


def _has(name: str) -> Callable[[LensModel], bool]:
    return lambda s: weight(s, name) is not None and shown_as(s, name) is not None


def _changed(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[LensModel], Any]:
    def apply(subject: LensModel) -> Any:
        found = weight(subject, name)
        assert found is not None
        return overwritten(found, change)

    return apply


def _row(t: torch.Tensor) -> torch.Tensor:
    flat = t.flatten(0, -2)
    flat[flat.shape[0] // 2] += 1e-3
    return flat.reshape(t.shape)


def _element(t: torch.Tensor) -> torch.Tensor:
    flat = t.flatten()
    flat[flat.shape[0] // 2 + 1] += 1e-6
    return flat.reshape(t.shape)


def _in_check(name: str) -> Callable[[LensModel], tuple[str, ...]]:
    return lambda s: tuple(n for n in (shown_as(s, name),) if n is not None)


def _tied(subject: LensModel) -> bool:
    """Whether the head is the embedding, so that its faults are the embedding's."""
    return weight(subject, "W_U") is weight(subject, "W_E")


def _each(name: str) -> tuple[Fault, Fault]:
    def applies(subject: LensModel) -> bool:
        return _has(name)(subject) and not (name == "W_U" and _tied(subject))

    return (
        Fault(
            f"{name}_row",
            "weights",
            f"one row of {name} + 1e-3",
            _changed(name, _row),
            _in_check(name),
            applies,
            named_by="weights",
        ),
        Fault(
            f"{name}_element",
            "weights",
            f"one element of {name} + 1e-6",
            _changed(name, _element),
            _in_check(name),
            applies,
            named_by="weights",
        ),
    )


def _unseen(t: torch.Tensor) -> torch.Tensor:
    row = t if t.shape[0] > t.shape[1] else t.T
    row[_UNSEEN] += 0.5
    return t


def _square(name: str) -> Callable[[LensModel], bool]:
    def applies(subject: LensModel) -> bool:
        found = weight(subject, name)
        return (
            _has(name)(subject)
            and found is not None
            and found.ndim == 2
            and (found.shape[0] == found.shape[1])
        )

    return applies


@contextlib.contextmanager
def _norm_weight(subject: LensModel) -> Iterator[None]:
    module = original(norm(subject, f"{_PRE}.ln1"))
    parameter = next(p for n, p in module.named_parameters() if n in ("w", "weight"))

    def change(t: torch.Tensor) -> torch.Tensor:
        t[3] += 1e-6
        return t

    with overwritten(parameter, change):
        yield


def _has_norm_weight(subject: LensModel) -> bool:
    return f"{_PRE}.ln1.w" in named(subject) and norm(subject, f"{_PRE}.ln1") is not None


# --- accessors --------------------------------------------------------------------------------


def _reordered(name: str) -> Callable[[LensModel], Any]:
    """An accessor of the model that shows heads in reverse; the forward pass is untouched."""

    @contextlib.contextmanager
    def apply(subject: LensModel) -> Iterator[None]:
        model = subject.model
        own = type(model)

        def shown(self: Any) -> torch.Tensor:
            right: torch.Tensor = getattr(super(wrong, self), name)
            return right.flip(1)

        wrong = type(own.__name__, (own,), {name: property(shown)})
        object.__setattr__(model, "__class__", wrong)
        try:
            yield
        finally:
            object.__setattr__(model, "__class__", own)

    return apply


def _has_accessor(name: str) -> Callable[[LensModel], bool]:
    def applies(subject: LensModel) -> bool:
        shown = isinstance(getattr(type(subject.model), name, None), property) and named(subject)
        return bool(shown) and subject.dims.n_kv_heads > 1 and subject.family.regular

    return applies


# --- processing -------------------------------------------------------------------------------


def after_processing(
    corrupt: Callable[[LensModel, dict[str, torch.Tensor]], None],
) -> Callable[[LensModel], AbstractContextManager[None]]:
    """Let the library process the weights, then leave them as a wrong fold would."""

    @contextlib.contextmanager
    def apply(subject: LensModel) -> Iterator[None]:
        right = subject.process_weights

        def wrong(flags: Mapping[str, bool] | None = None) -> None:
            before = {name: t.clone() for name, t in named_before(subject).items()}
            right(flags)
            with torch.no_grad():
                corrupt(subject, before)

        subject.process_weights = wrong  # type: ignore[method-assign]
        try:
            yield
        finally:
            del subject.process_weights

    return apply


def named_before(subject: LensModel) -> dict[str, torch.Tensor]:
    """The weights by name; gains of norms whatever else the port can tell."""
    norms = {n: norm(subject, n) for n in ("ln_final", f"{_PRE}.ln1", f"{_PRE}.ln2")}
    gains = {f"{n}.w": norm_weight(module) for n, module in norms.items() if module is not None}
    return {**{n: w for n, w in gains.items() if w is not None}, **named(subject)}


def _gain(subject: LensModel, before: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    w = before[name]
    offset = subject.family.of(_LAYER).norm_offset and hasattr(subject.model, "original_model")
    return 1 + w if offset else w


def has_gain(name: str) -> Callable[[LensModel], bool]:
    """Whether the norm scales at all: HookedTransformer holds ones where a model has no weight."""

    def applies(subject: LensModel) -> bool:
        weights = named_before(subject)
        return name in weights and bool((_gain(subject, weights, name) != 1).any())

    return applies


def _along(parameter: torch.Tensor, gain: torch.Tensor, name: str) -> None:
    """Multiply a reading matrix along its d_model axis, however it is stored."""
    d_model = gain.shape[0]
    if name == "W_U":
        axis = 0 if parameter.shape[0] == d_model else 1
    elif parameter.ndim == 3:
        axis = 1
    else:
        axis = 0 if parameter.shape[0] == d_model and parameter.shape[1] != d_model else 1
    shape = [1] * parameter.ndim
    shape[axis] = d_model
    parameter.mul_(gain.reshape(shape))


def folded_twice(reader: str, gain: str) -> Callable[[LensModel, dict[str, torch.Tensor]], None]:
    def corrupt(subject: LensModel, before: dict[str, torch.Tensor]) -> None:
        parameter = weight(subject, reader)
        assert parameter is not None
        _along(parameter, _gain(subject, before, gain), reader)

    return corrupt


def bias_dropped(subject: LensModel, _: dict[str, torch.Tensor]) -> None:
    """The head's bias that folding made (or had) is lost."""
    head = original(subject.model.unembed)
    for name in ("b_U", "bias"):
        found = getattr(head, name, None)
        if isinstance(found, torch.Tensor):
            found.zero_()
            return


def has_final_bias(subject: LensModel) -> bool:
    """Whether the final norm adds a bias, and folding moves it into the head's."""
    if refused(subject) or declined(subject, "fold_ln"):
        return False
    return bool((named(subject).get("ln_final.b", torch.zeros(1)) != 0).any())


def _wrong_axis(subject: LensModel, _: dict[str, torch.Tensor]) -> None:
    """The head centred over d_model instead of over the vocabulary."""
    parameter = weight(subject, "W_U")
    assert parameter is not None
    axis = 0 if parameter.shape[0] == subject.dims.d_model else 1
    parameter.sub_(parameter.mean(axis, keepdim=True))


def value_bias_twice(subject: LensModel, before: dict[str, torch.Tensor]) -> None:
    """The value bias, folded into the output's bias, is added once more."""
    b_v, w_o = before[f"{_PRE}.attn.b_V"], before[f"{_PRE}.attn.W_O"]
    if b_v.shape[0] != w_o.shape[0]:
        b_v = b_v.repeat_interleave(w_o.shape[0] // b_v.shape[0], dim=0)
    extra = torch.einsum("hd,hdm->m", b_v, w_o)
    part = attention(subject, _LAYER)
    target = part._parameters.get("b_O")
    if target is None:
        target = original(part.o).bias
    target.add_(extra)


def has_value_bias(subject: LensModel) -> bool:
    """Whether attention adds a bias to values, and one to its output that can take it."""
    part = attention(subject, _LAYER)
    b = named(subject).get(f"{_PRE}.attn.b_V")
    if part is None or b is None or not (b != 0).any():
        return False
    own = part._parameters.get("b_O")
    inner = getattr(original(getattr(part, "o", None)), "bias", None)
    return own is not None or inner is not None


def _processing(name: str, what: str, corrupt: Any, applies: Callable[[LensModel], bool]) -> Fault:
    return Fault(
        name,
        "folding",
        what,
        after_processing(corrupt),
        exactly("logits"),
        applies,
        named_by="logits",
        corrupt=corrupt,
    )


_KINDS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", "W_E", "W_U", "W_pos")

FAULTS: tuple[Fault, ...] = (
    *(fault for name in _KINDS for fault in _each(name)),
    Fault(
        "norm_weight_element",
        "weights",
        "one element of a norm's weight + 1e-6",
        _norm_weight,
        exactly(f"{_PRE}.ln1.w"),
        _has_norm_weight,
        named_by="weights",
    ),
    Fault(
        "embed_unused_row",
        "weights",
        "the embedding of a token in no prompt is wrong",
        _changed("W_E", _unseen),
        _in_check("W_E"),
        _has("W_E"),
        named_by="weights",
    ),
    *(
        Fault(
            f"{name}_transposed",
            "weights",
            f"{name} transposed where it is square",
            _changed(name, lambda t: t.T.clone()),
            _in_check(name),
            _square(name),
            named_by="weights",
        )
        for name in ("W_Q", "W_O")
    ),
    *(
        Fault(
            f"accessor_{name}",
            "accessor",
            f"model.{name} shows heads in another order",
            _reordered(name),
            exactly(f"model.{name}"),
            _has_accessor(name),
            named_by="weights",
        )
        for name in ("W_K", "W_Q")
    ),
    _processing(
        "fold_final_norm_twice",
        "the final norm folded into the head twice",
        folded_twice("W_U", "ln_final.w"),
        has_gain("ln_final.w"),
    ),
    _processing(
        "fold_mlp_norm_twice",
        "the MLP's norm folded twice",
        folded_twice("W_in", f"{_PRE}.ln2.w"),
        lambda s: has_gain(f"{_PRE}.ln2.w")(s) and weight(s, "W_in") is not None,
    ),
    _processing(
        "fold_query_norm_twice",
        "attention's norm folded into the queries twice",
        folded_twice("W_Q", f"{_PRE}.ln1.w"),
        lambda s: has_gain(f"{_PRE}.ln1.w")(s) and weight(s, "W_Q") is not None,
    ),
    _processing(
        "fold_bias_dropped",
        "the final norm's bias is lost in folding",
        bias_dropped,
        has_final_bias,
    ),
    _processing(
        "fold_value_bias_twice", "the value bias folded twice", value_bias_twice, has_value_bias
    ),
    _processing(
        "centre_wrong_axis",
        "the head centred over the wrong axis",
        _wrong_axis,
        lambda s: rms(norm(s, "ln_final")),
    ),
)
